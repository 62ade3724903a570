"""What a repository holds, and what is refused before one is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.bundle import Manifest
from save_deploy.errors import BackendError, BundleError, OutputError, SaveDeployError
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.result import rle_of
from save_deploy.runtime.triton import limits
from save_deploy.runtime.triton.frame import mask_of
from save_deploy.runtime.triton.options import TritonOptions
from save_deploy.runtime.triton.repository import write_repository
from tests.command import run

MODELS = ("save_audio", "save_model", "save", "save_frame", "save_stream", "save_video")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files(bundle_fp32: Path, tmp_path: Path) -> None:
    done = run("triton", bundle_fp32, "-o", tmp_path / "repo", "--cores", "4", "--instances", "2")
    assert done.returncode == 0, done.stderr
    assert f"{', '.join(MODELS)} on onnxruntime, 2 x 2 threads" in done.stdout
    repo = tmp_path / "repo"
    assert {p.name for p in repo.iterdir()} == {
        *MODELS, "client.py", "verify_client.py", "kserve.yaml",
    }  # fmt: skip
    assert sha256(repo / "save_model/1/model.onnx") == sha256(bundle_fp32 / "model.onnx")
    assert sha256(repo / "save_audio/1/model.onnx") == sha256(bundle_fp32 / "audio.onnx")
    golden = read_golden(bundle_fp32, Manifest.read(bundle_fp32))
    warm = np.fromfile(repo / "save_model/warmup/image", np.uint8)
    assert np.array_equal(warm, golden.image[0].ravel())
    config = (repo / "save_model/config.pbtxt").read_text()
    assert "max_batch_size: 0\n" in config
    assert 'name: "image" data_type: TYPE_UINT8 dims: [1, 224, 224, 3]' in config
    assert "instance_group [ { count: 2 kind: KIND_CPU } ]" in config
    assert 'key: "intra_op_thread_count" value { string_value: "2" }' in config
    assert "response_cache" not in config
    assert "response_cache { enable: true }" in (repo / "save_audio/config.pbtxt").read_text()
    film = (repo / "save_video/config.pbtxt").read_text().splitlines()
    optional = [line for line in film if "optional: true" in line]
    assert len(optional) == 1 and optional[0].startswith('input { name: "fps" ')
    for name in MODELS[3:]:
        compile((repo / name / "1/model.py").read_text(), name, "exec")
    for name in ("client.py", "verify_client.py"):
        compile((repo / name).read_text(), name, "exec")


def test_gpus(bundle_fp32: Path, tmp_path: Path) -> None:
    """The model on the GPUs named, all else on the CPU."""
    write_repository(TritonOptions(bundle=bundle_fp32, out=tmp_path / "repo", gpus=(0, 2)))
    kinds = {name: (tmp_path / "repo" / name / "config.pbtxt").read_text() for name in MODELS}
    assert [name for name, text in kinds.items() if "KIND_GPU" in text] == ["save_model"]
    assert "count: 1 kind: KIND_GPU gpus: [0, 2]" in kinds["save_model"]


def test_target_that_exists(bundle_fp32: Path, tmp_path: Path) -> None:
    out = tmp_path / "repo"
    options = TritonOptions(bundle=bundle_fp32, out=out)
    write_repository(options)
    with pytest.raises(OutputError, match="output exists"):
        write_repository(options)
    (out / "save_model/1/model.onnx").unlink()
    write_repository(replace(options, force=True))
    assert (out / "save_model/1/model.onnx").is_file()
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="did not write"):
        write_repository(replace(options, out=other, force=True))
    assert (other / "letter.txt").read_text() == "dear"


def test_altered_bundle(bundle_fp32: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_fp32, bundle)
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="altered"):
        write_repository(TritonOptions(bundle=bundle, out=tmp_path / "repo"))
    assert {p.name for p in tmp_path.iterdir()} == {"bundle"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--engine", "torch"], "unknown engine"),
        (["--gpus", "0,x"], "wrong --gpus"),
        (["--gpus", "1,1"], "wrong --gpus"),
        (["--instances", "3", "--threads", "2", "--cores", "4"], "more threads than cores"),
        (["--engine", "python", "--gpus", "0"], "the python engine runs on the CPU"),
        (["--engine", "openvino", "--gpus", "0"], "OpenVINO backend runs on the CPU"),
        (["--engine", "tensorrt"], "no TensorRT plan in this bundle"),
    ],
)
def test_refused_options(bundle_fp32: Path, tmp_path: Path, options: list[str], text: str) -> None:
    done = run("triton", bundle_fp32, "-o", tmp_path / "repo", *options)
    assert done.returncode == 1 and text in done.stderr
    assert not (tmp_path / "repo").exists()


def manifest_of(bundle: Path, **changes: Any) -> Manifest:
    return replace(Manifest.read(bundle), **changes)


def checked(manifest: Manifest, **options: Any) -> tuple[str, ...]:
    """Notes on it, of a bundle that has this manifest."""
    given = TritonOptions(bundle=Path("bundle"), out=Path("repo"), **options)
    limits.check_bundle(given, manifest)
    return tuple(limits.notes(given, manifest))


def test_int8_without_vnni(bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own ONNX Runtime cannot be told not to saturate; the python engine and GPUs need not."""
    int8 = manifest_of(bundle_fp32, precision={"precision": "int8"})
    monkeypatch.setattr(limits, "has_int8_dot_product", lambda: False)
    with pytest.raises(BackendError, match="INT8 would produce other masks") as caught:
        checked(int8)
    assert "--engine python" in caught.value.hint
    assert checked(int8, engine="python") == ()
    assert checked(int8, gpus=(0,)) == ()
    assert checked(manifest_of(bundle_fp32)) == ()
    small = {"precision": "int8", "quantization": {"largest_weight": 64}}
    assert checked(manifest_of(bundle_fp32, precision=small)) == ()
    with pytest.raises(BackendError, match="INT8 would produce other masks"):
        checked(
            manifest_of(bundle_fp32, precision=small | {"quantization": {"largest_weight": 65}})
        )
    monkeypatch.setattr(limits, "has_int8_dot_product", lambda: True)
    assert "needs a CPU with VNNI" in checked(int8)[0]


def test_openvino_on_a_cpu_with_bf16(bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(bundle_fp32)
    monkeypatch.setattr(limits, "cpu_flags", lambda: frozenset(("avx2", "avx512_bf16")))
    with pytest.raises(BackendError, match="would compute in bf16"):
        checked(manifest, engine="openvino")
    monkeypatch.setattr(limits, "cpu_flags", lambda: frozenset(("avx2",)))
    assert "bf16" in checked(manifest, engine="openvino")[0]


ENGINE = {
    "file": "model.plan",
    "library": "tensorrt",
    "library_version": "10.13.3.9",
    "hardware_compatibility": "none",
    "version_compatible": False,
    "targets": ["SM90"],
    "os": "linux-x86_64",
    "onnx_sha256": "0" * 64,
}


def with_plan(bundle: Path, **changes: Any) -> Manifest:
    manifest = Manifest.read(bundle)
    files = {**manifest.files, "model.plan": manifest.files["model.onnx"]}
    return replace(manifest, engines=({**ENGINE, **changes},), files=files)


@pytest.mark.parametrize(
    ("server", "changes", "fits"),
    [
        ("10.13.3", {}, True),
        ("10.13.3.9", {}, True),
        ("", {}, True),
        ("10.14.1", {}, False),
        ("10.13", {}, False),
        ("newest", {}, False),
        ("10.14.1", {"version_compatible": True}, True),
        ("10.9.0", {"version_compatible": True}, False),
    ],
)
def test_plan_of_another_tensorrt(
    bundle_fp32: Path, server: str, changes: dict[str, Any], fits: bool
) -> None:
    manifest = with_plan(bundle_fp32, **changes)
    if fits:
        notes = checked(manifest, engine="tensorrt", tensorrt=server)
        assert notes[0] == "model.plan runs with TensorRT 10.13.3.9, on SM90"
        assert len(notes) == 1 + bool(changes)
    else:
        with pytest.raises(BundleError, match="built with another TensorRT"):
            checked(manifest, engine="tensorrt", tensorrt=server)


def test_plans_that_triton_cannot_run(bundle_fp32: Path) -> None:
    with pytest.raises(BundleError, match="without weights"):
        checked(with_plan(bundle_fp32, options={"strip_weights": True}), engine="tensorrt")
    with pytest.raises(BundleError, match="no TensorRT plan") as caught:
        checked(with_plan(bundle_fp32, library="tensorrt_rtx"), engine="tensorrt")
    assert caught.value.got == "tensorrt_rtx"
    with pytest.raises(BundleError, match="cannot be matched to a server"):
        checked(with_plan(bundle_fp32, library_version=None), engine="tensorrt")


def test_clip_bundle(bundle_fp32: Path) -> None:
    from save_deploy.bundle import model_spec

    clip = replace(
        Manifest.read(bundle_fp32), model=model_spec(Manifest.read(bundle_fp32).config, 5)
    )
    with pytest.raises(BundleError, match="several frames per call"):
        checked(clip)


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths(seed: int) -> None:
    """Against the definition: down the columns, the first run silent."""
    mask = np.random.default_rng(seed).random((5, 7)) < (0.0, 0.3, 0.9, 1.0)[seed]
    rle = json.loads(json.dumps(rle_of(mask)))
    assert rle["size"] == [5, 7] and sum(rle["counts"]) == 35
    painted: list[bool] = []
    for i, n in enumerate(rle["counts"]):
        painted += [i % 2 == 1] * n
    assert painted == [bool(mask[y, x]) for x in range(7) for y in range(5)]
    assert np.array_equal(mask_of(rle), mask)


def test_options_in_python() -> None:
    with pytest.raises(SaveDeployError, match="unknown engine"):
        TritonOptions(bundle=Path("b"), out=Path("r"), engine="torch")


def test_several_batches(bundle_batches: Path, tmp_path: Path) -> None:
    """A model for each graph, with the weights beside it, and save_batch in front of them."""
    write_repository(TritonOptions(bundle=bundle_batches, out=tmp_path / "repo", threads=1))
    repo = tmp_path / "repo"
    models = {p.name for p in repo.iterdir() if p.is_dir()}
    assert models == {*MODELS, "save_model_x2", "save_model_x4", "save_batch"}
    for name, graph in (("save_model", "model"), ("save_model_x4", "model_x4")):
        assert sha256(repo / name / "1/model.onnx") == sha256(bundle_batches / f"{graph}.onnx")
        weights = repo / name / "1/model.onnx.data"
        assert sha256(weights) == sha256(bundle_batches / "model.onnx.data")
    four = (repo / "save_model_x4/config.pbtxt").read_text()
    assert 'name: "image" data_type: TYPE_UINT8 dims: [4, 224, 224, 3]' in four
    assert "max_batch_size: 0\n" in four
    assert (repo / "save_model_x4/warmup/image").stat().st_size == 4 * 224 * 224 * 3
    batch = (repo / "save_batch/config.pbtxt").read_text()
    assert 'name: "image" data_type: TYPE_UINT8 dims: [224, 224, 3]' in batch
    assert "max_batch_size: 4\n" in batch and "preferred_batch_size: [2, 4]\n" in batch
    compile((repo / "save_batch/1/model.py").read_text(), "save_batch", "exec")


def test_plans_are_of_one_batch(bundle_batches: Path, tmp_path: Path) -> None:
    manifest = with_plan(bundle_batches)
    assert "save_batch is left out: a plan is of one batch" in checked(manifest, engine="tensorrt")
