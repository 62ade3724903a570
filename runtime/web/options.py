"""Options of the web page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from save_deploy.options import option

VERSION = "1.30.0"  # of ONNX Runtime Web


@dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """Options of a page. runtime: archive of ONNX Runtime Web; None for the cached one."""

    out: Path = option("--out", "-o", default=Path("site"), help="Folder to write.")
    fetch: bool = option(
        "--fetch", default=False,
        help=f"Download ONNX Runtime Web {VERSION} (33 MB, npm registry) if it is not cached.",
    )  # fmt: skip
    runtime: Path | None = option(
        "--runtime", default=None, help=f"Archive written by `npm pack onnxruntime-web@{VERSION}`."
    )
    force: bool = option("--force", default=False, help="Replace an existing page.")
