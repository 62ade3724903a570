"""A bundle as its user meets it: load, run, verify, compare, and what happens when it is damaged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from save_deploy.bundle import Manifest
from save_deploy.data.scenes import Scenes
from save_deploy.errors import BackendError, BundleError, DataError, ParityError
from save_deploy.runtime.compare.speed import time_interleaved
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session import OrtSession
from save_deploy.runtime.verify import verify_bundle
from tests.command import run


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_contents(bundle: Path) -> None:
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert {"manifest.json", "model.onnx", "audio.onnx", "report.json", "report.md"} <= names
    assert "fp32.onnx" not in names, "the comparison graph is not part of the bundle"
    manifest = Manifest.read(bundle)
    assert set(manifest.files) == names - {"manifest.json"}
    assert manifest.precision["precision"] == "fp16"
    json.loads((bundle / "manifest.json").read_text(), parse_constant=pytest.fail)  # strict JSON


def test_mask_of_a_frame(bundle: Path) -> None:
    clip = Scenes(n_clips=1)[0]
    frame, waveform = clip.frames[0], clip.waveform
    with load(bundle) as pipeline:
        mask = pipeline(frame, waveform)
        assert mask.shape == (256, 256) and mask.dtype == np.bool_
        wide = pipeline(np.repeat(frame, 2, axis=1), waveform)
        assert wide.shape == (256, 512)
        short = pipeline(frame, waveform[:4800])  # 0.3 s
        silent = pipeline(frame, np.zeros(16_000, np.float32))
        assert short.shape == silent.shape == (256, 256)


def test_mask_verb(bundle: Path, tmp_path: Path) -> None:
    """Stereo at 44.1 kHz works; short, silent and corrupt input is refused with nothing written."""
    import soundfile
    from PIL import Image

    frame, out = tmp_path / "f.png", tmp_path / "m.png"
    Image.fromarray(Scenes(n_clips=1)[0].frames[0][:, :200]).save(frame)
    stereo = 0.1 * np.random.default_rng(0).normal(size=(44_100, 2))
    soundfile.write(tmp_path / "ok.wav", stereo, 44_100)
    soundfile.write(tmp_path / "short.wav", stereo[: round(0.3 * 44_100)], 44_100)
    soundfile.write(tmp_path / "silent.wav", 0 * stereo, 44_100)
    soundfile.write(tmp_path / "late.wav", np.concatenate([0 * stereo, stereo]), 44_100)
    (tmp_path / "bad.png").write_bytes(frame.read_bytes()[:99])
    for picture, sound, message in [
        (frame, "short.wav", r"too short(.|\n)*0\.300 s(.|\n)*--any-sound"),
        (frame, "silent.wav", r"silent(.|\n)*--any-sound"),
        (frame, "late.wav", r"silent(.|\n)*first second(.|\n)*--any-sound"),
        (tmp_path / "bad.png", "ok.wav", "image cannot be read"),
        (tmp_path / "no.png", "ok.wav", "image not found"),
    ]:
        done = run("mask", bundle, picture, tmp_path / sound, "-o", out)
        assert done.returncode == 1 and re.search(message, done.stderr) and not out.exists()
    for sound in ("ok.wav", "short.wav", "silent.wav", "late.wav"):
        given = [] if sound == "ok.wav" else ["--any-sound"]
        done = run("mask", bundle, frame, tmp_path / sound, "-o", out, "--force", *given)
        assert done.returncode == 0 and "of the picture sounds" in done.stdout
        with Image.open(out) as image:
            assert image.size == (200, 256)


def test_wrong_inputs_are_named(bundle: Path) -> None:
    with load(bundle) as pipeline:
        with pytest.raises(DataError, match="wrong frame"):
            pipeline(np.zeros((8, 8), np.uint8), np.zeros(16_000, np.float32))
        with pytest.raises(DataError, match="wrong sound"):
            pipeline(np.zeros((8, 8, 3), np.uint8), np.zeros((2, 16_000), np.float32))
        with pytest.raises(DataError, match="wrong input image"):
            pipeline.model.infer({
                "image": np.zeros((1, 3, 256, 256), np.uint8),
                "audio_embedding": np.zeros((1, 128), np.float32),
            })  # fmt: skip
        with pytest.raises(DataError, match="input names"):
            pipeline.model.infer({})


def test_verify(bundle: Path) -> None:
    result = verify_bundle(bundle).parity
    assert result.n_frames == 4 and result.mask_agreement >= 0.995


@pytest.mark.parametrize("name", ["model.onnx", "audio.onnx", "golden/mask_logits.npy"])
def test_altered_and_missing_files(copy: Path, name: str) -> None:
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"altered(.|\n)*{name}"):
        load(copy)
    path.unlink()
    with pytest.raises(BundleError, match="incomplete"):
        load(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "a table"),
        ('{"format": "x", "format_version": 1}', "another format"),
        ('{"format": "save-deploy-bundle", "format_version": 1}', "preprocessing"),
    ],
)
def test_bad_manifest(copy: Path, text: str, message: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load(copy)


def test_golden_test_fails_on_other_outputs(copy: Path) -> None:
    """Twin of test_verify: golden logits moved by one pixel, hashes made right again."""
    from save_deploy.bundle import FileRecord, sha256_of

    path = copy / "golden" / "mask_logits.npy"
    np.save(path, np.roll(np.load(path), 3, axis=2))
    manifest = Manifest.read(copy)
    manifest.files["golden/mask_logits.npy"] = FileRecord(sha256_of(path), path.stat().st_size)
    manifest.write(copy)
    with pytest.raises(ParityError, match="golden samples"):
        verify_bundle(copy)


def test_gpu_request_without_gpu_is_an_error(bundle: Path) -> None:
    """ONNX Runtime itself would fall back to the CPU without a word."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    spec = Manifest.read(bundle).audio
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider|fell back") as caught:
        OrtSession(bundle / "audio.onnx", spec, provider="CUDAExecutionProvider")
    assert caught.value.exit_code == 3


def test_unknown_backend(bundle: Path) -> None:
    with pytest.raises(BackendError, match="unknown backend"):
        load(bundle, backend="abacus")


def test_interleaving() -> None:
    """Every call once per round in rotating order; warm-up is not counted."""
    order: list[str] = []
    calls = {name: (lambda n=name: order.append(n)) for name in "abc"}
    result = time_interleaved(calls, rounds=3, warmup=1)
    assert order == list("abc" + "abc" + "bca" + "cab")
    assert all(len(r.samples_ms) == 3 for r in result.values())
