"""Calibration table: measured ranges in a JSON file that is easy to read and compare."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.errors import DataError
from save_deploy.fields import Fields, parse_json, read_json, shown
from save_deploy.files import write_text

FORMAT = "save-deploy-calibration"
FORMAT_VERSION = 2  # 1: the input of attn.proj had the bias of v
MAX_EXPONENT = 16  # smoothing scales are 2^-16 to 2^16
REMEDY = "save-calibrate writes a new table"
_LEAST = 5e-324  # smallest float64 above 0
DIGITS = 6  # significant digits of every float, so that a table equals itself after a round trip


@dataclass(frozen=True)
class TensorRange:
    """Range of one MatMul input.

    amax: method -> clip threshold, > 0.
    histogram: Histogram.summary.
    sampled: all values except the maximum are from a sample of rows, because the tensor was
        rescaled after the pass.
    """

    amax: dict[str, float]
    histogram: dict[str, float]
    sampled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "amax", {k: _round(v) for k, v in _plain(self.amax).items()})
        object.__setattr__(self, "histogram", _plain(self.histogram))

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the file; `sampled` is present only when true."""
        entry: dict[str, Any] = {"amax": self.amax, "histogram": self.histogram}
        return entry | ({"sampled": True} if self.sampled else {})


@dataclass(frozen=True)
class Smoothing:
    """Smoothing scales of one LayerNorm output.

    Channel c is divided by 2^exponents[c], and the weights of the MatMuls that read it are
    multiplied by the same factor. Powers of two make this exact. alpha in [0, 1] is the share of
    the range that is moved into the weights.
    """

    alpha: float
    exponents: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _round(self.alpha))
        object.__setattr__(self, "exponents", tuple(map(int, self.exponents)))

    @property
    def scale(self) -> NDArray[np.float32]:
        """Scale per channel, float32 (C,)."""
        return np.exp2(np.array(self.exponents, np.float32))


@dataclass(frozen=True)
class CalibrationTable:
    """Input ranges of the MatMuls of one model, measured on one set of pairs.

    Floats have 6 significant digits. Keys are in natural order (blocks.2 before blocks.10).
    """

    model: dict[str, Any]  # name, res, sha256 of weights
    data: dict[str, Any]  # Selection.to_dict and the number of batches
    method: str  # default method; every tensor has it
    tensors: dict[str, TensorRange]  # input ranges by MatMul name: blocks.3.attn.qkv
    smoothing: dict[str, Smoothing]  # by LayerNorm name: blocks.3.norm1
    means: dict[str, tuple[float, ...]]  # per input channel by MatMul name, for bias correction
    versions: dict[str, str]

    def __post_init__(self) -> None:
        for key in ("model", "data", "versions"):
            object.__setattr__(self, key, _plain(getattr(self, key)))
        for key in ("tensors", "smoothing"):
            object.__setattr__(self, key, _in_order(getattr(self, key)))
        means = {k: tuple(map(_round, v)) for k, v in _in_order(self.means).items()}
        object.__setattr__(self, "means", means)

    def amax(self, name: str, method: str | None = None) -> float:
        """Return the clip threshold of a tensor. Raises DataError when the table lacks it.

        method None: the default of the table.
        """
        method = method or self.method
        if name not in self.tensors:
            raise DataError(
                "the calibration table lacks a tensor",
                got=f"{name} among {len(self.tensors)} tensors of {self.model.get('name')}",
                expected="a range for every quantized MatMul",
                hint=REMEDY,
            )
        found = self.tensors[name].amax
        if method not in found:
            raise DataError(
                f"the calibration table has no {method} range of {name}",
                got=method,
                expected=", ".join(found),
                hint=REMEDY,
            )
        return found[method]

    def require_model(self, sha256: str, *, name: str, res: int) -> None:
        """Raise DataError when the table is of another model, resolution or weights."""
        wanted = {"name": name, "res": res, "sha256": sha256}
        if {key: self.model.get(key) for key in wanted} != wanted:
            show = "{name} at {res} px, weights {sha256}".format
            raise DataError(
                "the calibration table belongs to another model",
                got=show(**{key: self.model.get(key) for key in wanted}),
                expected=show(**wanted),
                hint="save-calibrate measures this model",
            )

    @property
    def sha256(self) -> str:
        """Hash of the file that write() creates."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "tensors": {k: v.to_dict() for k, v in self.tensors.items()},
            "smoothing": {
                k: {"alpha": v.alpha, "exponents": list(v.exponents)}
                for k, v in self.smoothing.items()
            },
            "means": {k: list(v) for k, v in self.means.items()},
            "versions": self.versions,
        }

    def _text(self) -> str:
        """Return JSON with one line per scalar and one per entry of a top-level object."""
        line = lambda value: json.dumps(value, allow_nan=False)
        blocks = []
        for key, value in self.to_dict().items():
            if isinstance(value, dict) and value:
                inner = ",\n".join(f"    {line(k)}: {line(v)}" for k, v in value.items())
                blocks.append(f"  {line(key)}: {{\n{inner}\n  }}")
            else:
                blocks.append(f"  {line(key)}: {line(value)}")
        return "{\n" + ",\n".join(blocks) + "\n}\n"

    def write(self, path: Path) -> None:
        """Write the file atomically.

        Raises DataError for values that read() rejects, and OutputError when writing fails.
        """
        try:
            text = self._text()
        except ValueError as error:
            raise DataError(
                "the calibration table to write is not finite", got=str(error)
            ) from None
        _checked(parse_json(text, "the calibration table to write", error=DataError, hint=REMEDY))
        write_text(path, text, what=str(path))

    @classmethod
    def read(cls, path: Path) -> CalibrationTable:
        """Read a table. Unknown keys are allowed.

        Raises DataError, naming file and key, for a file that cannot be read or a wrong value.
        """
        return _checked(read_json(path, what="calibration table", error=DataError, hint=REMEDY))


def _checked(fields: Fields) -> CalibrationTable:
    """Return the table of a parsed file after checking type and range of every value."""
    for key, wanted in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        found = fields.values.get(key)
        if type(found) is not type(wanted) or found != wanted:
            raise fields.error(key, got=shown(found), expected=str(wanted))
    model, data, versions = fields.table("model"), fields.table("data"), fields.table("versions")
    for key in ("name", "sha256"):
        model.string(key)
    model.integer("res", low=1)
    for key in ("source", "sha256"):
        data.string(key)
    for key in ("pairs", "batches"):
        data.integer(key)
    for key in ("names", "pair_sha256", "not_stratified"):
        data.strings(key)
    data.table("strata")
    for name in versions.values:
        versions.string(name)
    method, means = fields.string("method"), fields.table("means")
    return CalibrationTable(
        model=model.values,
        data=data.values,
        method=method,
        tensors={name: _range(row, method) for name, row in fields.each_table("tensors")},
        smoothing={name: _smoothing(row) for name, row in fields.each_table("smoothing")},
        means={name: means.numbers(name, low=1) for name in means.values},
        versions=versions.values,
    )


def _range(fields: Fields, method: str) -> TensorRange:
    """Return one tensor's entry, which must have a range for the default `method` of the table."""
    amax, histogram = fields.table("amax"), fields.table("histogram")
    amax.number(method, _LEAST)
    return TensorRange(
        amax={name: amax.number(name, _LEAST) for name in amax.values},
        histogram={name: _number(histogram, name) for name in histogram.values},
        sampled=fields.boolean("sampled", False),
    )


def _smoothing(fields: Fields) -> Smoothing:
    exponents = fields.integers("exponents", bottom=-MAX_EXPONENT, top=MAX_EXPONENT, low=1)
    return Smoothing(fields.number("alpha", 0.0, 1.0), exponents)


def _number(fields: Fields, key: str) -> float:
    """Return a number with its type: a count stays an integer."""
    fields.number(key)
    value: float = fields.values[key]
    return value


def _round(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def _plain(value: Any) -> Any:
    """Return the value as JSON reads it back.

    Floats are rounded, numpy values and tuples converted, and keys sorted in natural order.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in _in_order(value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _round(value) if isinstance(value, float) else value


def _in_order(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries in natural order of keys: blocks.2 before blocks.10."""
    parts = lambda key: [int(s) if k % 2 else s for k, s in enumerate(re.split(r"(\d+)", str(key)))]
    return dict(sorted(entries.items(), key=lambda item: parts(item[0])))
