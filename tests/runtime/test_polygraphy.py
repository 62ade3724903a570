"""Samples for Polygraphy: its own program reads them, passes on a good bundle and fails on another."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from save_deploy.bundle import Manifest, record_files
from save_deploy.runtime.golden import Answers
from save_deploy.runtime.polygraphy_samples import write_samples
from tests.command import run
from tests.test_manifest import manifest

N = 3  # in batches of 2: the last one is completed


def small_bundle(folder: Path, *, factor: float = 0.5) -> Path:
    """Logits are red times a factor; the recorded ones have a factor of 0.5."""
    about = manifest()
    side = about.config.res
    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, kinds[t.dtype], t.shape) for t in tensors]
        for tensors in (about.model.inputs, about.model.outputs)
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["pixels"], ["red", "green", "blue"], axis=3, num_outputs=3),
        helper.make_node("Transpose", ["red"], ["plane"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["plane", "factor"], ["scaled"]),
        helper.make_node("ReduceMean", ["audio_embedding"], ["heard"], keepdims=0),
        helper.make_node("Add", ["scaled", "heard"], ["mask_logits"]),
    ]
    constant = numpy_helper.from_array(np.float32(factor), "factor")
    graph = helper.make_graph(nodes, "small", inputs, outputs, [constant])
    (folder / "golden").mkdir(parents=True)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    (folder / "audio.onnx").write_bytes(b"")
    image = np.random.default_rng(0).integers(0, 256, (N, side, side, 3), dtype=np.uint8)
    np.save(folder / "golden" / "image.npy", image)
    sounds, embeddings = np.zeros((N, 16_000), np.float32), np.zeros((N, 128), np.float32)
    Answers(sounds, embeddings, image[..., 0] * np.float32(0.5)).write(folder / "golden")
    golden = {
        **about.golden,
        "n": N,
        "names": ["a", "b", "c"],
        "budget": {"max_abs_err": 1e-3, "min_agreement": 0.97},
    }
    files = record_files(folder)
    replace(about, golden=golden, files=files, engines=(), conformance={}, batches=()).write(folder)
    return folder


PROGRAM = """
import sys, shlex
from polygraphy.tools import main  # what the installed program `polygraphy` calls
for line in sys.stdin:
    sys.argv = shlex.split(line)
    print("exit", main(), flush=True)
"""


@pytest.mark.slow
def test_polygraphy_runs_what_is_printed(tmp_path: Path) -> None:
    """Its own program agrees with a right graph; the twin has another factor in its graph."""
    pytest.importorskip("polygraphy")
    commands = []
    for name, factor in (("right", 0.5), ("the twin", 0.55)):
        bundle = small_bundle(tmp_path / name, factor=factor)
        done = run("polygraphy", bundle, "-o", tmp_path / f"samples of {name}")
        assert done.returncode == 0, done.stderr
        commands.append(done.stdout.splitlines()[1])
        assert commands[-1].startswith("polygraphy run ")
        assert commands[-1].endswith("--atol mask_logits:0.001 --rtol mask_logits:0")
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], input="\n".join(commands), cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    ends = [line for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert ends == ["exit 0", "exit 1"], done.stdout + done.stderr


@pytest.mark.slow
def test_polygraphy_reads_the_samples(tmp_path: Path) -> None:
    """They are in its own format, and complete the last batch with the last sample."""
    json = pytest.importorskip("polygraphy.json")
    bundle = small_bundle(tmp_path / "bundle")
    write_samples(bundle, tmp_path / "samples")
    inputs = json.load_json(str(tmp_path / "samples" / "inputs.json"))
    (name, iterations), *others = json.load_json(str(tmp_path / "samples" / "outputs.json")).items()
    assert name == "eager" and not others and len(inputs) == len(iterations) == 2
    image, logits = (np.load(bundle / "golden" / f"{n}.npy") for n in ("image", "mask_logits"))
    for feed, outputs, rows in zip(inputs, iterations, ([0, 1], [2, 2]), strict=True):
        np.testing.assert_array_equal(feed["image"], image[rows])
        assert feed["audio_embedding"].shape == (2, 128)
        np.testing.assert_array_equal(outputs["mask_logits"], logits[rows][:, None])


@pytest.mark.slow
def test_nothing_of_the_bundle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is named by a known library alone; a folder is replaced only where it is ours."""
    bundle = small_bundle(tmp_path / "sounding")
    (bundle / "__init__.py").write_text("raise SystemExit('code of the bundle was run')")
    entry = dict(manifest().engines[0])
    known = Manifest.read(bundle)
    (bundle / "model.plan").write_bytes(b"plan")
    files = {**known.files, "model.plan": known.files["model.onnx"]}
    nameless = {k: v for k, v in entry.items() if k != "library"}
    engines = ({**entry, "library": "sounding.engine"}, nameless, entry)
    replace(known, engines=engines, files=files).write(bundle)
    done = run("polygraphy", "sounding", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("--trt") == 1
    assert "sounding.engine" not in done.stdout
    assert run("polygraphy", "sounding", cwd=tmp_path).returncode == 1
    assert run("polygraphy", "sounding", "--force", cwd=tmp_path).returncode == 0
    (tmp_path / "polygraphy_samples" / "letter.txt").write_text("mine")
    done = run("polygraphy", "sounding", "--force", cwd=tmp_path)
    assert done.returncode == 1 and "letter.txt" in done.stderr
