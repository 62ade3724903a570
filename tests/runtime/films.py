"""Small videos whose every mask is known: a bright square that moves, a tone in some seconds."""

from __future__ import annotations

import struct
from collections import deque
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
from PIL import Image

from save_deploy.runtime.video.options import RunOptions
from save_deploy.runtime.video.run import RunResult, VideoRun

RATE = 44_100
SIDE = 16  # of the square
BRIGHT, DARK = 220, 30


SIZE = (96, 64)


def square(k: int, size: tuple[int, int]) -> np.ndarray:
    """Where the square of frame k is, bool (H,W), size (W,H): four pixels further each time."""
    mask = np.zeros(size[::-1], bool)
    left = 4 * k % (size[0] - SIDE)
    mask[8 : 8 + SIDE, left : left + SIDE] = True
    return mask


def tone(seconds: float, loud: tuple[int, ...], rate: int = RATE, level: float = 0.5) -> np.ndarray:
    """float32 (1,n): 440 Hz in the seconds named, silence in the others."""
    t = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * 440 * t) * np.isin(t.astype(int), loud))[None].astype("f4")


def write_film(
    path: Path,
    *,
    seconds: float = 3,
    fps: int = 10,
    size: tuple[int, int] = (96, 64),
    sound: np.ndarray | None = None,
    codec: str = "libx264",
    pixels: str = "",
    sound_codec: str = "aac",
    rate: int = RATE,
    times_ms: list[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """times_ms: when each frame is shown, instead of fps. sound float32 (channels,n)."""
    with av.open(str(path), "w", options=options or {}) as container:
        video: Any = container.add_stream(codec, rate=fps)
        video.width, video.height = size
        video.pix_fmt = pixels or ("yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
        base = Fraction(1, 1000) if times_ms else Fraction(1, fps)
        video.codec_context.time_base = base
        video.codec_context.gop_size = 10
        audio: Any = None
        if sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream(sound_codec, rate=rate, layout=layout)
        every = times_ms or range(round(seconds * fps))
        due = 0
        for k, pts in enumerate(every):
            picture = np.full((*size[::-1], 3), DARK, np.uint8)
            picture[square(k, size)] = BRIGHT
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = pts, base
            container.mux(video.encode(frame))
            until = round((pts * base + Fraction(1, 10)) * rate)  # interleaved, as recorders do
            if sound is not None and min(until, sound.shape[1]) - due >= 1024:
                until = min(until, sound.shape[1])
                container.mux(audio.encode(_piece(sound[:, due:until], due, layout, rate)))
                due = until
        container.mux(video.encode(None))
        if sound is not None:
            if due < sound.shape[1]:
                container.mux(audio.encode(_piece(sound[:, due:], due, layout, rate)))
            container.mux(audio.encode(None))
    return path


def _piece(sound: np.ndarray, at: int, layout: str, rate: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), "fltp", layout)
    frame.rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
    return frame


def with_matrix(source: Path, target: Path, a: int, b: int, c: int, d: int) -> Path:
    """A copy of an mp4 whose video track has the display matrix [[a,b],[c,d]]."""
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # after version 0's times, ids and volume
    assert struct.unpack_from(">9i", content, at)[0] == 1 << 16
    values = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    struct.pack_into(">9i", content, at, *values)
    target.write_bytes(content)
    return target


class Ears:
    """In place of a pipeline: masks what is bright, when something is heard."""

    precision, backend, batch, batches, threshold = "none", "none", 1, (1,), 0.5
    config = SimpleNamespace(res=256)  # above the films' sizes, so that edges stay where they are

    def __init__(self) -> None:
        self.heard: deque[np.ndarray] = deque(maxlen=10)  # as a pipeline, it keeps little

    def embed(self, waveform: np.ndarray) -> np.ndarray:
        self.heard.append(waveform)
        loud = np.sqrt(np.mean(np.square(waveform))) if waveform.size else 0.0
        return np.full((1, 128), loud, np.float32)

    def run(self, images: np.ndarray, heard: np.ndarray) -> np.ndarray:
        bright = images.mean(axis=-1, dtype=np.float32) - 125
        return np.where(heard[:, :1, None] > 0.02, bright, -np.abs(bright) - 1)

    def mask(self, frame: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        return (frame.mean(axis=-1) > 125) & bool(embedding[0, 0] > 0.02)

    def close(self) -> None: ...


def frames_of(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """Every frame of a video, fully decoded, and the times they are shown at."""
    with av.open(str(path)) as container:
        found = [
            (f.to_ndarray(format="rgb24"), f.pts * f.time_base) for f in container.decode(video=0)
        ]
    return [f for f, _ in found], [t for _, t in found]


def sound_of(path: Path) -> list[bytes]:
    """The packets of the sound track as stored."""
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.size]


def run(video: Path, pipeline: Any = None, **options: Any) -> RunResult:
    return VideoRun(RunOptions(video=video, **options))(pipeline or Ears())


def masks_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) > 0 for path in sorted(folder.iterdir())]


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
