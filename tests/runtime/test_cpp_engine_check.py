"""An engine is refused by the same rules in C++ and in Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from save_deploy.bundle import FileRecord, Manifest
from save_deploy.runtime.engine_check import Machine, engine_refusals
from tests.runtime.cpp import infer
from tests.runtime.engines import (
    LIBRARIES,
    crafted_engine,
    entry_of,
    full_entry,
    gpu,
    machine,
    record_of,
)

ENGINE = crafted_engine()
ONNX = "0" * 64
Change = dict[str, Any]
HERE: dict[str, Machine] = {
    "fine": machine(),
    "newer library": machine(libraries={**LIBRARIES, "tensorrt": "10.14.0.1"}),
    "older library": machine(libraries={**LIBRARIES, "tensorrt": "10.9.0.34"}),
    "no build number": machine(libraries={**LIBRARIES, "tensorrt": "10.13.0"}),
    "two numbers": machine(libraries={**LIBRARIES, "tensorrt": "10.13"}),
    "other rtx": machine(libraries={**LIBRARIES, "tensorrt_rtx": "1.7.1.117"}),
    "no library": machine(libraries={"cuda.bindings": "13.5.0"}),
    "other system": machine(os="linux-aarch64"),
    "no gpu": machine(gpus=(), problem="no NVIDIA driver"),
    "T4": machine(gpus=(gpu("T4", (7, 5)),)),
    "A10": machine(gpus=(gpu("A10", (8, 6)),)),
    "H100": machine(gpus=(gpu("H100", (9, 0)),)),
    "RTX 4090": machine(gpus=(gpu("RTX 4090", (8, 9)),)),
    "T4 and all else wrong": machine(os="linux-aarch64", gpus=(gpu("T4", (7, 5)),)),
}
ENTRIES: dict[str, dict[str, Any]] = {
    "rtx": entry_of(ENGINE),
    "full": full_entry(),
    "full, version compatible": full_entry(version_compatible=True),
    "full, same capability": full_entry(hardware_compatibility="same_compute_capability"),
    "full, ampere_plus": full_entry(hardware_compatibility="ampere_plus", targets=["SM80"]),
    "rtx, version compatible": entry_of(ENGINE, version_compatible=True),
    "stale": entry_of(ENGINE, onnx_sha256="1" * 64),
    "stale weights": entry_of(ENGINE, onnx_data_sha256="1" * 64),
    "other targets": entry_of(ENGINE, targets=["SM86", "SM120"]),
}
FILES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-1],
    "empty": lambda data: b"",
    "flipped": lambda data: data[:2000] + b"\1" + data[2001:],
    "foreign": lambda data: b"GGUF" + data[4:],
}


def bundle_of(entry: dict[str, Any], bundle: Path, folder: Path) -> Manifest:
    """A manifest with this engine beside an intact file of it; nothing else of a bundle is needed."""
    path = folder / entry["file"]
    path.write_bytes(ENGINE)
    manifest = Manifest.read(bundle)
    files = {name: r for name, r in manifest.files.items() if not name.endswith(".data")}
    files |= {"model.onnx": FileRecord(ONNX, 1), path.name: record_of(path)}
    manifest = replace(manifest, engines=(entry,), files=files)
    manifest.write(folder)
    return manifest


def in_cpp(build: Path, folder: Path, here: Machine) -> list[str]:
    (folder / "machine.json").write_text(json.dumps(here.to_dict()))
    done = subprocess.run(
        [build / "tests" / "refusals", folder, folder / "machine.json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1:]


def in_python(manifest: Manifest, folder: Path, here: Machine) -> list[str]:
    (entry,) = manifest.engines
    return [r.rule for r in engine_refusals(entry, folder, manifest.files, here)]


def test_entries_and_machines(
    build: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every entry on every machine. Only Python can ask the library about another version of it."""
    monkeypatch.setattr(
        "save_deploy.runtime.engine_check.engine_validity", lambda library, path: (None, ())
    )
    seen: set[str] = set()
    for name, entry in ENTRIES.items():
        manifest = bundle_of(entry, bundle, tmp_path)
        for place, here in HERE.items():
            expected = in_python(manifest, tmp_path, here)
            assert in_cpp(build, tmp_path, here) == expected, f"{name} on {place}"
            seen |= set(expected)
    assert seen == {"os", "library", "version", "gpu", "compute_capability", "gpu_model", "onnx"}


@pytest.mark.parametrize("damage", FILES)
def test_files(build: Path, bundle: Path, tmp_path: Path, damage: str) -> None:
    manifest = bundle_of(ENTRIES["rtx"], bundle, tmp_path)
    path = tmp_path / "model.rtx.plan"
    path.write_bytes(FILES[damage](ENGINE))
    expected = in_python(manifest, tmp_path, machine())
    assert in_cpp(build, tmp_path, machine()) == expected == ["sha256"]


def test_missing_files(build: Path, bundle: Path, tmp_path: Path) -> None:
    manifest = bundle_of(ENTRIES["rtx"], bundle, tmp_path)
    (tmp_path / "model.rtx.plan").unlink()
    assert in_cpp(build, tmp_path, machine()) == ["file"]
    unlisted = {n: r for n, r in manifest.files.items() if n != "model.rtx.plan"}
    (tmp_path / "model.rtx.plan").write_bytes(ENGINE)
    replace(manifest, files=unlisted).write(tmp_path)
    assert in_cpp(build, tmp_path, machine()) == ["file"]


def test_stripped_engines_are_for_python(build: Path, bundle: Path, tmp_path: Path) -> None:
    """Python puts the weights back, this runtime does not."""
    bundle_of(entry_of(ENGINE, options={"strip_weights": True}), bundle, tmp_path)
    assert in_cpp(build, tmp_path, machine()) == ["weights"]


@pytest.mark.parametrize("rules", [{"format_version": 1, "libraries": {}}, {"format_version": 2}])
def test_rules_in_older_manifests_are_passed_over(
    build: Path, bundle: Path, tmp_path: Path, rules: object
) -> None:
    bundle_of(full_entry(), bundle, tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**values, "preflight": rules}))
    assert in_cpp(build, tmp_path, machine()) == []
    assert in_python(Manifest.read(tmp_path), tmp_path, machine()) == []


@pytest.mark.parametrize(
    "change",
    [{"library": "tensorflow"}, {"hardware_compatibility": "all"}, {"library_version": "seven"},
     {"targets": None}, {"os": None}],
)  # fmt: skip
def test_an_entry_that_cannot_be_read(
    build: Path, bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    bundle_of({**ENTRIES["rtx"], **change}, bundle, tmp_path)
    with pytest.raises(AssertionError, match="cannot be read"):
        in_cpp(build, tmp_path, machine())


def test_engines_do_not_hinder_the_cpu(build: Path, bundle: Path, tmp_path: Path) -> None:
    """A stale engine in a bundle is a matter of its own backend."""
    import shutil

    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = Manifest.read(copy)
    path = copy / "model.rtx.plan"
    path.write_bytes(ENGINE)
    files = {**manifest.files, path.name: record_of(path)}
    replace(manifest, engines=(ENTRIES["stale"],), files=files).write(copy)
    assert infer(build, "verify", copy).returncode == 0
