"""Data for calibration tests: trees with pictures in them, and small videos with a moving pattern."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.data import trees

SIZE = (32, 24)


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Smooth and different for every seed: a 3x3 picture enlarged, uint8 (H,W,3)."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write_s4(
    root: Path, categories: dict[str, int], *, test: int = 2, make: object = picture
) -> Path:
    """Single-source/ with `categories` training clips (name of category -> number), whose frames
    are make(number of the clip)."""
    base = root / "Single-source"
    rows: list[list[object]] = [["name", "start", "category", "split"]]
    number = 0
    for split, counts in {"train": categories, "test": {"dog": test}}.items():
        for category, n in counts.items():
            for i in range(n):
                name = f"{category}_{split}_{i}"
                rows.append([name, "3", category, split])
                place = base / "s4_data"
                for k in range(1, 2 if split == "train" else 6):
                    frame = f"{split}/{category}/{name}/{name}_{k}.png"
                    path = place / "visual_frames" / frame
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(make(number)).save(path)  # type: ignore[operator]
                    trees.write_mask(place / "gt_masks" / frame, k, size=SIZE)
                    number += 1
                trees.write_wav(place / "audio_wav" / split / category / f"{name}.wav", 5)
    trees.write_csv(base / "s4_meta_data.csv", rows)
    return base


def write_clip(
    path: Path,
    *,
    seconds: int,
    tone: bool = True,
    level: float = 0.3,
    fps: int = 8,
    gop: int = 12,
) -> Path:
    """Second k shows picture(k), and sounds at 300 + 100 k Hz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size, rate = (64, 48), 16_000
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.bit_rate, video.gop_size = 4_000_000, gop
        if tone:
            audio = container.add_stream("aac", rate=rate, layout="mono")
        for k in range(seconds * fps):
            shown = av.VideoFrame.from_ndarray(picture(k // fps, size), "rgb24")
            container.mux(video.encode(shown))
        container.mux(video.encode(None))
        if tone:
            t = np.arange(seconds * rate) / rate
            hz = 300 + 100 * np.floor(t)
            wave = (level * np.sin(2 * np.pi * hz * t)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
            frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def pitch(second: np.ndarray) -> float:
    """Hz of the strongest tone."""
    return float(np.abs(np.fft.rfft(second * np.hanning(second.size))).argmax()) * (
        16_000 / second.size
    )
