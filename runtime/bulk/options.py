"""Options of a run over many videos."""

from __future__ import annotations

from dataclasses import dataclass

from save_deploy.errors import DataError
from save_deploy.options import check_limits, option

BULK = "Many videos"
FORMATS = ("rle", "png", "video")
ENGINES = ("local", "ray")
MASKS_AT = ("frame", "network")
RESIZE = ("exact", "area")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` of the videos, selected by the hash of their ids."""

    index: int = 0
    count: int = 1


def parse_shard(text: str) -> Shard:
    """Parse a shard: "3/8" is the fourth of eight. Raises DataError."""
    index, slash, count = text.partition("/")
    fine = slash and index.isdecimal() and count.isdecimal() and len(text) < 20
    if not fine or int(index) >= int(count):
        raise DataError("wrong shard", got=text, expected="I/N with I from 0 to N-1, such as 0/8")
    return Shard(int(index), int(count))


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """Options of a run over many videos.

    manifest: file that lists the videos, instead of a folder or pattern.
    masks_at: size of the masks, frame or network.
    resize: method for resizing frames to network size, exact or area.
    actors: number of models that run in parallel; None to measure the best number.
    """

    manifest: str | None = option(
        "--manifest", panel=BULK, default=None,
        help="CSV or parquet with id and uri, optionally start_s, seconds, fps: instead of SOURCE.",
    )  # fmt: skip
    format: str | None = option(
        "--format", panel=BULK, default=None, default_text="rle",
        help="Format for many videos: rle (one parquet file per video); png or video in addition.",
    )  # fmt: skip
    engine: str = option(
        "--engine", panel=BULK, default="local",
        help="local (this process) or ray (Ray Data, on this machine or a cluster).",
    )  # fmt: skip
    address: str | None = option(
        "--address", panel=BULK, default=None, default_text="start a local Ray",
        needs=("--engine",), help="Ray cluster to join, such as auto or ray://head:10001.",
    )  # fmt: skip
    actors: int | None = option(
        "--actors", panel=BULK, default=None, low=1, default_text="measured",
        help="Number of models that run in parallel.",
    )  # fmt: skip
    threads_per_actor: int | None = option(
        "--threads-per-actor", panel=BULK, default=None, low=1,
        default_text="cores divided by models; 1 with ray", help="CPU threads per model.",
    )  # fmt: skip
    shard: Shard = option(
        "--shard", panel=BULK, default=Shard(), parse=parse_shard, text="0/1", metavar="I/N",
        help="Process only this part of the videos, as in a Slurm array or Kubernetes Indexed Job.",
    )  # fmt: skip
    retries: int = option(
        "--retries", panel=BULK, default=3, low=1, high=100,
        help="Attempts for a video that crashes its worker or cannot be fetched.",
    )  # fmt: skip
    masks_at: str = option(
        "--masks-at", panel=BULK, default="frame",
        help="Size of the masks: frame, or network (faster, coarser).",
    )  # fmt: skip
    resize: str = option(
        "--resize", panel=BULK, default="exact",
        help="Resizing of frames to network size: exact, or area (swscale: faster; mask edges differ).",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_limits(self)
        for name, value, known in (
            ("--format", self.format or FORMATS[0], FORMATS),
            ("--engine", self.engine, ENGINES),
            ("--masks-at", self.masks_at, MASKS_AT),
            ("--resize", self.resize, RESIZE),
        ):
            if value not in known:
                raise DataError(f"wrong {name}", got=value, expected=", ".join(known))
        if self.masks_at == "network" and self.form != "rle":
            raise DataError(
                "masks at network size are stored as rle only", got=f"--format {self.form}",
                expected="--format rle, or --masks-at frame",
            )  # fmt: skip

    @property
    def form(self) -> str:
        return self.format or FORMATS[0]
