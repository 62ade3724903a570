"""The calibration table: ranges in a JSON file that people can read and compare."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.calibration.table_check import FORMAT, FORMAT_VERSION, REMEDY, check_table
from save_deploy.errors import DataError, ExportError

DIGITS = 6  # significant, of every float: a table in memory equals the same one read back


@dataclass(frozen=True)
class TensorRange:
    """Of one product's input: clip threshold (> 0) by method, and the summary of its histogram.

    sampled: all but the maximum is of a sample of rows, as for a tensor that was rescaled after the
    pass."""

    amax: dict[str, float]
    histogram: dict[str, float]
    sampled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "amax", {k: _round(v) for k, v in _plain(self.amax).items()})
        object.__setattr__(self, "histogram", _plain(self.histogram))

    def to_dict(self) -> dict[str, Any]:
        """As in the file: `sampled` only where it is true."""
        entry: dict[str, Any] = {"amax": self.amax, "histogram": self.histogram}
        return entry | ({"sampled": True} if self.sampled else {})


@dataclass(frozen=True)
class Smoothing:
    """Per channel of a LayerNorm's output: 2^exponent divides it, the products it feeds are
    multiplied; powers of two, so nothing is rounded. alpha in [0, 1] is the share of the range that
    moves into the weights."""

    alpha: float
    exponents: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _round(self.alpha))
        object.__setattr__(self, "exponents", tuple(map(int, self.exponents)))

    @property
    def scale(self) -> NDArray[np.float32]:
        """(C,)."""
        return np.exp2(np.array(self.exponents, np.float32))


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges of one model on one set of pairs; floats are kept to 6 significant digits, keys in
    natural order (blocks.2 before blocks.10)."""

    model: dict[str, Any]  # keys: table_check.MODEL
    data: dict[str, Any]  # keys: table_check.DATA
    method: str  # the default; every tensor has it
    tensors: dict[str, TensorRange]  # by the product whose input it is: blocks.3.attn.qkv
    smoothing: dict[str, Smoothing]  # by norm: blocks.3.norm1
    means: dict[str, tuple[float, ...]]  # per channel of a product's input, for bias correction
    versions: dict[str, str]

    def __post_init__(self) -> None:
        for key in ("model", "data", "versions"):
            object.__setattr__(self, key, _plain(getattr(self, key)))
        for key in ("tensors", "smoothing"):
            object.__setattr__(self, key, _in_order(getattr(self, key)))
        means = {k: tuple(map(_round, v)) for k, v in _in_order(self.means).items()}
        object.__setattr__(self, "means", means)

    def amax(self, name: str, method: str | None = None) -> float:
        """Raises DataError when the tensor, or its range by this method, is not in the table."""
        method = method or self.method
        if name not in self.tensors:
            raise DataError(
                "the calibration table lacks a tensor",
                got=f"{name} among {len(self.tensors)} tensors of {self.model.get('name')}",
                expected="a range for every product that is quantised",
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
        """Raises DataError when the table was measured on another model, size or weights."""
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
        """Of the file that write() makes."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
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
        """JSON with one line for a scalar and one for each entry of a top-level object."""
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
        """Whole or not at all. Raises DataError for what read() would refuse, ExportError when the
        file cannot be written."""
        check_table(self.to_dict(), "the calibration table to write")
        partial = path.with_name(path.name + ".partial")
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(self._text().encode())
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise ExportError(
                f"{path} cannot be written",
                got=error.strerror or str(error),
                expected="a folder that can be written to",
            ) from error

    @classmethod
    def read(cls, path: Path) -> CalibrationTable:
        """Raises DataError when it cannot be read, is no such table, or has a wrong value."""
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"{path} cannot be read",
                got=error.strerror or str(error),
                expected="a calibration table",
                hint=REMEDY,
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is not JSON", got=str(error), expected="a calibration table", hint=REMEDY
            ) from error
        check_table(values, str(path))
        return cls(
            model=values["model"],
            data=values["data"],
            method=values["method"],
            tensors={
                k: TensorRange(v["amax"], v["histogram"], v.get("sampled", False))
                for k, v in values["tensors"].items()
            },
            smoothing={
                k: Smoothing(v["alpha"], v["exponents"]) for k, v in values["smoothing"].items()
            },
            means=values["means"],
            versions=values["versions"],
        )


def _round(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def _plain(value: Any) -> Any:
    """As JSON gives it back: floats rounded, numpy and tuples unpacked, keys in natural order."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in _in_order(value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _round(value) if isinstance(value, float) else value


def _in_order(entries: dict[str, Any]) -> dict[str, Any]:
    """blocks.2 before blocks.10."""
    parts = lambda key: [int(s) if k % 2 else s for k, s in enumerate(re.split(r"(\d+)", str(key)))]
    return dict(sorted(entries.items(), key=lambda item: parts(item[0])))
