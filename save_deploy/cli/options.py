"""Options shared by several verbs, in addition to save_deploy/options.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from save_deploy.cli.takes import typer_option
from save_deploy.options import (
    checkpoint_option,
    option,
    sam_option,
    self_test_option,
    threads_option,
    threshold_option,
    trust_option,
    vggish_option,
)

if TYPE_CHECKING:
    from save_deploy.runtime.lanes import Lanes
    from save_deploy.runtime.pipeline import SavePipeline

BACKEND = "Backend"
Bundle = Annotated[Path, typer.Argument(help="Folder written by save-export.")]
Checkpoint = Annotated[Path | None, typer_option(checkpoint_option(), Path)]
Sam = Annotated[Path | None, typer_option(sam_option(), Path)]
Vggish = Annotated[Path | None, typer_option(vggish_option(), Path)]
Threads = Annotated[int | None, typer_option(threads_option(), int)]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a bundle runs.

    self_test: False skips the self-test on a GPU that is new to the bundle.
    trust: also run engines that were not built on this machine.
    """

    backend: str = option(
        "--backend", panel=BACKEND, default="auto",
        help="onnxruntime, openvino, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, tensorrt-rtx, "
        "or auto: the fastest that runs on this machine.",
    )  # fmt: skip
    self_test: bool = self_test_option(BACKEND)
    threads: int | None = threads_option(BACKEND)
    threshold: float = threshold_option()
    trust: bool = trust_option(BACKEND)

    def load(self, bundle: Path) -> SavePipeline:
        return self._loaded(bundle, self.threads, 1)

    def load_lanes(self, bundle: Path, *, frames: int | None) -> Lanes:
        """Load for many frames; frames: how many, None if unknown."""
        from save_deploy.runtime.lanes import faster_lanes

        load = partial(self._loaded, bundle)
        return faster_lanes(load, bundle, self.backend, self.threads, frames=frames)

    def _loaded(self, bundle: Path, threads: int | None, streams: int) -> SavePipeline:
        from save_deploy.runtime.pipeline import load

        self_test = None if self.self_test else False
        return load(
            bundle,
            backend=self.backend,
            threads=threads,
            streams=streams,
            self_test=self_test,
            trust=self.trust,
            threshold=self.threshold,
        )
