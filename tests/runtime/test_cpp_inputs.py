"""What the C++ runtime makes of pictures and sounds, against the libraries Python reads them with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from save_deploy.data.audio import read_waveform, second
from save_deploy.data.downmix import to_mono
from save_deploy.data.transforms import resize_frame
from save_deploy.export.golden import CASES, FEW
from save_deploy.runtime.pipeline import Listener, load
from tests import command
from tests.data.picture_files import READ, REFUSED
from tests.data.test_audio import with_length
from tests.runtime.cpp import Library, infer


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


def pixels(build: Path, folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """What the readers make of files, in one process: RGB (H,W,3), or the text of the refusal."""
    paths = [folder / str(i) for i in range(len(files))]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    program = [build / "tests" / "pixels", *paths]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = {}
    for name, path, line in zip(files, paths, done.stdout.splitlines(), strict=True):
        values = path.with_name(path.name + ".rgb")
        width, height = map(int, line.split()) if values.exists() else (0, 0)
        found[name] = (
            np.fromfile(values, np.uint8).reshape(height, width, 3) if values.exists() else line
        )
    return found


def test_pictures_are_read_as_pillow_does(build: Path, tmp_path: Path) -> None:
    found = pixels(build, tmp_path, {name: content for name, (content, *_) in READ.items()})
    for name, (_, expected, tolerance) in READ.items():
        assert getattr(found[name], "shape", found[name]) == expected.shape, name
        difference = np.abs(found[name].astype(int) - expected)
        assert difference.max() <= tolerance, name


def test_pictures_that_python_refuses(build: Path, tmp_path: Path) -> None:
    found = pixels(build, tmp_path, {name: content for name, (content, _) in REFUSED.items()})
    for name, (_, word) in REFUSED.items():
        assert isinstance(found[name], str) and word in found[name], (name, found[name])


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


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 9])
def test_channels_are_mixed_as_in_python(library: Library, n: int) -> None:
    """Of the interface, which knows their number only: as in a WAV that does not name them."""
    given = np.random.default_rng(n).uniform(-0.5, 0.5, (20_000, n)).astype(np.float32)
    expected = second(to_mono(given))
    np.testing.assert_allclose(library.second(given, 16_000, 0), expected, atol=2e-7)
    if n in (4, 5, 6, 7, 8):
        assert not np.allclose(expected, second(given.mean(axis=1)), atol=0.01), "the twin: a mean"


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "FLAC", "OGG"])
def test_channels_of_files_are_mixed_as_in_python(
    build: Path, bundle_fp32: Path, tmp_path: Path, kind: str
) -> None:
    """By what the file says of them: the center of 5.1 in Ogg is the second channel."""
    frame, sound = tmp_path / "f.png", tmp_path / "sound"
    Image.fromarray(noise(8, 8)).save(frame)
    samples = np.zeros((16_000, 6))
    samples[:, 1], samples[:, 2], samples[:, 4] = sine(1), sine(1)[::-1], -sine(1)
    soundfile.write(sound, samples, 16_000, format=kind)
    done = infer(
        build, "run", bundle_fp32, frame, sound, "-o", tmp_path / "m.png", "--tensors", tmp_path
    )
    assert done.returncode == 0, done.stderr
    heard = np.load(tmp_path / "waveform.npy").reshape(-1)
    np.testing.assert_allclose(heard, second(read_waveform(sound)), atol=2e-7)


def test_threshold_of_save_infer(build: Path, bundle_fp32: Path, tmp_path: Path) -> None:
    frame, sound = tmp_path / "f.png", tmp_path / "s.wav"
    Image.fromarray(noise(32, 24)).save(frame)
    soundfile.write(sound, sine(1), 16_000, subtype="FLOAT")
    for threshold in (0.3, 0.5, 0.8):
        out = tmp_path / f"{threshold}.png"
        args = ("run", bundle_fp32, frame, sound, "-o", out, "--threshold", threshold)
        done = infer(build, *map(str, args))
        assert done.returncode == 0, done.stderr
        with load(bundle_fp32, backend="openvino", threshold=threshold) as segment:
            found = segment(frame, sound)
        differ = np.asarray(Image.open(out)).astype(bool) != found
        at_size = np.asarray(
            Image.fromarray(found.logits).resize((32, 24), Image.Resampling.BILINEAR)
        )
        near = np.abs(at_size - np.log(threshold / (1 - threshold))) < 1e-3
        assert not (differ & ~near).any()
    for wrong in ("0", "1", "half", "nan"):
        done = infer(build, "run", bundle_fp32, frame, sound, "-o", out, "--threshold", wrong)
        assert done.returncode == 1 and f"--threshold {wrong}" in done.stderr


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


def sine(seconds: float, rate: int = 16_000) -> NDArray[np.float32]:
    return (0.1 * np.sin(np.arange(round(seconds * rate)) / 3)).astype(np.float32)


def late(what: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([np.zeros(16_000, np.float32), what])


REFUSED_SOUNDS: dict[
    str, tuple[NDArray[np.float32], int, str]
] = {  # name -> samples, rate, what is said
    "silent": (np.zeros(32_000, np.float32), 16_000, "sound is silent"),
    "late": (late(sine(1)), 16_000, "sound is silent"),
    "short": (sine(0.5), 16_000, "sound is too short"),
    "late NaN": (np.append(sine(2), np.float32("nan")), 16_000, "sound contains NaN"),
    "1 Hz": (sine(1), 1, "sample rate out of range"),
    "769 kHz": (sine(1), 769_000, "sample rate out of range"),
}


@pytest.mark.parametrize("name", REFUSED_SOUNDS)
def test_sounds_are_refused_as_in_python(build: Path, tmp_path: Path, name: str) -> None:
    """Before a bundle is opened: there is none here."""
    samples, rate, what = REFUSED_SOUNDS[name]
    frame, sound, out = tmp_path / "f.png", tmp_path / "s.wav", tmp_path / "m.png"
    Image.fromarray(noise(8, 8)).save(frame)
    soundfile.write(sound, samples, rate, subtype="FLOAT")
    there = infer(build, "run", tmp_path / "none", frame, sound, "-o", out)
    here = command.run("mask", tmp_path / "none", frame, sound, "-o", out)
    for done in (there, here):
        assert done.returncode == 1 and what in done.stderr, done.stderr
        assert ("--any-sound" in done.stderr) == (name in ("silent", "late", "short"))


@pytest.mark.parametrize("claimed", [0, 2**36 - 1])
def test_flac_of_unknown_length(build: Path, bundle: Path, tmp_path: Path, claimed: int) -> None:
    """As encoders that write to a pipe leave it: heard as Python hears it."""
    frame, sound = tmp_path / "f.png", tmp_path / "s.flac"
    Image.fromarray(noise(8, 8)).save(frame)
    soundfile.write(sound, sine(2), 16_000)
    with_length(sound, claimed)
    done = infer(
        build, "run", bundle, frame, sound, "-o", tmp_path / "m.png", "--tensors", tmp_path / "t"
    )
    assert done.returncode == 0, done.stderr
    heard = np.load(tmp_path / "t" / "waveform.npy").reshape(-1)
    np.testing.assert_array_equal(heard, second(read_waveform(sound)))
