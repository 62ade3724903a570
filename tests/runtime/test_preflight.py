"""Preflight: every reason to refuse an engine is provoked once, and a good one passes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from save_deploy.bundle import FileRecord
from save_deploy.errors import BackendError, BundleError
from save_deploy.machine import read_nvidia
from save_deploy.runtime.preflight import (
    Machine,
    check,
    check_file,
    engine_refusals,
    engine_validity,
    needed_bytes,
    refusal_error,
)
from save_deploy.runtime.preflight import engine as engine_module
from save_deploy.runtime.preflight.rules import rules
from tests.runtime.engines import (
    HAS_RTX,
    LIBRARIES,
    built_engine,
    crafted_engine,
    entry_of,
    full_entry,
    gpu,
    machine,
    record_of,
)

PREFLIGHT = Path(__file__).parents[2] / "runtime" / "preflight"
RTX = entry_of(crafted_engine())
OLDER = {**LIBRARIES, "cuda.bindings": "12.9"}
WITHOUT = lambda name: {n: v for n, v in LIBRARIES.items() if n != name}


def rules_of(entry: dict[str, Any], here: Machine, **options: Any) -> list[str]:
    return [refusal.rule for refusal in check(entry, here, **options)]


def test_a_good_engine_passes() -> None:
    assert check(RTX, machine()) == []
    assert check(full_entry(), machine()) == []


REFUSED = [
    (RTX, machine(os="windows-x86_64"), "os", "another operating system"),
    (RTX, machine(os="linux-aarch64"), "os", "another operating system"),
    (
        RTX,
        machine(libraries=WITHOUT("tensorrt_rtx"), broken={"tensorrt_rtx": "No module"}),
        "library",
        "No module",
    ),
    (RTX, machine(libraries=WITHOUT("cuda.bindings")), "cuda_bindings", r"save-deploy\[cuda\]"),
    (
        RTX,
        machine(libraries={**LIBRARIES, "tensorrt_rtx": "1.7.2.5"}),
        "version",
        "not compatible between",
    ),
    (
        RTX,
        machine(libraries={**LIBRARIES, "tensorrt_rtx": "1.7.1.117"}),
        "version",
        "1.7.1.117",
    ),
    (
        full_entry(),
        machine(libraries={**LIBRARIES, "tensorrt": "10.14.0.1"}),
        "version",
        "built version-compatible",
    ),
    (
        full_entry(version_compatible=True),
        machine(libraries={**LIBRARIES, "tensorrt": "10.12.0.1"}),
        "version",
        "10.12",
    ),
    (RTX, machine(gpus=(), problem="no NVIDIA driver: libcuda"), "gpu", "libcuda"),
    (RTX, machine(driver="470.1", cuda="11.4"), "driver", "580"),
    (
        RTX,
        machine(driver="530.30.02", cuda="12.1", libraries={**LIBRARIES, "cuda.bindings": "12.9"}),
        "driver",
        "535 or newer, for CUDA 12",
    ),
    (RTX, machine(driver="570.1", cuda="12.8"), "driver", "580 or newer, for CUDA 13"),
    (
        full_entry(),
        machine(driver="570.1", cuda="12.8", libraries=OLDER, library_cuda={"tensorrt": "13"}),
        "driver",
        "580 or newer, for CUDA 13",
    ),
    (
        RTX,
        machine(gpus=(gpu("RTX 2080", (7, 5)),)),
        "compute_capability",
        "SM75(.|\n)*SM86, SM89",
    ),
    (
        full_entry(gpu="RTX 6000", hardware_compatibility="same_compute_capability"),
        machine(gpus=(gpu(capability=(8, 6)),)),
        "compute_capability",
        "SM86",
    ),
    (
        full_entry(hardware_compatibility="ampere_plus"),
        machine(gpus=(gpu(capability=(7, 5)),)),
        "compute_capability",
        "8.0 or newer",
    ),
    (full_entry(), machine(gpus=(gpu("RTX 4090"),)), "gpu_model", "built with hardware_compat"),
    (RTX, machine(gpus=(gpu(free=100 << 20),)), "memory", "100 MiB free(.|\n)*MiB"),
]


@pytest.mark.parametrize(("entry", "here", "rule", "text"), REFUSED)
def test_refusals(entry: dict[str, Any], here: Machine, rule: str, text: str) -> None:
    found = check(entry, here)
    assert [r.rule for r in found] == [rule]
    error = refusal_error("model.plan cannot run here", found)
    assert error.exit_code == 3 and all(found[0].to_dict().values())
    with pytest.raises(BackendError, match=text):
        raise error


@pytest.mark.parametrize(
    ("entry", "here"),
    [
        # one GPU at each edge of what is allowed
        (full_entry(gpu="RTX 6000", hardware_compatibility="same_compute_capability"), machine()),
        (
            full_entry(hardware_compatibility="ampere_plus", targets=["SM80"]),
            machine(gpus=(gpu("H200", (9, 0)),)),
        ),
        (
            full_entry(version_compatible=True),
            machine(libraries={**LIBRARIES, "tensorrt": "10.14.0.1"}),
        ),
        # a library that reports no build number
        (full_entry(), machine(libraries={**LIBRARIES, "tensorrt": "10.13.0"})),
        (
            RTX,
            machine(driver="535.1", cuda="12.2", libraries={**LIBRARIES, "cuda.bindings": "12.9"}),
        ),
        (RTX, machine(gpus=(gpu(free=needed_bytes(RTX)),))),
        (RTX, machine(driver=None)),  # NVML is missing: CUDA's own word counts
        # built on a driver of CUDA 13 by a library of CUDA 12, on which it runs with CUDA 12
        (full_entry(), machine(driver="570.1", cuda="12.8", libraries=OLDER)),
        # a release candidate of the bindings
        (RTX, machine(libraries={**LIBRARIES, "cuda.bindings": "13.0.0rc1"})),
        # its weights come from model.onnx
        (entry_of(crafted_engine(), options={"strip_weights": True}), machine()),
    ],
)
def test_what_is_allowed(entry: dict[str, Any], here: Machine) -> None:
    assert check(entry, here) == []


def test_the_librarys_word_lifts_the_version_alone() -> None:
    other = machine(libraries={**LIBRARIES, "tensorrt_rtx": "1.8.0.1"})
    assert rules_of(RTX, other, validity="VALID") == []
    assert rules_of(RTX, other, validity="SUBOPTIMAL") == []
    assert rules_of(RTX, other, validity="INVALID") == ["version"]
    old = machine(libraries={**LIBRARIES, "tensorrt_rtx": "1.8.0.1"}, gpus=(gpu("T4", (7, 5)),))
    assert rules_of(RTX, old, validity="VALID") == ["compute_capability"]


def test_memory_is_planned_with_a_margin() -> None:
    """1 MiB of weights and 1 of activations, times 1.25, and 256 MiB for CUDA itself."""
    assert needed_bytes(RTX) == 2.5 * 2**20 + 256 * 2**20
    untold = {**RTX, "weights_bytes": None, "engine_bytes": 4 << 20}
    assert needed_bytes(untold) == (5 * 1.25 + 256) * 2**20
    for told in (None, 0):
        assert needed_bytes({**untold, "activation_bytes": told}) == (8 * 1.25 + 256) * 2**20


def test_all_reasons_are_named() -> None:
    here = machine(gpus=(gpu("T4", (7, 5), free=0),), os="linux-aarch64")
    found = check(RTX, here)
    assert [r.rule for r in found] == ["os", "compute_capability", "memory"]
    with pytest.raises(BackendError, match=r"another operating(.|\n)*also: engine of another comp"):
        raise refusal_error("model.plan", found)


@pytest.mark.parametrize(
    "changes",
    [
        {"library": "tensorflow"},
        {"library": None},
        {"hardware_compatibility": "all"},
        {"library_version": "seven"},
        {"targets": None},
        {"activation_bytes": "x"},
        {"os": ...},
    ],
)
def test_an_entry_that_cannot_be_read(changes: dict[str, Any]) -> None:
    entry = {**RTX, **changes}
    if changes.get("os") is ...:
        del entry["os"]
    with pytest.raises(BundleError, match="cannot be read"):
        check(entry, machine())


# --- the file ---


@pytest.fixture
def engine(tmp_path: Path) -> tuple[Path, dict[str, Any], FileRecord]:
    path = tmp_path / "model.rtx.plan"
    path.write_bytes(built_engine())
    return path, entry_of(path.read_bytes()), record_of(path)


Engine = tuple[Path, dict[str, Any], FileRecord]


def test_a_built_engine_passes(engine: Engine) -> None:
    path, entry, record = engine
    assert check_file(entry, path, record) == []
    if HAS_RTX:
        import tensorrt_rtx

        assert entry["library_version"] == tensorrt_rtx.__version__


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# What happened to a file, and the rules that say so
DAMAGED: list[tuple[Callable[[bytes], bytes | None], list[str]]] = [
    (lambda data: data[:-1], ["size", "header_size", "sha256"]),
    (lambda data: data[:40], ["size", "magic", "sha256"]),
    (lambda data: b"", ["size", "header", "magic", "sha256"]),
    (lambda data: flipped(data, len(data) // 2), ["sha256"]),
    (lambda data: flipped(data, 0), ["header", "magic", "sha256"]),
    (lambda data: flipped(data, 24), ["header", "header_version", "sha256"]),
    (lambda data: flipped(data, 16), ["header", "header_size", "sha256"]),
    (lambda data: flipped(data, 32 + 3), ["sha256"]),
    (lambda data: b"GGUF" + data[4:], ["header", "magic", "sha256"]),
    (lambda data: b"PK\3\4" * (len(data) // 4), ["header", "magic", "sha256"]),
    (lambda data: None, ["file"]),
]
# Files whose hash agrees with a record of their own, and what their header tells
FOREIGN = [
    (crafted_engine(mask=0x04), ["header_targets"]),
    (crafted_engine(version=(1, 6, 0, 1)), ["header_version"]),
]


def test_damaged_files(engine: Engine) -> None:
    """Cut off, one bit flipped (anywhere), empty, foreign, missing: each is named."""
    path, entry, record = engine
    data = path.read_bytes()
    for damage, rule in DAMAGED:
        content = damage(data)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
            if len(content) != len(data) and "size" not in rule:  # of 4 bytes a piece
                rule = ["size", *rule]
        assert [r.rule for r in check_file(entry, path, record)] == rule
    assert [r.rule for r in check_file(entry, path, None)] == ["file"]


def test_another_engine_with_a_record_of_its_own(tmp_path: Path) -> None:
    """The hash agrees, the header tells: built for other GPUs, by another version."""
    path = tmp_path / "model.rtx.plan"
    for content, rule in FOREIGN:
        path.write_bytes(content)
        entry = entry_of(content, library_version="1.7.1.116")
        assert [r.rule for r in check_file(entry, path, record_of(path))] == rule


def test_every_rule_is_provoked() -> None:
    """The names of the sources are those of the cases above: a new rule needs a case."""
    written = set()
    for source in PREFLIGHT.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal":
                assert isinstance(node.args[0], ast.Constant), ast.unparse(node)
                written.add(node.args[0].value)
    provoked = {rule for _, _, rule, _ in REFUSED}
    provoked |= {rule for _, found in (*DAMAGED, *FOREIGN) for rule in found}
    assert written == provoked | {"onnx"}  # test_whole_preflight


def test_hash_is_not_read_twice(engine: Engine) -> None:
    path, entry, record = engine
    path.write_bytes(flipped(path.read_bytes(), 5000 % record.size))
    assert check_file(entry, path, record, hashed=True) == []


def test_whole_preflight(engine: Engine) -> None:
    path, entry, record = engine
    files = {path.name: record, "model.onnx": FileRecord("0" * 64, 1)}
    assert engine_refusals(entry, path.parent, files, machine_of(entry)) == []
    files["model.onnx"] = FileRecord("1" * 64, 1)
    found = engine_refusals(entry, path.parent, files, machine_of(entry))
    assert [r.rule for r in found] == ["onnx"]
    weights = {**files, "model.onnx.data": FileRecord("2" * 64, 1)}
    weights["model.onnx"] = FileRecord("0" * 64, 1)  # the same graph, other weights beside it
    found = engine_refusals(entry, path.parent, weights, machine_of(entry))
    assert [r.rule for r in found] == ["onnx"] and "222222222222" in found[0].expected
    other = {**entry, "onnx_data_sha256": "2" * 64}
    assert engine_refusals(other, path.parent, weights, machine_of(entry)) == []


def test_a_missing_file_of_another_version(engine: Engine) -> None:
    """Files were not verified: the library is not asked about what is not there."""
    path, entry, record = engine
    path.unlink()
    files = {path.name: record, "model.onnx": FileRecord("0" * 64, 1)}
    other = machine(libraries={**LIBRARIES, "tensorrt_rtx": "9.9.9.9"})
    found = engine_refusals(entry, path.parent, files, other)
    assert [r.rule for r in found] == ["version", "file"]


def machine_of(entry: dict[str, Any]) -> Machine:
    return machine(libraries={**LIBRARIES, "tensorrt_rtx": entry["library_version"]})


def test_only_a_lone_version_asks_the_library(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, entry, record = engine
    files = {path.name: record, "model.onnx": FileRecord("0" * 64, 1)}
    asked: list[str] = []

    def answer(library: str, path: Path) -> tuple[str, tuple[str, ...]]:
        asked.append(library)
        return "VALID", ()

    monkeypatch.setattr(engine_module, "engine_validity", answer)
    other = machine(libraries={**LIBRARIES, "tensorrt_rtx": "9.9.9.9"})
    assert engine_refusals(entry, path.parent, files, other) == []
    assert asked == ["tensorrt_rtx"]
    no_gpu = machine(libraries={**LIBRARIES, "tensorrt_rtx": "9.9.9.9"}, gpus=())
    refused = [r.rule for r in engine_refusals(entry, path.parent, files, no_gpu)]
    assert refused == ["version", "gpu"] and asked == ["tensorrt_rtx"]


@pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed")
def test_validity_of_the_library(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a GPU even a good file is INVALID, with no reason; a foreign one has a reason."""
    path = engine[0]
    if not read_nvidia().gpus:
        assert engine_validity("tensorrt_rtx", path) == ("INVALID", ())
    path.write_bytes(b"GGUF" + path.read_bytes()[4:])
    validity, reasons = engine_validity("tensorrt_rtx", path)
    assert validity == "INVALID" and "MALFORMED_ENGINE" in reasons
    assert capfd.readouterr() == ("", "")


def test_rules_name_every_library_and_level() -> None:
    """The words of manifest entries, as the builder writes them."""
    assert set(rules()["libraries"]) == {"tensorrt", "tensorrt_rtx"}
    levels = {"none", "ampere_plus", "same_compute_capability"}
    assert set(rules()["hardware_compatibility"]) == levels
    targets = rules()["libraries"]["tensorrt_rtx"]["header"]["targets"]
    assert targets == {"SM75": 1, "SM80": 2, "SM86": 4, "SM89": 8, "SM120": 16, "SM121": 32}
