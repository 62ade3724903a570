"""The C++ runtime: built, its own tests run, and its masks compared with Python's.

Skipped, with what to install, where the toolchain or a library is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import numpy_helper
from PIL import Image

from save_deploy.data.audio import read_waveform
from save_deploy.data.scenes import Scenes
from save_deploy.data.transforms import read_frame, resize_frame
from save_deploy.manifest import Manifest, record_files
from save_deploy.runtime.pipeline import load

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "cpp"
BUILD = ROOT / "build" / "cpp"
INSTALL = (
    "apt-get install cmake g++ nlohmann-json3-dev libpng-dev libjpeg-dev libsndfile1-dev, and "
    'pip install "save-deploy[openvino]"'
)


def cmake(*args: str | Path, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", *map(str, args)], capture_output=True, text=True, timeout=timeout, check=False
    )


def openvino_dir() -> str:
    from openvino.utils import get_cmake_path

    return f"-DOpenVINO_DIR={get_cmake_path()}"


@pytest.fixture(scope="module")
def build() -> Path:
    """build/cpp, as `make cpp` makes it."""
    pytest.importorskip("openvino", reason=INSTALL)
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip(INSTALL)
    configured = cmake("-S", SOURCE, "--preset", "ci", openvino_dir())
    if configured.returncode != 0 and "apt-get install" in configured.stderr:
        pytest.skip(f"{' '.join(configured.stderr.split())}")
    assert configured.returncode == 0, configured.stderr
    built = cmake("--build", BUILD, "-j", str(os.cpu_count()))
    assert built.returncode == 0, built.stdout + built.stderr
    return BUILD


def infer(build: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [build / "save-infer", *map(str, args)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_ctest(build: Path, bundle: Path) -> None:
    """All of its own tests, the one that wants a bundle included; 10,000 mutated files among them."""
    done = subprocess.run(
        ["ctest", "--output-on-failure"], cwd=build, capture_output=True, text=True, timeout=300,
        env={**os.environ, "SAVE_TEST_BUNDLE": str(bundle)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout and "Skipped" not in done.stdout


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An odd-sized picture and stereo sound at 44.1 kHz."""
    clip = Scenes(n_clips=3, seed=11)[2]
    frame, sound = tmp_path / "frame.png", tmp_path / "sound.wav"
    Image.fromarray(clip.frames[0]).resize((301, 173)).save(frame)
    at = np.arange(60_000) * 16_000 / 44_100
    mono = np.interp(at, np.arange(clip.waveform.size), clip.waveform)
    soundfile.write(sound, np.stack([mono, 0.5 * mono], axis=1), 44_100)
    return frame, sound


def test_masks_equal_python(
    build: Path, bundle: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    frame, sound = files
    out, tensors = tmp_path / "mask.png", tmp_path / "tensors"
    tensors.mkdir()
    done = infer(build, "run", bundle, frame, sound, "-o", out, "--tensors", tensors)
    assert done.returncode == 0, done.stderr
    got = {path.stem: np.load(path) for path in tensors.glob("*.npy")}
    picture, waveform = read_frame(frame), read_waveform(sound)
    with load(bundle, backend="openvino") as pipeline:
        embedding = pipeline.embed(waveform)
        logits = pipeline.logits(picture, embedding)
        mask = pipeline.mask(picture, embedding)
    assert np.array_equal(got["image"].reshape(256, 256, 3), resize_frame(picture, 256))
    assert np.abs(got["audio_embedding"].ravel() - embedding.ravel()).max() <= 1e-4
    assert np.abs(got["mask_logits"].reshape(256, 256) - logits).max() <= 1e-3
    found = np.asarray(Image.open(out)) > 0
    assert found.shape == mask.shape == (173, 301) and mask.any()
    # pixels whose logit is within the tolerance may go either way
    assert (found != mask).sum() <= 2


def test_verify(build: Path, bundle: Path) -> None:
    done = infer(build, "verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "8 conformance cases, images equal" in done.stdout


def rewritten(bundle: Path, copy: Path) -> Path:
    """The copy's manifest with sizes and hashes as its files are now: as an exporter would write."""
    manifest = Manifest.read(bundle)
    replace(manifest, files=record_files(copy)).write(copy)
    return copy


@pytest.mark.parametrize("broken", ["weights", "resize", "sound"])
def test_verify_fails_when_it_should(
    build: Path, bundle: Path, tmp_path: Path, broken: str
) -> None:
    """Twins: another weight, another picture, another sound, each with right hashes: exit 2."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    if broken == "weights":
        model = onnx.load(copy / "model.onnx")
        largest = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        values = numpy_helper.to_array(largest) * np.float16(3)
        largest.CopyFrom(numpy_helper.from_array(values, largest.name))
        onnx.save(model, copy / "model.onnx")
        expected = "golden samples are over the parity budget"
    elif broken == "resize":
        path = copy / "conformance" / "rate_48000_stereo.png"
        pixels = np.array(Image.open(path).convert("RGB"))
        pixels[100, 100] ^= 255
        Image.fromarray(pixels).save(path)
        expected = "image tensor differs"
    else:
        path = copy / "conformance" / "rate_44100.wav"
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples * 1.01, rate)
        expected = "waveform differs"
    done = infer(build, "verify", rewritten(bundle, copy))
    assert done.returncode == 2 and expected in done.stderr


def test_exit_codes(
    build: Path, bundle: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:  # fmt: skip
    """Usage 1, damage 1, a backend that is not there 3; what | got | expected, and no file made."""
    assert infer(build, "polish", bundle).returncode == 1
    gpu = infer(build, "verify", bundle, "--backend", "tensorrt")
    assert gpu.returncode == 3 and "not compiled in" in gpu.stderr
    out = tmp_path / "mask.png"
    done = infer(build, "run", bundle, files[1], files[0], "-o", out)  # the wrong way round
    assert done.returncode == 1 and "got" in done.stderr and not out.exists()
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0")
    altered = infer(build, "run", copy, *files, "-o", out)
    assert altered.returncode == 1 and "altered" in altered.stderr and not out.exists()


def test_bench_is_json(build: Path, bundle: Path) -> None:
    done = infer(build, "bench", bundle, "--rounds", "4")
    values = json.loads(done.stdout)
    assert len(values["model_ms"]) == len(values["audio_ms"]) == 4 and min(values["model_ms"]) > 0


@pytest.mark.slow
def test_installed_for_others(build: Path, bundle: Path, tmp_path: Path) -> None:
    """find_package(save_runtime) from somebody else's CMake project, without our source tree."""
    assert cmake("--install", build, "--prefix", tmp_path / "prefix").returncode == 0
    consumer = Path(shutil.copytree(SOURCE / "tests" / "consumer", tmp_path / "consumer"))
    configured = cmake(
        "-S", consumer, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"
    )
    assert configured.returncode == 0, configured.stderr
    built = cmake("--build", tmp_path / "b")
    assert built.returncode == 0, built.stdout + built.stderr
    done = subprocess.run(
        [tmp_path / "b" / "consumer", bundle], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3072 pixels on openvino\n"


@pytest.mark.slow
def test_sanitized(build: Path, bundle: Path) -> None:
    """The same tests under AddressSanitizer and UBSan."""
    configured = cmake("-S", SOURCE, "--preset", "sanitize", openvino_dir())
    assert configured.returncode == 0, configured.stderr
    folder = ROOT / "build" / "cpp-sanitize"
    built = cmake("--build", folder, "-j", str(os.cpu_count()))
    assert built.returncode == 0, built.stdout + built.stderr
    done = subprocess.run(
        ["ctest", "--output-on-failure"], cwd=folder, capture_output=True, text=True, timeout=600,
        env={**os.environ, "SAVE_TEST_BUNDLE": str(bundle)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout and "Skipped" not in done.stdout
