"""Dataset of unlabeled videos: segments of a few seconds, with frames and audio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from save_deploy.data.audio import Waveform
from save_deploy.data.find import subsets_in
from save_deploy.data.released import FRAME_OFFSET_S
from save_deploy.data.sample import Clip, Sample, Sound, make_sample
from save_deploy.data.skipping import reason
from save_deploy.data.transforms import Frame
from save_deploy.data.video import read_video_stretch, video_seconds
from save_deploy.errors import DataError

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi")
STRETCH_SECONDS = 5
MAX_SECONDS = 600  # used per file, from its start
MAX_STRETCHES = 40  # per file


@dataclass(frozen=True)
class Stretch:
    """Segment of a video file: `seconds` frames, one per second, from start_s."""

    path: Path
    start_s: float
    seconds: int

    @property
    def name(self) -> str:
        return f"{self.path.name}_{self.start_s:.1f}s"


def is_videos(name: str) -> bool:
    """Return True for a video file, or a folder that holds videos directly and is no dataset."""
    path = Path(name)
    if path.is_dir():
        return bool(_files(path)) and not subsets_in(path)
    return path.suffix.lower() in SUFFIXES


class VideoClips:
    """One clip per segment, evenly spaced over the first ten minutes of each video.

    Masks are all False and the category is "", because the data is unlabeled. With skip_bad,
    unusable files are skipped; `skipped` maps file name to reason.
    """

    def __init__(self, path: Path, *, skip_bad: bool = False) -> None:
        files = _files(path) if path.is_dir() else [path]
        if not files:
            raise DataError("no video in the folder", got=str(path), expected=" ".join(SUFFIXES))
        self.stretches: list[Stretch] = []
        self.skipped: dict[str, str] = {}
        for file in files:
            try:
                self.stretches += stretches_of(file, video_seconds(file))
            except DataError as error:
                if not skip_bad:
                    raise
                self.skipped[file.name] = reason(error)
        if not self.stretches:
            first = next(iter(self.skipped.values()))
            raise DataError(
                "no video can be read",
                got=f"{len(files)} files, the first: {first}",
                expected="at least one readable video",
            )

    def __len__(self) -> int:
        return len(self.stretches)

    def __getitem__(self, index: int) -> Clip:
        """Return all frames of a segment and its audio."""
        stretch = self.stretches[index]
        frames, waveform = _read(stretch, range(stretch.seconds))
        return Clip(
            name=stretch.name,
            category="",
            frames=np.stack(frames),
            masks=np.zeros((len(frames), *frames[0].shape[:2]), bool),
            waveform=waveform,
        )

    def pairs(self) -> list[tuple[int, int]]:
        """Return (clip, frame) of every frame, without decoding."""
        return [(i, k) for i, stretch in enumerate(self.stretches) for k in range(stretch.seconds)]

    def sample(self, index: int, frame: int) -> Sample:
        """Return frame `frame` (0-based) of a segment and its second of audio.

        Decodes only that frame.
        """
        stretch = self.stretches[index]
        (picture,), waveform = _read(stretch, range(frame, frame + 1))
        mask = np.zeros(picture.shape[:2], bool)
        name = f"{stretch.name}_{frame + 1}"
        return make_sample(name, "", picture, mask, Sound(waveform), frame)


def stretches_of(path: Path, seconds: float) -> list[Stretch]:
    """Return the non-overlapping segments of a video of `seconds` seconds.

    A video shorter than a segment is one segment with a frame per whole second. Raises DataError
    below 1 s.
    """
    if seconds < 1:
        raise DataError(
            "video is too short", got=f"{seconds:.2f} s in {path}", expected="1 s or more"
        )
    seconds = min(seconds, MAX_SECONDS)
    length = min(STRETCH_SECONDS, int(seconds))
    n = min(MAX_STRETCHES, int(seconds // length))
    starts = np.linspace(0, seconds - length, n) if n > 1 else np.zeros(1)
    return [Stretch(path, float(start), length) for start in starts]


def _read(stretch: Stretch, frames: range) -> tuple[list[Frame], Waveform]:
    times = [k + FRAME_OFFSET_S for k in frames]
    return read_video_stretch(stretch.path, stretch.start_s, stretch.seconds, times)


def _files(folder: Path) -> list[Path]:
    """Return the videos directly in a folder, sorted by name, without hidden files."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
