"""manifest.json from a stranger: every value is checked, and the error names the file and the key."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from save_deploy.bundle import GOLDEN_FILES, GRAPHS, FileRecord, Manifest, audio_spec, model_spec
from save_deploy.bundle_files import is_inside
from save_deploy.errors import BundleError
from tests.conftest import make_tiny

HASH = "0123456789abcdef" * 4
PACK = [f"conformance/{name}" for name in ("a.png", "a.wav", "m.png", "w.npy", "e.npy", "l.npy")]


def manifest() -> Manifest:
    config = make_tiny().config
    sample = {
        "frame": "conformance/a.png",
        "sound": "conformance/a.wav",
        "mask": "conformance/m.png",
    }
    return Manifest(
        config=config,
        precision={
            "precision": "int8_fp16",
            "islands": [{"module": "image_encoder.blocks.0"}],
            "quantization": {
                "format": "int8", "weight_bits": 8, "products": ["blocks.0.mlp.lin1"],
                "float_units": ["blocks.0.attn"], "chosen_by": "search",
                "calibration": {
                    "file": "calibration.json", "sha256": HASH, "method": "minmax", "pairs": 2,
                    "source": "scenes", "data_sha256": HASH, "not_stratified": ["size"],
                },
                "smoothing": {"blocks.0.norm1": 0.5}, "bias_corrected": ["blocks.0.mlp.lin1"],
                "largest_weight": 127,
            },
        },
        model=model_spec(config, 2),
        audio=audio_spec(),
        files={n: FileRecord(HASH, 1) for n in (*GRAPHS, "model_x4.onnx", *GOLDEN_FILES, *PACK)},
        golden={
            "n": 2,
            "names": ["a", "b"],
            "audio_embedding_tolerance": 1e-3,
            "budget": {"max_abs_err": None, "min_agreement": 0.97},
        },
        merge={"rewrites": [{"name": "windows"}]},
        source={"files": [{"name": "a.safetensors", "sha256": HASH, "size": 3}]},
        versions={"torch": "2.9.0"},
        engines=(
            {
                "file": "model.plan", "library": "tensorrt", "library_version": "11.1",
                "hardware_compatibility": "none", "os": "linux-x86_64", "header": "00",
                "onnx_sha256": HASH, "onnx_data_sha256": None, "gpu": None, "driver": None,
                "cuda": None, "version_compatible": False, "engine_bytes": 1,
                "activation_bytes": 2, "weights_bytes": None, "targets": ["SM89"],
                "options": {"strip_weights": False}, "receipt": {},
            },
        ),
        conformance={
            "waveform": "conformance/w.npy",
            "audio_embedding": "conformance/e.npy",
            "mask_logits": "conformance/l.npy",
            "logits_step": 4,
            "tolerances": {},
            "cases": [{"name": "a", "image_sha256": HASH, **sample}],
        },
        batches=(4,),
    )  # fmt: skip


@pytest.mark.slow
def test_round_trip(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    assert Manifest.read(tmp_path) == manifest()
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_unknown_keys_are_allowed(tmp_path: Path) -> None:
    """A later version may add keys, but not a switch of the model, which would change its masks."""
    manifest().write(tmp_path)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    values["new"] = values["golden"]["new"] = values["engines"][0]["new"] = 1
    path.write_text(json.dumps(values))
    assert Manifest.read(tmp_path).golden["new"] == 1
    values["config"]["new"] = 1
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"unknown key config\.new"):
        Manifest.read(tmp_path)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values that are not null, containers included."""
    if at and value is not None:
        yield at
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from leaves(inner, (*at, key))


# not read here: for people, or by export/engine
FREE = ("meaning", "receipt")


def with_value(values: dict[str, Any], at: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    changed = copy.deepcopy(values)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = change(inner[at[-1]])
    return changed


@pytest.mark.slow
def test_every_value_of_another_type_is_refused(tmp_path: Path) -> None:
    """Each value in turn, replaced by one of another JSON type."""
    manifest().write(tmp_path)
    path = tmp_path / "manifest.json"
    values, n = json.loads(path.read_text()), 0
    for at in leaves(values):
        if any(key in FREE for key in at):
            continue
        other = lambda old: {} if isinstance(old, list) else []
        path.write_text(json.dumps(with_value(values, at, other)))
        with pytest.raises(BundleError) as caught:
            Manifest.read(tmp_path)
        assert str(path) in caught.value.what or caught.value.what.startswith("bundle of another")
        n += 1
    assert n > 100


@pytest.mark.parametrize("empty", [True, False])
def test_conformance_without_cases(tmp_path: Path, empty: bool) -> None:
    """As in C++."""
    manifest().write(tmp_path)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    del values["conformance"]["cases"]
    if empty:
        values["conformance"]["cases"] = []
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="cases"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("files", "model.onnx", "size"), -1),
        (("files", "model.onnx", "size"), 1.0),
        (("files", "model.onnx", "sha256"), "../../etc/passwd"),
        (("golden", "budget", "min_agreement"), 1.5),
        (("golden", "n"), 0),
        (("precision", "precision"), "int9"),
        (("precision", "quantization", "float_units"), ["blocks.0.attn", 3]),
        (("precision", "quantization", "float_units"), [["blocks.0.attn"]]),
        (("precision", "quantization", "float_units"), "blocks.0.attn"),
        (("precision", "quantization", "calibration", "method"), ["minmax"]),
        (("precision", "quantization", "calibration", "sha256"), "../../etc/passwd"),
        (("precision", "quantization", "largest_weight"), 129),
        (("graphs", "model", "inputs", 0, "shape"), [4096, 64, 64, 3]),
        (("graphs", "model", "inputs", 0, "dtype"), "object"),
        (("graphs", "audio", "outputs", 0, "name"), "embedding"),
        (("config", "depth"), 10**9),
        (("config", "res"), 10**9),
        (("engines", 0, "engine_bytes"), -1),
        (("engines", 0, "targets"), [89]),
        (("conformance", "cases", 0, "image_sha256"), "zz"),
        (("format_version",), True),
        (("format_version",), 1.0),
        (("preprocessing", "sound", "sample_rate_hz"), 8000),
        (("preprocessing", "frame", "color"), "BGR"),
        (("preprocessing", "mask", "threshold_logit"), False),
        (("preprocessing", "mask"), {}),
        (("graphs", "model", "file"), "audio.onnx"),
        (("graphs", "model", "batches", 0, "batch"), 2),  # that of model.onnx
        (("graphs", "model", "batches", 0, "batch"), 0),
        (("graphs", "model", "batches", 0, "batch"), 1025),
        (("graphs", "model", "batches", 0, "batch"), 8),  # of another file
        (("graphs", "model", "batches", 0, "file"), "../model_x4.onnx"),
        (("graphs", "model", "batches", 0, "file"), "audio.onnx"),
        (("graphs", "model", "batches"), [{"batch": 4, "file": "model_x4.onnx"}] * 2),
        (("graphs", "model", "batches"), [{"batch": 8, "file": "model_x8.onnx"}]),  # not in files
        (("graphs", "model", "batches"), [{}] * 17),
        (("files",), {"model.onnx": {"sha256": HASH, "size": 1}}),
    ],
)
def test_values_out_of_range(tmp_path: Path, at: tuple[Any, ...], value: object) -> None:
    manifest().write(tmp_path)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(with_value(values, at, lambda _: value)))
    with pytest.raises(BundleError) as caught:
        Manifest.read(tmp_path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/etc/passwd",
        "a/../../b",
        "..",
        "",
        ".",
        "C:\\x",
        "a\\..\\b",
        "a\0b",
        "a\x1b[2Jb",
        "a\nb",
        "a\x9bb",
        "x" * 256,
        "d/" * 600 + "f",
    ],
)
def test_names_stay_inside_the_bundle(tmp_path: Path, name: str) -> None:
    """Of files, engines and conformance samples."""
    good = manifest()
    sample = {**good.conformance["cases"][0], "sound": name}
    for bad in (
        replace(good, files={**good.files, name: FileRecord(HASH, 1)}),
        replace(good, engines=({**good.engines[0], "file": name},)),
        replace(good, conformance={**good.conformance, "waveform": name}),
        replace(good, conformance={**good.conformance, "cases": [sample]}),
    ):
        bad.write(tmp_path)
        with pytest.raises(BundleError, match="below the bundle"):
            Manifest.read(tmp_path)


def test_names_of_files(tmp_path: Path) -> None:
    """The same rule as in C++: no controls and no marks that turn the direction, any other letter."""
    fine = ("model.onnx", "a/b.bin", "./x", "\u00e9\u3042.bin", "a\u00a0b", "\ue000")
    wrong = ("", ".", "..", "a/../b", "/a", "a\\b", "c:a", "a\x1bb", "a\nb", "a\x85b", "\u202e",
             "x" * 256, "/".join(["\u00e9" * 100] * 6))  # fmt: skip
    assert [name for name in fine if not is_inside(name)] == []
    assert [name for name in wrong if is_inside(name)] == []
