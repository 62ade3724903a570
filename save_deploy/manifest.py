"""manifest.json: the only contract of a bundle, read by Python and C++ alike.

A bundle is a folder: model.onnx [+ model.onnx.data], audio.onnx, golden/*.npy, report.json/.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from save_deploy.config import SaveConfig
from save_deploy.errors import BundleError
from save_deploy.specs import GraphSpec

FORMAT = "save-deploy-bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

# Preprocessing as data: what a client in any language has to do to a frame and a sound.
PREPROCESSING: dict[str, Any] = {
    "frame": {
        "color": "RGB",
        "dtype": "uint8",
        "layout": "NHWC",
        "resize": "square",
        "interpolation": "bilinear_antialias",
        "normalisation": "in the graph",
    },
    "sound": {
        "sample_rate_hz": 16000,
        "channels": "mean",
        "window_samples": 16000,
        "window_step_s": 0.96,
        "short": "completed with silence",
    },
    "mask": {"threshold_logit": 0.0, "resize": "bilinear on logits to the frame size"},
}


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime needs to know; `files` covers all files but the manifest itself."""

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
    # what the preflight knows beside an entry (runtime/preflight/rules.json), for other languages
    preflight: dict[str, Any] = field(default_factory=dict)
    # inputs every client must turn into the same tensors (export/conformance.py)
    conformance: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "precision": self.precision,
            "graphs": {
                "model": {"file": "model.onnx", **self.model.to_dict()},
                "audio": {"file": "audio.onnx", **self.audio.to_dict()},
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
        (folder / MANIFEST).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises BundleError when the folder is no bundle of this format version."""
        path = folder / MANIFEST
        if not path.is_file():
            raise BundleError(
                "not a bundle",
                got=f"{folder} without {MANIFEST}",
                expected="a folder written by save-export",
                hint="save-export --res 256 --fp16 -o DIR",
            )
        try:
            values = json.loads(path.read_text())
            if (values["format"], values["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise BundleError(
                    "bundle of another format",
                    got=f"{values['format']} version {values['format_version']}",
                    expected=f"{FORMAT} version {FORMAT_VERSION}",
                    hint="export again with this version of save-deploy",
                )
            return cls(
                config=SaveConfig.from_dict(values["config"]),
                precision=values["precision"],
                model=GraphSpec.from_dict(values["graphs"]["model"]),
                audio=GraphSpec.from_dict(values["graphs"]["audio"]),
                files={name: FileRecord(**record) for name, record in values["files"].items()},
                golden=values["golden"],
                merge=values["merge"],
                source=values["source"],
                versions=values["versions"],
                engines=tuple(values.get("engines", ())),
                preflight=values.get("preflight", {}),
                conformance=values.get("conformance", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                "manifest cannot be read",
                got=f"{path}: {error!r}",
                expected="a manifest written by save-export",
            ) from error

    def verify(self, folder: Path) -> None:
        """Compare size and sha256 of every file. Raises BundleError naming the first that differs."""
        for name, record in self.files.items():
            path = folder / name
            if not path.is_file():
                raise BundleError(
                    "bundle is incomplete",
                    got=f"no {name} in {folder}",
                    expected="all files of the manifest",
                )
            size = path.stat().st_size
            if size != record.size or sha256_of(path) != record.sha256:
                raise BundleError(
                    "bundle file was altered",
                    got=f"{name} ({size} bytes)",
                    expected=f"{record.size} bytes, sha256 {record.sha256[:12]}...",
                    hint="copy the bundle again, or export it again",
                )


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Every file below a folder but the manifest, by its path relative to it."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
