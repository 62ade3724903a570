"""Options and command line of save-compare, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from save_deploy import cli
from save_deploy.bundle import Manifest
from save_deploy.runtime.compare.entries import Entry, bundle_mb
from save_deploy.runtime.compare.options import CompareOptions
from save_deploy.runtime.compare.source import find_source
from save_deploy.runtime.pipeline import SavePipeline, load


def options(bundles: tuple[Path, ...], **changes: Any) -> CompareOptions:
    """On one thread: cores may be busy, and threads that wait for each other are then very slow."""
    return CompareOptions(bundles, **{"threads": 1, "rounds": 3, "clips": 1, **changes})


def open_pair(bundle: Path) -> tuple[dict[str, SavePipeline], dict[str, float]]:
    """-> eager and the bundle as pipelines on one thread, their sizes in MB."""
    manifest = Manifest.read(bundle)
    source = find_source(bundle, manifest)
    pipelines = {
        "eager": Entry("eager", "eager", "fp32", 0.0, eager=source, threads=1).open(),
        "bundle": load(bundle, threads=1),
    }
    size = bundle_mb(manifest, pipelines["bundle"].backend)
    return pipelines, {"eager": source.n_bytes / 1e6, "bundle": size}


def run_cli(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["save-compare", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.compare_main()
    return int(caught.value.code or 0)
