"""A few real pairs of frame and sound, spread over a dataset, with a hash that names them."""

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

CONSTANT_BELOW = 1.0  # gray levels of standard deviation
NOISE_ABOVE = 0.8 * math.sqrt(12) / 3  # uniform noise less 20 %
REAL_DATA = "--calib-data scenes, a dataset folder or a folder of videos"


@dataclass(frozen=True)
class Pairs:
    """N pairs at network size: image uint8 (N,S,S,3), waveform float32 (N,16000), truth bool
    (N,S,S), and where each came from."""

    image: NDArray[np.uint8]
    waveform: NDArray[np.float32]
    truth: NDArray[np.bool_]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sha256(self) -> str:
        """Hash of the pixels and samples, not of the files they came from."""
        digest = hashlib.sha256(self.image.tobytes())
        digest.update(self.waveform.tobytes())
        return digest.hexdigest()

    @property
    def pair_sha256(self) -> tuple[str, ...]:
        """pair_digest of every pair: the same pair from another place has the same."""
        return tuple(map(pair_digest, self.image, self.waveform))


def pair_digest(image: NDArray[np.uint8], waveform: NDArray[np.float32]) -> str:
    """First 16 hex digits of the hash of one resized image (S,S,3) and its second (16000,)."""
    return hashlib.sha256(image.tobytes() + waveform.tobytes()).hexdigest()[:16]


def collect_pairs(clips: ClipDataset, n: int, *, res: int) -> Pairs:
    """n pairs from clips at equal distances (fewer when the dataset is smaller), a different frame of
    each clip in turn. Raises DataError when all of them are silent."""
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
    """(clip, frame) to look at, at most `limit`: categories in turn, where they are known."""
    if not isinstance(clips, FrameDataset):
        return [(i, i) for i in range(min(limit, len(clips)))]  # generated: independent of order
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
    """n (clip, frame) of one category: clips at equal distances, another frame of each in turn; a
    clip comes again, with a frame not yet taken, only after all others. Ordered so that the first
    few of a turn are spread too: halves before quarters, quarters before eighths."""
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
    """One frame with its second; of a clip whose number of frames was not known, frame modulo it."""
    if isinstance(clips, FrameDataset):
        return clips.sample(index, frame)
    clip = clips[index]
    return next(islice(clip.samples(), frame % len(clip.frames), None))


def refuse_silence(waveforms: Sequence[Waveform], names: Sequence[str]) -> None:
    """Raises DataError when there is nothing to hear in any of them."""
    if all(is_silent(waveform) for waveform in waveforms):
        raise DataError(
            "every chosen sound is silent",
            got=f"{len(names)} silent seconds, such as {names[0]}",
            expected="sounds to hear: silence would prove nothing about the audio side",
        )


def refuse_unreal_frames(pairs: Pairs, roughness: Sequence[float]) -> None:
    """Raises DataError for frames that are no pictures: of one color, all the same, or noise.

    roughness: frame_roughness of each frame. Ranges measured on such frames do not hold for
    pictures.
    """
    if all(i.std(axis=(0, 1), dtype=np.float32).max() < CONSTANT_BELOW for i in pairs.image):
        raise DataError(
            "every chosen frame is of one color",
            got=f"{len(pairs)} frames, such as {pairs.names[0]}",
            expected="pictures",
            hint=REAL_DATA,
        )
    if all(np.array_equal(image, pairs.image[0]) for image in pairs.image):
        raise DataError(
            "all chosen frames are the same",
            got=f"{pairs.names[0]} and {len(pairs) - 1} like it",
            expected="different pictures",
            hint=REAL_DATA,
        )
    noisy = [name for name, r in zip(pairs.names, roughness, strict=True) if r > NOISE_ABOVE]
    if len(noisy) > len(pairs) / 2:
        raise DataError(
            "frames are random noise",
            got=f"{len(noisy)} of {len(pairs)} frames, such as {noisy[0]}",
            expected="pictures: ranges of noise are not ranges of pictures",
            hint=REAL_DATA,
        )


def frame_roughness(frame: Frame) -> float:
    """Mean difference of neighbors in a row per standard deviation; uint8 (H,W,3), 0 for one color.

    Independent pixels give 1.13 (normal) to 1.15 (uniform), photographs 0.05 to 0.5.
    """
    deviation = float(frame.std(axis=(0, 1), dtype=np.float32).mean())
    if deviation == 0 or frame.shape[1] < 2:
        return 0.0
    return float(np.abs(np.diff(frame.astype(np.int16), axis=1)).mean()) / deviation
