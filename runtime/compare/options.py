"""What is compared, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.runtime.compare.budget import Budget

ALL = "all"  # every backend that runs here


@dataclass(frozen=True)
class CompareOptions:
    """Bundles x backends x data. checkpoints, sams: files the references may be made of, found by
    their hash. eager False: the first bundle on its first backend is the reference. clips: of each
    dataset, None = all. frames: worst ones kept of each dataset. memory: one process more per row.
    self_test: of GPU backends that are new here."""

    bundles: tuple[Path, ...]
    backends: tuple[str, ...] = ("auto",)
    data: tuple[str, ...] = ("scenes",)
    split: str = "test"
    clips: int | None = None
    checkpoints: tuple[Path, ...] = ()
    sams: tuple[Path, ...] = ()
    eager: bool = True
    rounds: int = 20
    frames: int = 8
    memory: bool = False
    threads: int | None = None
    self_test: bool = True
    sound_from: str = "auto"
    skip_bad: bool = False
    budget: Budget = field(default_factory=Budget)
