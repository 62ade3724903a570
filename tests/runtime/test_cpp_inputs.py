"""What the C++ runtime makes of pictures and sounds, against the libraries Python reads them with."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from save_deploy.data.audio import read_waveform, second
from save_deploy.data.scenes import Scenes
from save_deploy.data.transforms import read_frame, resize_frame
from save_deploy.export.golden import CASES, FEW
from save_deploy.runtime.stream import Listener
from tests.runtime.cpp import Library, infer

RES = 256  # of the bundle


@pytest.fixture(scope="module")
def library(build: Path) -> Library:
    return Library(build)


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("res", [224, 256, 1024])
@pytest.mark.parametrize(
    ("width", "height"), [(360, 640), (640, 360), (37, 211), (300, 2000), (1, 9), (257, 255)]
)
def test_pixels_are_pillows(library: Library, width: int, height: int, res: int) -> None:
    """Bit for bit, whichever side Pillow begins with."""
    frame = noise(width, height)
    assert np.array_equal(library.image(frame, res), resize_frame(frame, res))


@pytest.mark.parametrize("res", [224, 256, 1024])
def test_the_pack_has_a_portrait_that_tells(res: int) -> None:
    """Its pixels differ where the width is resized first, as Pillow before 13 did."""
    (case,) = [case for case in CASES if case.of_res]
    width, height = case.size_at(res)
    image = Image.fromarray(noise(width, height))
    bilinear = Image.Resampling.BILINEAR
    other = image.resize((res, height), bilinear).resize((res, res), bilinear)
    assert not np.array_equal(np.asarray(image.resize((res, res), bilinear)), np.asarray(other))


def test_large_models_keep_what_matters_most() -> None:
    assert {"silence", "portrait"} < set(FEW) < {case.name for case in CASES}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_16(channels: int, color: int) -> bytes:
    """RES x RES of 16 bits, which Pillow reads but does not write."""
    values = np.random.default_rng(3).integers(0, 65536, (RES, RES, channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", RES, RES, 16, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def saved(mode: str, form: str, **options: Any) -> bytes:
    """A drawn scene in one of Pillow's modes."""
    image = Image.fromarray(Scenes(n_clips=3, seed=5)[1].frames[0]).resize((RES, RES))
    file = BytesIO()
    (image.quantize(64) if mode == "P" else image.convert(mode)).save(file, form, **options)
    return file.getvalue()


PICTURES: dict[str, tuple[bytes, int]] = {  # name -> file, largest difference of a pixel
    "16-bit gray with alpha": (png_16(2, 4), 0),
    "16-bit RGB": (png_16(3, 2), 0),
    "16-bit RGBA": (png_16(4, 6), 0),
    "bits": (saved("1", "PNG"), 0),
    "gray with alpha": (saved("LA", "PNG"), 0),
    "palette": (saved("P", "PNG"), 0),
    # two decoders of one standard: their inverse transforms and upsampling may round apart
    "JPEG": (saved("RGB", "JPEG", quality=90), 2),
    "JPEG 4:4:4": (saved("RGB", "JPEG", quality=90, subsampling=0), 2),
    "progressive JPEG": (saved("RGB", "JPEG", quality=80, progressive=True), 2),
    "gray JPEG": (saved("L", "JPEG", quality=80), 2),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_read_as_pillow_does(
    build: Path, bundle: Path, tmp_path: Path, name: str
) -> None:
    content, tolerance = PICTURES[name]
    path, sound = tmp_path / "frame", tmp_path / "sound.wav"
    path.write_bytes(content)
    soundfile.write(sound, 0.1 * np.sin(np.arange(16_000)), 16_000)
    done = infer(
        build, "run", bundle, path, sound, "-o", tmp_path / "m.png", "--tensors", tmp_path / "t"
    )
    assert done.returncode == 0, done.stderr
    seen = np.load(tmp_path / "t" / "image.npy").reshape(RES, RES, 3).astype(int)
    assert np.abs(seen - read_frame(path)).max() <= tolerance


def refused(build: Path, bundle: Path, tmp_path: Path, content: bytes) -> str:
    path, sound = tmp_path / "frame", tmp_path / "sound.wav"
    path.write_bytes(content)
    soundfile.write(sound, 0.1 * np.sin(np.arange(16_000)), 16_000)
    done = infer(build, "run", bundle, path, sound, "-o", tmp_path / "m.png")
    assert done.returncode == 1 and not (tmp_path / "m.png").exists()
    return done.stderr


def test_16_bit_gray_is_refused(build: Path, bundle: Path, tmp_path: Path) -> None:
    """Pillow clips it at 255, which is no picture of it."""
    assert "16-bit gray" in refused(build, bundle, tmp_path, png_16(1, 0))


def test_a_header_gets_no_memory_its_file_cannot_fill(
    build: Path, bundle: Path, tmp_path: Path
) -> None:
    """A small progressive JPEG that claims 13000 x 13000 pixels: 1 GB of coefficients."""
    content = bytearray(saved("RGB", "JPEG", progressive=True))
    at = content.index(b"\xff\xc2") + 5
    content[at : at + 4] = struct.pack(">HH", 13_000, 13_000)
    assert "acking" in refused(build, bundle, tmp_path, bytes(content))  # store: there is none


# --- sounds ---


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    """(n,2): 4.3 s at 44.1 kHz, no two seconds alike."""
    at = np.arange(int(4.3 * 44_100)) / 44_100
    mono = 0.4 * np.sin(2 * np.pi * (200 + 150 * at) * at) + 0.05 * np.sin(7000 * at)
    return np.ascontiguousarray(np.stack([mono, 0.5 * mono[::-1]], axis=1), np.float32)


@pytest.fixture(scope="module")
def waveform(samples: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same as Python reads it from a file: 16 kHz mono."""
    path = tmp_path_factory.mktemp("sound") / "s.wav"
    soundfile.write(path, samples, 44_100, subtype="FLOAT")
    return read_waveform(path)


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 9])
def test_seconds_of_avsbench(
    library: Library, samples: NDArray[np.float32], waveform: Any, index: int
) -> None:
    """0.96 s apart, and the last full one after the end."""
    found = library.second(samples, 44_100, index)
    assert np.abs(found - second(waveform, index)).max() <= 1e-5


class Ear:
    """Stands for a pipeline: keeps what it is given to hear, as `embed` windows it."""

    def __init__(self) -> None:
        self.heard: list[NDArray[np.float32]] = []

    def embed(self, waveform: Any) -> Any:
        self.heard.append(second(waveform))

    def mask(self, frame: Any, embedding: Any) -> Any:
        return frame


def test_seconds_of_a_video(library: Library, samples: NDArray[np.float32], waveform: Any) -> None:
    """A frame at time t hears the second from floor(t) on, silent after the end of the sound."""
    ear = Ear()
    listener = Listener(ear, waveform)  # type: ignore[arg-type]
    for k in range(6):
        listener(noise(4, 4), k + 0.5)
        found = library.second_at(samples, 44_100, float(k))
        assert np.abs(found - ear.heard[k]).max() <= 1e-5
    assert not ear.heard[5].any() and ear.heard[4][:4000].any() and not ear.heard[4][4900:].any()
    # a section that begins anywhere
    found = library.second_at(samples, 44_100, 1.3)
    assert np.abs(found - waveform[20_800:36_800]).max() <= 1e-5


def test_a_long_sound_costs_a_second_at_a_time(library: Library) -> None:
    """Twenty minutes at 48 kHz: the last second takes no longer than the first."""
    import time

    long = np.zeros((20 * 60 * 48_000, 1), np.float32)

    def cost(start_s: float) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            library.second_at(long, 48_000, start_s)
            times.append(time.perf_counter() - began)
        return min(times)

    assert cost(1190.0) < 3 * cost(0.0) + 0.002
