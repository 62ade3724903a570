"""Pairs of a frame and one second of audio, selected across a dataset and identified by a hash."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from save_deploy.data.audio import Waveform, is_silent
from save_deploy.data.released import ReleasedClips
from save_deploy.data.sample import ClipDataset, FrameDataset, Sample
from save_deploy.data.transforms import Frame, resize_frame, resize_mask
from save_deploy.errors import DataError

CONSTANT_BELOW = 1.0  # standard deviation in gray levels
NOISE_ABOVE = 0.8 * math.sqrt(12) / 3  # 80 % of the roughness of uniform noise
REAL_DATA = "--calib-data scenes, a dataset folder or a folder of videos"


@dataclass(frozen=True)
class Pairs:
    """N pairs at model resolution S.

    image: uint8 (N,S,S,3), RGB.
    waveform: float32 (N,16000), 16 kHz mono.
    truth: bool (N,S,S), the ground-truth mask.
    names: name of each pair in its dataset.
    """

    image: NDArray[np.uint8]
    waveform: NDArray[np.float32]
    truth: NDArray[np.bool_]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sha256(self) -> str:
        """Hash of pixels and samples; it does not depend on the files they were read from."""
        digest = hashlib.sha256(self.image.tobytes())
        digest.update(self.waveform.tobytes())
        return digest.hexdigest()

    @property
    def pair_sha256(self) -> tuple[str, ...]:
        """pair_digest of every pair. The same pair from another dataset has the same digest."""
        return tuple(map(pair_digest, self.image, self.waveform))


def pair_digest(image: NDArray[np.uint8], waveform: NDArray[np.float32]) -> str:
    """Return the first 16 hex digits of the hash of one image (S,S,3) and waveform (16000,)."""
    return hashlib.sha256(image.tobytes() + waveform.tobytes()).hexdigest()[:16]


def collect_pairs(clips: ClipDataset, n: int, *, res: int) -> Pairs:
    """Return n pairs from evenly spaced clips, fewer when the dataset has fewer clips.

    Clip k gives its frame k modulo its number of frames. Raises DataError when all sounds are
    silent.
    """
    n = min(n, len(clips))
    chosen = []
    for k, index in enumerate(np.linspace(0, len(clips) - 1, n).round().astype(int)):
        samples = list(clips[int(index)].samples())
        chosen.append(samples[k % len(samples)])
    refuse_silence([s.heard() for s in chosen], [s.name for s in chosen])
    return Pairs(
        image=np.stack([resize_frame(s.frame, res) for s in chosen]),
        waveform=np.stack([s.heard() for s in chosen]),
        truth=np.stack([resize_mask(s.mask, res) for s in chosen]),
        names=tuple(s.name for s in chosen),
    )


def spread_positions(
    clips: ClipDataset, limit: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return at most `limit` candidates (clip, frame), balanced over categories where known."""
    if not isinstance(clips, FrameDataset):
        return [(i, i) for i in range(min(limit, len(clips)))]  # generated clips are independent
    frames: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for clip, _ in clips.pairs():
        category = clips.items[clip].category if isinstance(clips, ReleasedClips) else ""
        frames[category][clip] += 1
    names = sorted(frames)
    names = [names[i] for i in rng.permutation(len(names))]
    left = {category: sum(frames[category].values()) for category in names}
    quota: Counter[str] = Counter()
    while quota.total() < min(limit, sum(left.values())):
        for category in names:
            if quota[category] < left[category] and quota.total() < limit:
                quota[category] += 1
    return [
        position
        for category in names
        for position in _spread_over(frames[category], quota[category], rng)
    ]


def _spread_over(
    n_frames: dict[int, int], n: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return n (clip, frame) of one category, from evenly spaced clips.

    n_frames: number of frames by clip.

    Successive clips give different frames. A clip is used again, with a new frame, only after all
    other clips. Clips are taken in bit-reversed order (halves, quarters, eighths), so that the
    first few are evenly spaced too.
    """
    taken: dict[int, set[int]] = defaultdict(set)
    chosen: list[tuple[int, int]] = []
    phase, turn = rng.random(), int(rng.integers(1000))
    while len(chosen) < n:
        open_clips = [clip for clip, count in n_frames.items() if len(taken[clip]) < count]
        wanted = min(n - len(chosen), len(open_clips))
        for i in sorted(range(wanted), key=lambda i: f"{i:032b}"[::-1]):
            clip = open_clips[int((i + phase) * len(open_clips) / wanted)]
            order = ((turn + len(chosen) + k) % n_frames[clip] for k in range(n_frames[clip]))
            frame = next(k for k in order if k not in taken[clip])
            taken[clip].add(frame)
            chosen.append((clip, frame))
    return chosen


def read_sample(clips: ClipDataset, index: int, frame: int) -> Sample:
    """Read one frame and its second of audio.

    Without a known number of frames per clip (not a FrameDataset), `frame` is taken modulo it.
    """
    if isinstance(clips, FrameDataset):
        return clips.sample(index, frame)
    clip = clips[index]
    return next(islice(clip.samples(), frame % len(clip.frames), None))


def refuse_silence(waveforms: Sequence[Waveform], names: Sequence[str]) -> None:
    """Raise DataError when all waveforms are silent."""
    if all(is_silent(waveform) for waveform in waveforms):
        raise DataError(
            "all selected sounds are silent",
            got=f"{len(names)} silent seconds, such as {names[0]}",
            expected="audible sound: silence does not test the audio encoder",
        )


def refuse_unreal_frames(pairs: Pairs, roughness: Sequence[float]) -> None:
    """Raise DataError for frames that are not real images: constant, all identical, or noise.

    roughness: frame_roughness of each frame.
    Ranges measured on such frames are not valid for real images.
    """
    if all(i.std(axis=(0, 1), dtype=np.float32).max() < CONSTANT_BELOW for i in pairs.image):
        raise DataError(
            "all selected frames are of one color",
            got=f"{len(pairs)} frames, such as {pairs.names[0]}",
            expected="real images",
            hint=REAL_DATA,
        )
    if all(np.array_equal(image, pairs.image[0]) for image in pairs.image):
        raise DataError(
            "all selected frames are identical",
            got=f"{pairs.names[0]} and {len(pairs) - 1} others",
            expected="different images",
            hint=REAL_DATA,
        )
    noisy = [name for name, r in zip(pairs.names, roughness, strict=True) if r > NOISE_ABOVE]
    if len(noisy) > len(pairs) / 2:
        raise DataError(
            "frames are random noise",
            got=f"{len(noisy)} of {len(pairs)} frames, such as {noisy[0]}",
            expected="real images: ranges of noise do not fit them",
            hint=REAL_DATA,
        )


def frame_roughness(frame: Frame) -> float:
    """Return the mean difference of horizontal neighbors divided by the standard deviation.

    frame: uint8 (H,W,3).
    The result is 0 for a constant frame, 1.13 (normal) to 1.15 (uniform) for independent pixels,
    and 0.05 to 0.5 for photographs.
    """
    deviation = float(frame.std(axis=(0, 1), dtype=np.float32).mean())
    if deviation == 0 or frame.shape[1] < 2:
        return 0.0
    return float(np.abs(np.diff(frame.astype(np.int16), axis=1)).mean()) / deviation
