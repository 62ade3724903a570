"""Bundle format: manifest.json, its only contract.

A bundle is a folder: manifest.json, model.onnx [+ model.onnx.data], audio.onnx, golden/*.npy,
conformance/, engines (*.plan), report.json/.md; with further batches model_x8.onnx ..., whose weights
are in model.onnx.data too. Python and C++ read the same manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from save_deploy import bundle_files
from save_deploy.bundle_files import FileRecord as FileRecord
from save_deploy.bundle_files import sha256_of as sha256_of
from save_deploy.config import SaveConfig
from save_deploy.errors import BundleError, SaveDeployError
from save_deploy.fields import Fields, read_json, shown
from save_deploy.files import write_text
from save_deploy.graph_specs import WINDOW_SAMPLES as WINDOW_SAMPLES
from save_deploy.graph_specs import Arrays as Arrays
from save_deploy.graph_specs import GraphSpec as GraphSpec
from save_deploy.graph_specs import TensorSpec as TensorSpec
from save_deploy.graph_specs import audio_spec as audio_spec
from save_deploy.graph_specs import model_spec as model_spec
from save_deploy.precision import Precision
from save_deploy.preprocessing import PREPROCESSING, check_preprocessing

FORMAT = "save-deploy-bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = ("model.onnx", "audio.onnx")  # frames and embeddings -> masks; audio -> embeddings
GOLDEN_FILES = [f"golden/{n}.npy" for n in "image waveform audio_embedding mask_logits".split()]
MAX_BATCH = 1024  # frames per call of a graph
MAX_GRAPHS = 16  # further batches of a bundle
SMALL_WEIGHT = 64  # products of two such INT8 weights with 0..255 add up to at most 32,640


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json. `files` has all files except the manifest."""

    config: SaveConfig
    precision: dict[str, Any]
    model: GraphSpec
    audio: GraphSpec
    files: dict[str, FileRecord]
    golden: dict[str, Any]
    merge: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]
    # one entry per engine file: library, version, targets, receipt (export/engine/)
    engines: tuple[dict[str, Any], ...] = ()
    # engine rules that earlier versions wrote for clients in other languages
    preflight: dict[str, Any] = field(default_factory=dict)
    # inputs that every client must convert to the same tensors (export/golden.py)
    conformance: dict[str, Any] = field(default_factory=dict)
    # frames per call of the graphs beside model.onnx, each in batch_file(frames)
    batches: tuple[int, ...] = ()

    @property
    def small_weights(self) -> bool:
        """True when no INT8 weight exceeds SMALL_WEIGHT, so that no kernel saturates 16-bit sums."""
        largest = (self.precision.get("quantization") or {}).get("largest_weight")
        return largest is not None and bool(largest <= SMALL_WEIGHT)

    def write(self, folder: Path) -> None:
        """Write manifest.json to the folder, atomically. Raises OutputError."""
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "precision": self.precision,
            "graphs": {
                "model": {"file": GRAPHS[0], **self.model.to_dict(), **_batches(self.batches)},
                "audio": {"file": GRAPHS[1], **self.audio.to_dict()},
            },
            "preprocessing": PREPROCESSING,
            "golden": self.golden,
            "merge": self.merge,
            "source": self.source,
            "versions": self.versions,
            "engines": list(self.engines),
            **({"preflight": self.preflight} if self.preflight else {}),
            "conformance": self.conformance,
            "files": {name: asdict(record) for name, record in sorted(self.files.items())},
        }
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        write_text(folder / MANIFEST, text, what="the manifest")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check a manifest; unknown keys are allowed. Raises BundleError, naming file and
        key, without a manifest, for another format version, and for a wrong type or range."""
        path = folder / MANIFEST
        if not os.path.isfile(path):  # also False for names that are too long
            raise BundleError(
                "not a bundle",
                got=f"{folder} without {MANIFEST}",
                expected="a folder written by save-export",
                hint="save-export --res 256 --fp16 -o DIR",
            )
        fields = read_json(
            path,
            what="manifest",
            error=BundleError,
            hint="copy the bundle again, or export it again",
        )
        _check_format(fields)
        check_preprocessing(fields)
        config = SaveConfig.from_fields(fields.table("config"))
        model, audio = _read_graphs(fields.table("graphs"), config)
        files = _read_files(fields)
        return cls(
            config=config,
            precision=_read_precision(fields.table("precision")),
            model=model,
            audio=audio,
            files=files,
            golden=_read_golden(fields.table("golden"), files),
            merge=_read_merge(fields.table("merge")),
            source=_read_source(fields.table("source")),
            versions=_read_versions(fields.table("versions")),
            engines=tuple(_read_engine(row) for row in fields.tables("engines")),
            preflight=fields.table("preflight", {}).values,
            conformance=_read_conformance(fields.table("conformance", {}), files),
            batches=_read_batches(fields.table("graphs").table("model"), model, files),
        )

    def verify(self, folder: Path) -> None:
        """Check size and sha256 of every file that a runtime reads; reports are not checked.
        Raises BundleError naming the first that differs."""
        bundle_files.check_files(folder, self.files)

    def content_of(self, graph: str, weights: Iterable[str]) -> str:
        """Return a sha256 over a graph and its weight files, or of the graph alone without them."""
        hashes = [self.files[name].sha256 for name in (graph, *weights)]
        joined = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
        return hashes[0] if len(hashes) == 1 else joined


def batch_file(batch: int, stem: str = "model") -> str:
    """Return the name of the graph with another number of frames per call than STEM.onnx."""
    return f"{stem}_x{batch}.onnx"


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Return every file below a folder except the manifest, by relative path."""
    return bundle_files.record_files(folder, but=MANIFEST)


def check_own_bundle(folder: Path) -> None:
    """Raise BundleError unless the folder is a bundle with nothing else in it (safe to replace)."""
    known = {MANIFEST, *Manifest.read(folder).files}
    others = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    )
    if unknown := [name for name in others if name not in known and ".partial-" not in name]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise BundleError(
            f"it has {', '.join(unknown[:3])}{more}, which the manifest does not list"
        )


def _check_format(fields: Fields) -> None:
    name, version = fields.string("format"), fields.integer("format_version")
    if (name, version) != (FORMAT, FORMAT_VERSION):
        raise BundleError(
            "bundle of another format",
            got=f"{shown(name)} version {version}",
            expected=f"{FORMAT} version {FORMAT_VERSION}",
            hint="export again with this version of save-deploy",
        )


def _read_graphs(fields: Fields, config: SaveConfig) -> tuple[GraphSpec, GraphSpec]:
    """Return model and audio spec. Raises for an interface that does not match the config."""
    model, audio = fields.table("model"), fields.table("audio")
    inputs = _tensors(model, "inputs")
    batch = inputs[0][2][0] if inputs and inputs[0][2] else 1
    if batch > MAX_BATCH:
        raise model.error("inputs", got=f"a batch of {batch}", expected=f"at most {MAX_BATCH}")
    specs = model_spec(config, batch), audio_spec()
    for graph, spec, file in zip((model, audio), specs, GRAPHS, strict=True):
        graph.string("file", (file,))
        for key, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
            wanted = [(t.name, t.dtype, t.shape) for t in tensors]
            if (found := _tensors(graph, key)) != wanted:
                raise graph.error(key, got=_listed(found), expected=_listed(wanted))
    return specs


def _batches(batches: Iterable[int]) -> dict[str, Any]:
    rows = [{"batch": batch, "file": batch_file(batch)} for batch in batches]
    return {"batches": rows} if rows else {}


def _read_batches(fields: Fields, model: GraphSpec, files: Collection[str]) -> tuple[int, ...]:
    """Return the further batches. Raises for one that is there twice or has no listed file."""
    seen, rows = [model.inputs[0].shape[0]], fields.tables("batches")
    if len(rows) > MAX_GRAPHS:
        raise fields.error("batches", got=f"{len(rows)} graphs", expected=f"up to {MAX_GRAPHS}")
    for row in rows:
        batch = row.integer("batch", low=1, high=MAX_BATCH)
        if batch in seen:
            raise row.error("batch", got=f"{batch} again", expected="every batch once")
        row.string("file", (batch_file(batch),))
        _path(row, "file", files)
        seen.append(batch)
    return tuple(seen[1:])


def _tensors(fields: Fields, key: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (name, dtype, shape) of each tensor."""
    return [
        (row.string("name"), row.string("dtype"), row.integers("shape", bottom=1, top=1 << 20))
        for row in fields.tables(key)
    ]


def _listed(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in tensors) or "nothing"


def _read_files(fields: Fields) -> dict[str, FileRecord]:
    files = {name: _read_record(name, row) for name, row in fields.each_table("files")}
    for name in GRAPHS:
        if name not in files:
            raise fields.error("files", got=f"no {name}", expected="size and sha256 of every file")
    return files


def _read_record(name: str, fields: Fields) -> FileRecord:
    if not bundle_files.is_inside(name):
        raise fields.error("", got=repr(name)[:200], expected=bundle_files.INSIDE)
    return FileRecord(_hash(fields, "sha256"), fields.integer("size"))


def _read_quantization(fields: Fields) -> None:
    """Check the entry of a quantized graph; bundles of earlier versions lack some of its keys."""
    if fields.values.get("quantization") is None:
        return
    said = fields.table("quantization")
    if "largest_weight" in said:
        said.integer("largest_weight", low=0, high=128)
    _if_present(said, "weight_bits", lambda key: said.integer(key, low=7, high=8))
    for key in ("format", "chosen_by"):
        _if_present(said, key, said.string)
    for key in ("products", "float_units", "bias_corrected"):
        _strings(said, key)
    if said.values.get("kernels") is not None:
        kernels = said.table("kernels")
        for backend in kernels.values:
            for count in ("asked", "int8"):
                kernels.table(backend).integer(count)
    if said.values.get("smoothing") is not None:
        smoothing = said.table("smoothing")
        for norm in smoothing.values:
            smoothing.number(norm)
    if said.values.get("calibration") is not None:
        _read_calibration(said.table("calibration"))


def _read_calibration(fields: Fields) -> None:
    for key in ("file", "method", "source", "data_sha256"):
        _if_present(fields, key, fields.string)
    _if_present(fields, "sha256", lambda key: _hash(fields, key))
    _if_present(fields, "pairs", fields.integer)
    _strings(fields, "not_stratified")


def _read_precision(fields: Fields) -> dict[str, Any]:
    text = fields.string("precision")
    try:
        Precision.parse(text)
    except SaveDeployError as error:
        raise fields.error("precision", got=error.got, expected=error.expected) from None
    floats = fields.table("floats", {}) if fields.values.get("floats") is not None else fields
    for row in (*fields.tables("islands"), *floats.tables("islands")):
        row.string("module")
        _if_present(row, "reason", row.string)
        _if_present(row, "value", row.number)
    _read_quantization(fields)
    return fields.values


def _read_golden(fields: Fields, files: Collection[str]) -> dict[str, Any]:
    """Check the golden entry, {} for a bundle without golden samples."""
    if fields.values:
        fields.integer("n", low=1, high=1 << 20)
        fields.number("audio_embedding_tolerance", 0.0)
        _strings(fields, "names")
        for name in GOLDEN_FILES:
            if name not in files:
                raise fields.error("", got=f"no {name} in files", expected="all golden samples")
        budget = fields.table("budget")
        _if_present(budget, "max_abs_err", lambda key: budget.number(key, 0.0))
        budget.number("min_agreement", 0.0, 1.0)
        if set(budget.values) != {"max_abs_err", "min_agreement"}:
            got = ", ".join(budget.values)
            raise budget.error("", got=got, expected="max_abs_err, min_agreement")
    return fields.values


def _read_merge(fields: Fields) -> dict[str, Any]:
    for row in fields.tables("rewrites"):
        row.string("name")
        for key in ("macs_before", "macs_after", "max_rel_diff"):
            _if_present(row, key, row.number)
    return fields.values


def _read_source(fields: Fields) -> dict[str, Any]:
    rows = fields.tables("files")
    for row in rows:
        row.string("name")
        _hash(row, "sha256")
        row.integer("size")
    if not rows:
        raise fields.error("files", got="none", expected="at least the checkpoint")
    return fields.values


def _read_versions(fields: Fields) -> dict[str, str]:
    return {name: fields.string(name) for name in fields.values}


def _read_engine(fields: Fields) -> dict[str, Any]:
    """Check one engine entry. The runtime checks what its library needs when it opens the file."""
    _path(fields, "file")
    for key in ("library", "library_version", "hardware_compatibility", "os", "gpu", "driver",
                "cuda", "onnx_sha256", "onnx_data_sha256", "header"):  # fmt: skip
        _if_present(fields, key, fields.string)
    for key in ("engine_bytes", "activation_bytes", "weights_bytes"):
        _if_present(fields, key, fields.integer)
    _if_present(fields, "version_compatible", fields.boolean)
    _if_present(fields, "options", lambda key: fields.table(key).boolean("strip_weights", False))
    _if_present(fields, "receipt", fields.table)
    _strings(fields, "targets")
    return fields.values


def _read_conformance(fields: Fields, files: Collection[str]) -> dict[str, Any]:
    """Check the conformance entry, {} for a bundle without conformance samples."""
    if fields.values:
        for key in ("waveform", "audio_embedding", "mask_logits"):
            _path(fields, key, files)
        fields.integer("logits_step", low=1, high=1 << 13)
        fields.table("tolerances")
        rows = fields.tables("cases")
        if not rows:
            raise fields.error("cases", got="none", expected="at least one")
        for row in rows:
            row.string("name")
            for key in ("frame", "sound", "mask"):
                _path(row, key, files)
            _hash(row, "image_sha256")
    return fields.values


def _if_present(fields: Fields, key: str, read: Callable[[str], object]) -> None:
    """Check a key that may be missing or null."""
    if fields.values.get(key) is not None:
        read(key)


def _strings(fields: Fields, key: str) -> None:
    _if_present(fields, key, fields.strings)


def _hash(fields: Fields, key: str) -> str:
    text = fields.string(key)
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise fields.error(key, got=text[:80], expected="a sha256, 64 hex digits")
    return text


def _path(fields: Fields, key: str, files: Collection[str] | None = None) -> None:
    """Check a file name; with `files`, it must be one of them."""
    name = fields.string(key)
    if not bundle_files.is_inside(name):
        raise fields.error(key, got=repr(name)[:80], expected=bundle_files.INSIDE)
    if files is not None and name not in files:
        raise fields.error(key, got=name[:80], expected="a file with its size and sha256 in files")
