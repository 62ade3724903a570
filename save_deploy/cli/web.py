"""save-deploy web: write a static web page that runs a bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.cli.takes import takes
from save_deploy.options import option
from save_deploy.runtime.web.options import SiteOptions


@dataclass(frozen=True, kw_only=True)
class WebRequest:
    """A bundle and the options of its page."""

    bundle: Path = option(help="Folder written by save-export.")
    options: SiteOptions = field(default_factory=SiteOptions)


@takes(WebRequest)
def web(request: WebRequest) -> None:
    """Write a page that runs a bundle in the browser, on video files or camera and microphone."""
    from save_deploy.runtime.web.site import write_site

    out = request.options.out
    site = write_site(request.bundle, request.options)
    gpu, cpu = (size / 1e6 for size in site.loaded)
    print(
        f"{out}: {site.size / 1e6:.0f} MB; a browser loads {gpu:.0f} MB with WebGPU, {cpu:.0f} without"
    )
    print(f"to view it: python -m http.server --directory {out}, then http://localhost:8000")
