"""The calibration table: readable, canonical, whole; broken or foreign ones are refused in words."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.calibration.histogram import Histogram
from save_deploy.calibration.methods import METHODS
from save_deploy.calibration.table import CalibrationTable, Smoothing, TensorRange
from save_deploy.errors import DataError, OutputError

NAMES = [f"blocks.{k}.{part}" for k in range(12) for part in ("attn.qkv", "mlp.lin1")]


@functools.cache
def measured(name: str, seed: int) -> TensorRange:
    histogram = Histogram(name)
    histogram.add(np.random.default_rng(seed).standard_normal(5000))
    return TensorRange({m: histogram.amax(m) for m in METHODS}, histogram.summary())


def make(names: list[str] = NAMES, **changes: Any) -> CalibrationTable:
    rng = np.random.default_rng(3)
    made = CalibrationTable(
        model={"name": "vit_t", "res": 256, "sha256": "ab" * 32},
        data={
            "source": "AVSBench/Single-source",
            "pairs": 2,
            "batches": 1,
            "sha256": "cd" * 32,
            "names": ("clip_a/1", "鳥/2"),
            "pair_sha256": ["ef" * 32, "01" * 32],
            "strata": {"silent": np.float64(1 / 3), "sources": {"2": 1, "10": 1}},
            "not_stratified": [],
        },
        method="entropy",
        tensors={name: measured(name, NAMES.index(name)) for name in names},
        smoothing={"blocks.3.norm1": Smoothing(0.5, tuple(rng.integers(-4, 5, 32)))},
        means={"blocks.3.attn.proj": tuple(rng.standard_normal(32).astype(np.float32))},
        versions={"save-deploy": "0.1.0", "numpy": "2.4.6"},
    )
    return dataclasses.replace(made, **changes)


def test_round_trip(tmp_path: Path) -> None:
    table, path = make(), tmp_path / "new" / "calibration.json"
    table.write(path)
    again = CalibrationTable.read(path)
    assert again == table
    assert again.sha256 == table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert os.listdir(path.parent) == ["calibration.json"]
    assert again.data["names"] == ["clip_a/1", "鳥/2"]


def test_one_line_per_tensor_and_vector(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    make().write(path)
    lines = path.read_text().splitlines()
    for name in NAMES:
        (line,) = [line for line in lines if line.startswith(f'    "{name}": ')]
        entry = json.loads(line.split(": ", 1)[1].rstrip(","))
        assert set(entry) == {"amax", "histogram"} and set(entry["amax"]) == set(METHODS)
    for key in ("blocks.3.norm1", "blocks.3.attn.proj", "names"):
        assert sum(f'"{key}": ' in line and line.rstrip(",")[-1] in "]}" for line in lines) == 1
    entries = {
        "model": 3,
        "data": 8,
        "tensors": len(NAMES),
        "smoothing": 1,
        "means": 1,
        "versions": 2,
    }
    objects, scalars, braces = 2 * len(entries), 3, 2
    assert len(lines) == sum(entries.values()) + objects + scalars + braces
    order = [line.split('"')[1] for line in lines if line.startswith('    "blocks.')]
    assert order[: len(NAMES)] == NAMES  # blocks.2 before blocks.10


def test_floats_have_six_digits(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    entry = TensorRange({"entropy": np.float32(1.23456789)}, {"count": 123456789, "rms": 2e-9 / 3})  # type: ignore[dict-item]
    make(tensors={"a": entry}).write(path)
    line = next(line for line in path.read_text().splitlines() if '"a"' in line)
    assert line == (
        '    "a": {"amax": {"entropy": 1.23457}, '
        '"histogram": {"count": 123456789, "rms": 6.66667e-10}}'
    )


def test_bytes_do_not_depend_on_order_or_time(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    make().write(first)
    table = make(NAMES[::-1])
    table = dataclasses.replace(
        table,
        model=dict(reversed(table.model.items())),
        versions=dict(reversed(table.versions.items())),
    )
    table.write(second)
    assert first.read_bytes() == second.read_bytes()
    assert make(method="mse").sha256 != make().sha256


def test_amax() -> None:
    table = make()
    name = "blocks.3.attn.qkv"
    assert table.amax(name) == table.tensors[name].amax["entropy"]
    assert table.amax(name, "minmax") == pytest.approx(measured(name, 6).amax["minmax"], rel=1e-5)
    with pytest.raises(DataError, match=r"lacks a tensor\n.*blocks\.12\.attn\.qkv among 24"):
        table.amax("blocks.12.attn.qkv")
    with pytest.raises(DataError, match="has no kl range of blocks"):
        table.amax(name, "kl")


@pytest.mark.parametrize(
    "other", [{"sha256": "00" * 32}, {"name": "vit_b"}, {"res": 1024}], ids=lambda o: next(iter(o))
)
def test_another_models_table_is_refused(other: dict[str, Any]) -> None:
    table = make()
    wanted = {"sha256": "ab" * 32, "name": "vit_t", "res": 256}
    table.require_model(**wanted)
    with pytest.raises(DataError, match="belongs to another model") as caught:
        table.require_model(**{**wanted, **other})
    assert str(next(iter(other.values()))) in caught.value.expected
    assert "vit_t at 256 px" in caught.value.got
    assert "save-calibrate" in caught.value.hint


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """put("a", "b", 3): values["a"]["b"] = 3."""
    *path, last, value = keys

    def change(values: dict[str, Any]) -> None:
        for key in path:
            values = values[key]
        values[last] = value

    return change


def drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    *path, last = keys

    def change(values: dict[str, Any]) -> None:
        for key in path:
            values = values[key]
        del values[last]

    return change


QKV, NORM, PROJ = "blocks.3.attn.qkv", "blocks.3.norm1", "blocks.3.attn.proj"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("format", "other"), ": format"),
        (drop("format"), ": format"),
        (put("format_version", 1), "format_version"),
        (put("format_version", True), "format_version"),
        (drop("tensors"), "tensors\n  got:      nothing"),
        (drop("means"), "means\n  got:      nothing"),
        (drop("model", "sha256"), "model.sha256\n  got:      nothing"),
        (drop("data", "pair_sha256"), "data.pair_sha256\n  got:      nothing"),
        (put("model", "res", "256"), "model.res"),
        (put("model", "res", True), "model.res"),
        (put("data", "names", "clip"), "data.names"),
        (put("data", []), ": data\n"),
        (put("method", 3), ": method"),
        (put("method", "kl"), "amax.kl\n  got:      nothing"),
        (put("tensors", QKV, 3.5), f"{QKV}\n"),
        (drop("tensors", QKV, "histogram"), f"{QKV}.histogram\n  got:      nothing"),
        (put("tensors", QKV, "amax", "mse", 0), f"{QKV}.amax.mse"),
        (put("tensors", QKV, "amax", "mse", -1.0), f"{QKV}.amax.mse"),
        (put("tensors", QKV, "amax", "mse", float("nan")), "is not JSON"),
        (put("tensors", QKV, "amax", "mse", float("inf")), "is not JSON"),
        (put("tensors", QKV, "amax", "mse", 10**400), "is too large"),
        (put("tensors", QKV, "amax", "mse", True), f"{QKV}.amax.mse"),
        (put("tensors", QKV, "amax", "mse", "1"), f"{QKV}.amax.mse"),
        (put("tensors", QKV, "histogram", "rms", None), f"{QKV}.histogram.rms"),
        (put("smoothing", NORM, "exponents", 4, 0.5), f"{NORM}.exponents[4]"),
        (put("smoothing", NORM, "exponents", 4, 17), f"{NORM}.exponents[4]"),
        (put("smoothing", NORM, "exponents", []), f"{NORM}.exponents"),
        (put("smoothing", NORM, "alpha", 1.5), f"{NORM}.alpha"),
        (drop("smoothing", NORM, "alpha"), f"{NORM}.alpha\n  got:      nothing"),
        (put("means", PROJ, 3, "x"), f"means.{PROJ}[3]"),
        (put("means", PROJ, {"0": 1.0}), f"means.{PROJ}"),
        (put("versions", "numpy", 2), "versions.numpy"),
        (put("data", "strata", "silent", float("inf")), "is not JSON"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "calibration.json"
    values = copy.deepcopy(make().to_dict())
    path.write_text(json.dumps(values))
    CalibrationTable.read(path)
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DataError) as caught:
        CalibrationTable.read(path)
    error = caught.value
    assert told in f"{error.what}\n  got:      {error.got}"
    assert str(path) in error.what and "save-calibrate" in error.hint


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"3", b"null", b"{}"]
)
def test_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"calibration\.json") as caught:
        CalibrationTable.read(path)
    assert "save-calibrate" in caught.value.hint


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match=r"cannot read|no such calibration table"):
            CalibrationTable.read(path)


def test_failed_write_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "calibration.json"
    make().write(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"to write: tensors\.blocks\.3\.attn\.qkv\.amax\.entropy"):
        make(tensors={QKV: TensorRange({"entropy": 0.0}, {})}).write(path)

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        make(method="mse").write(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["calibration.json"]
    with pytest.raises(OutputError, match="cannot be written"):
        make().write(path / "inside_a_file.json")
