"""The C++ runtime: its own tests, its results against Python's, and what its program answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import numpy_helper
from PIL import Image

import save_deploy
from save_deploy.bundle import MANIFEST, Manifest, record_files
from save_deploy.config import take_switch
from save_deploy.data.audio import read_waveform
from save_deploy.data.scenes import Scenes
from save_deploy.data.transforms import read_frame, resize_frame
from save_deploy.errors import SaveDeployError
from save_deploy.fields import Fields
from save_deploy.runtime.hub import publish
from save_deploy.runtime.hub_options import PublishOptions
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session.base import default_threads
from save_deploy.runtime.session.open import preferred_backend
from tests import command as command_line
from tests.runtime.cpp import SOURCE, Library, infer


def ctest(folder: Path, bundle: Path) -> None:
    """All of its own tests, the one that wants a bundle included."""
    done = subprocess.run(
        ["ctest", "--output-on-failure"], cwd=folder, capture_output=True, text=True, timeout=1800,
        env={**os.environ, "SAVE_TEST_BUNDLE": str(bundle)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout and "Skipped" not in done.stdout


@pytest.mark.thorough
@pytest.mark.first
def test_sanitized(sanitized: Path, bundle_fp32: Path) -> None:
    """Its own tests, 1,000 damaged files of each kind among them, under AddressSanitizer and UBSan."""
    ctest(sanitized, bundle_fp32)


@pytest.mark.thorough
@pytest.mark.parametrize("race", [False, True])
def test_threads_without_a_race(thread_sanitized: Path, bundle_fp32: Path, race: bool) -> None:
    """Four threads on a runtime, one on another, under ThreadSanitizer; it finds a planted race."""
    options = f"suppressions={SOURCE}/tests/threads.supp halt_on_error=1 report_mutex_bugs=0"
    environment = {
        "TSAN_OPTIONS": f"{options} ignore_noninstrumented_modules=1",
        "TBB_ENABLE_SANITIZERS": "1",
        **({"SAVE_TEST_RACE": "1"} if race else {"SAVE_TEST_BUNDLE": str(bundle_fp32)}),
    }
    done = subprocess.run(  # at fixed addresses, as the sanitizer wants them
        ["setarch", "-R", thread_sanitized / "tests" / "test_threads"], capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == (66 if race else 0), done.stdout + done.stderr
    assert ("data race" in done.stderr) == race


@pytest.mark.long
def test_many_damaged_files(sanitized: Path) -> None:
    """10,000 of each kind."""
    done = subprocess.run(
        [sanitized / "tests" / "mutate", "10000", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_version(build: Path) -> None:
    """One version everywhere: CMake's project, the library, the Python package."""
    text = (SOURCE / "CMakeLists.txt").read_text()
    found = re.search(r"project\(save_runtime VERSION (\S+)", text)
    assert found and found[1] == Library(build).version == save_deploy.__version__


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


@pytest.mark.parametrize(
    "kind",
    [
        "bundle",
        pytest.param("bundle_fp32", marks=pytest.mark.slow),
        pytest.param("bundle_int8", marks=pytest.mark.slow),
    ],
)
def test_masks_equal_python(
    build: Path,
    kind: str,
    files: tuple[Path, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """FP16, FP32 and INT8: golden samples and conformance pack hold, tensors and masks are equal."""
    folder: Path = request.getfixturevalue(kind)
    verified = infer(build, "verify", folder)
    assert verified.returncode == 0, verified.stderr
    frame, sound = files
    out, tensors = tmp_path / "mask.png", tmp_path / "tensors"
    done = infer(build, "run", folder, frame, sound, "-o", out, "--tensors", tensors)
    assert done.returncode == 0, done.stderr
    got = {path.stem: np.load(path) for path in tensors.glob("*.npy")}
    picture, waveform = read_frame(frame), read_waveform(sound)
    with load(folder, backend=auto_of(build, folder)) as pipeline:
        res = pipeline.config.res
        embedding = pipeline.embed(waveform)
        # of the same embedding: in INT8 a difference of 1e-7 may round an activation to the next step
        heard = got["audio_embedding"].reshape(1, -1)
        logits = pipeline.logits(picture, heard)
        mask = pipeline.mask(picture, heard)
    assert np.array_equal(got["image"].reshape(res, res, 3), resize_frame(picture, res))
    assert np.abs(heard - embedding).max() <= 1e-4
    assert np.abs(got["mask_logits"].reshape(res, res) - logits).max() <= 1e-3
    found = np.asarray(Image.open(out)) > 0
    assert found.shape == mask.shape == (173, 301) and mask.any()
    # pixels whose logit is within the tolerance may go either way
    assert (found != mask).sum() <= 2


def test_verify(build: Path, bundle: Path) -> None:
    done = infer(build, "verify", bundle)
    assert done.returncode == 0, done.stderr
    cases = len(Manifest.read(bundle).conformance["cases"])
    assert f"{cases} conformance cases, images equal" in done.stdout


def test_verify_a_folder_for_the_hub(build: Path, bundle_fp32: Path, tmp_path: Path) -> None:
    publish(PublishOptions(bundle=bundle_fp32, out=tmp_path / "hub"))
    done = infer(build, "verify", tmp_path / "hub")
    assert done.returncode == 0, done.stderr


def rewritten(bundle: Path, copy: Path) -> Path:
    """The copy's manifest with sizes and hashes as its files are now: as an exporter would write."""
    manifest = Manifest.read(bundle)
    replace(manifest, files=record_files(copy)).write(copy)
    return copy


def with_other_weights(copy: Path) -> None:
    """The patch embedding's sign turned: no normalization after it can hide that."""
    model = onnx.load(copy / "model.onnx")
    (weight,) = [t for t in model.graph.initializer if t.name.startswith("patch_embed.weight")]
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, copy / "model.onnx")


def with_another_picture(copy: Path) -> None:
    path = copy / "conformance" / "rate_48000_stereo.png"
    pixels = np.array(Image.open(path).convert("RGB"))
    pixels[100, 100] ^= 255
    Image.fromarray(pixels).save(path)


def with_another_sound(copy: Path) -> None:
    path = copy / "conformance" / "rate_44100.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples * 1.01, rate)


def with_nan(name: str, place: int) -> Any:
    """One value of a stored result is no number: nothing agrees with it."""

    def change(copy: Path) -> None:
        values = np.load(copy / name)
        values.reshape(-1)[place] = np.nan
        np.save(copy / name, values)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda copy: None, ""),
        (with_other_weights, "golden samples are over the parity budget"),
        (with_another_picture, "image tensor differs"),
        (with_another_sound, "waveform differs"),
        (with_nan("golden/mask_logits.npy", 5), "NaN or infinite"),
        (with_nan("golden/audio_embedding.npy", 5), "audio embedding differs"),
        (with_nan("conformance/mask_logits.npy", 5), "logits differs"),
        (with_nan("conformance/waveform.npy", 5), "waveform differs"),
    ],
    ids=["nothing", "weights", "picture", "sound", "logits", "embedding", "pack", "waveform"],
)
def test_verify_fails_when_it_should(
    build: Path, bundle: Path, tmp_path: Path, change: Any, expected: str
) -> None:
    """Twins with right hashes, one thing changed: exit 2 for just that."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    change(copy)
    done = infer(build, "verify", rewritten(bundle, copy))
    assert done.returncode == (2 if expected else 0), done.stderr
    assert expected in done.stderr


def test_exit_codes(
    build: Path, bundle: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:  # fmt: skip
    """Usage 1, damage 1, a backend that is not there 3; what | got | expected, and no file made."""
    assert infer(build, "polish", bundle).returncode == 1
    gpu = infer(build, "verify", bundle, "--backend", "tensorrt")
    assert gpu.returncode == 3 and "not compiled in" in gpu.stderr
    python_only = infer(build, "verify", bundle, "--backend", "onnxruntime-tensorrt")
    assert python_only.returncode == 3 and "not compiled in" in python_only.stderr
    mistyped = infer(build, "verify", bundle, "--backend", "openvin")  # exit 1, as in Python
    assert mistyped.returncode == 1 and "unknown backend" in mistyped.stderr
    out = tmp_path / "mask.png"
    done = infer(build, "run", bundle, files[1], files[0], "-o", out)  # the wrong way round
    assert done.returncode == 1 and "got" in done.stderr and not out.exists()
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0")
    altered = infer(build, "run", copy, *files, "-o", out)
    assert altered.returncode == 1 and "altered" in altered.stderr and not out.exists()


def test_hostile_manifests(build: Path, bundle: Path, tmp_path: Path) -> None:
    """Closed brackets a million deep, and golden arrays without a hash: exit 1, no crash."""
    values = json.loads((bundle / MANIFEST).read_text())
    deep = json.dumps({**values, "preprocessing": 0}).replace(
        '"preprocessing": 0', f'"preprocessing": {"[" * 10**6}{"]" * 10**6}'
    )
    unlisted = {n: record for n, record in values["files"].items() if n != "golden/image.npy"}
    as_float = {**values, "format_version": 1.0}
    turned = {**values, "files": {**values["files"], "a\u202eb": values["files"]["model.onnx"]}}
    texts = {
        deep: "nested deeper",
        json.dumps(as_float): "bundle of another format",
        json.dumps(values) + "\0": "a NUL byte",
        json.dumps(turned): r"file name a\u202eb",
        json.dumps({**values, "files": unlisted}): "golden/image.npy without size and sha256",
    }
    for text, expected in texts.items():
        (tmp_path / MANIFEST).write_text(text)
        done = infer(build, "verify", tmp_path)
        assert done.returncode == 1 and expected in done.stderr


WRONG: tuple[Any, ...] = (None, True, -1, 70_000, 1.5, "x", [5], ["x"])


def test_values_of_the_configuration(build: Path, bundle: Path, tmp_path: Path) -> None:
    """C++, which builds no model of them, refuses the types and ranges that Python refuses."""
    values = json.loads((bundle / MANIFEST).read_text())
    config, accepted = values["config"], 0
    (tmp_path / "here.json").write_text('{"os": "", "problem": "", "libraries": {}, "gpus": []}')
    command = [build / "tests" / "refusals", tmp_path, tmp_path / "here.json"]
    for key, right in config.items():
        named = isinstance(right, str) or key == "image_adapter_skip"  # Python knows the names
        wrong = [value for value in WRONG if not (named and isinstance(value, str))]
        for value in (right, *wrong):
            values["config"] = {**config, key: value}
            (tmp_path / MANIFEST).write_text(json.dumps(values))
            fields = Fields(values["config"], "config")
            try:
                take_switch(fields, key)
                expected = 0
            except SaveDeployError:
                expected = 1
            if key == "res" and value != right:
                expected = 1  # the graphs are of another side
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == expected, f"{key} = {value!r}: {done.stderr}"
            accepted += not expected
    assert len(config) <= accepted < 0.3 * len(WRONG) * len(config)


@pytest.mark.parametrize("end", ["/", "//", "/.", "/./"])
def test_a_name_with_a_slash_at_its_end(
    build: Path, bundle: Path, files: tuple[Path, Path], tmp_path: Path, end: str
) -> None:
    """mask.png/ is mask.png, in C++ as in Python, and never the picture that is read."""
    done = infer(build, "run", bundle, *files, "-o", f"{tmp_path}/there.png{end}")
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path}/there.png: ")
    here = command_line.run("mask", bundle, *files, "-o", f"{tmp_path}/here.png{end}")
    assert here.returncode == 0 and here.stdout.startswith(f"{tmp_path}/here.png: ")
    assert {"here.png", "there.png"} < {p.name for p in tmp_path.iterdir()}
    before = files[0].read_bytes()
    for done in (
        infer(build, "run", bundle, *files, "-o", f"{files[0]}{end}"),
        command_line.run("mask", bundle, *files, "-o", f"{files[0]}{end}", "--force"),
    ):
        assert done.returncode == 1 and "output and input are the same file" in done.stderr
    assert files[0].read_bytes() == before


def test_bench_is_json(build: Path, bundle: Path, tmp_path: Path) -> None:
    done = infer(build, "bench", bundle, "--rounds", "4")
    values = json.loads(done.stdout)
    assert len(values["model_ms"]) == len(values["audio_ms"]) == 4 and min(values["model_ms"]) > 0
    (tmp_path / "golden").symlink_to(bundle / "golden")
    for graph in bundle.glob("*.onnx*"):
        (tmp_path / graph.name).symlink_to(graph)
    text = json.loads((bundle / MANIFEST).read_text())
    text["precision"]["precision"] = 'fp16 "\\'
    text["conformance"] = {}
    text["files"] = {
        n: record for n, record in text["files"].items() if n.split("/")[0] in os.listdir(tmp_path)
    }
    (tmp_path / MANIFEST).write_text(json.dumps(text))
    done = infer(build, "bench", tmp_path, "--rounds", "1")
    assert json.loads(done.stdout)["precision"] == 'fp16 "\\', done.stderr


def test_a_full_disk_shows(build: Path, bundle: Path) -> None:
    with Path("/dev/full").open("w") as full:
        for words in (["--version"], ["bench", bundle, "--rounds", "1"]):
            done = infer(build, *words, stdout=full)
            assert done.returncode == 1 and "output cannot be written" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_outputs_of_every_kind(build: Path, bundle_fp32: Path, tmp_path: Path) -> None:
    """Links are followed, devices written through, inputs are not outputs, text is escaped."""
    frame, sound = (bundle_fp32 / "conformance" / f"normal.{kind}" for kind in ("png", "wav"))
    mine, real, link = tmp_path / "mine.png", tmp_path / "real.png", tmp_path / "link.png"
    shutil.copy(frame, mine)
    link.symlink_to(real)
    for out in (link, Path("/dev/null")):
        assert infer(build, "run", bundle_fp32, mine, sound, "-o", out).returncode == 0
    assert link.is_symlink() and real.read_bytes().startswith(b"\x89PNG")
    assert Path("/dev/null").is_char_device()
    full = infer(build, "run", bundle_fp32, mine, sound, "-o", "/dev/full")
    assert full.returncode == 1 and "No space left" in full.stderr
    same = infer(build, "run", bundle_fp32, mine, sound, "-o", mine)
    assert same.returncode == 1 and "the same file" in same.stderr
    logits = infer(build, "run", bundle_fp32, mine, sound, "-o", "/dev/null", "--logits", mine)
    assert logits.returncode == 1 and "the same file" in logits.stderr
    assert mine.read_bytes() == frame.read_bytes()
    jpeg = infer(build, "run", bundle_fp32, mine, sound, "-o", tmp_path / "m.jpg")
    assert jpeg.returncode == 1 and "a .png path" in jpeg.stderr
    own = shutil.copytree(bundle_fp32, tmp_path / "own")
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    for words in (
        ["-o", own / "conformance/normal.png"],
        ["-o", "/dev/null", "--tensors", own / "golden"],
    ):
        done = infer(build, "run", own, mine, sound, *words)
        assert done.returncode == 1 and "a file of the bundle" in done.stderr
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before
    shutil.rmtree(own)
    escapes = infer(build, "verify", tmp_path / "\x1b]0;title\x07")
    assert escapes.returncode == 1 and r"\x1b]0;title\x07" in escapes.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.png", "mine.png", "real.png"]


def auto_of(build: Path, folder: Path) -> str:
    """Python's choice for a bundle, if it is compiled in."""
    compiled = Library(build).backends
    wanted = preferred_backend(Manifest.read(folder).precision["precision"])
    return wanted if wanted in compiled else compiled[0]


@pytest.mark.parametrize("kind", ["bundle", pytest.param("bundle_int8", marks=pytest.mark.slow)])
def test_auto_as_python_chooses(build: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """FP16, and INT8, for which the CPU decides."""
    folder: Path = request.getfixturevalue(kind)
    done = infer(build, "bench", folder, "--rounds", "1", "--no-hashes")
    assert json.loads(done.stdout)["backend"] == auto_of(build, folder)


def test_threads_as_python_counts_them(build: Path, bundle: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        for cpus in (allowed, {min(allowed)}):
            os.sched_setaffinity(0, cpus)
            done = infer(build, "bench", bundle, "--rounds", "1", "--no-hashes")
            assert json.loads(done.stdout)["threads"] == default_threads() <= len(cpus)
    finally:
        os.sched_setaffinity(0, allowed)
