"""Every reason to refuse an engine is provoked once, and a good one passes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from save_deploy.bundle import FileRecord
from save_deploy.errors import BackendError, BundleError
from save_deploy.machine import read_nvidia
from save_deploy.runtime import engine_check
from save_deploy.runtime.engine_check import (
    Machine,
    engine_refusals,
    engine_validity,
    estimated_bytes,
    machine_refusals,
    refusal_error,
)
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

RTX = entry_of(crafted_engine())
WITHOUT = lambda name: {n: v for n, v in LIBRARIES.items() if n != name}


def test_a_good_engine_passes() -> None:
    assert machine_refusals(RTX, machine()) == []
    assert machine_refusals(full_entry(), machine()) == []


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
]


@pytest.mark.parametrize(("entry", "here", "rule", "text"), REFUSED)
def test_refusals(entry: dict[str, Any], here: Machine, rule: str, text: str) -> None:
    found = machine_refusals(entry, here)
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
        # its weights come from model.onnx
        (entry_of(crafted_engine(), options={"strip_weights": True}), machine()),
    ],
)
def test_what_is_allowed(entry: dict[str, Any], here: Machine) -> None:
    assert machine_refusals(entry, here) == []


def test_memory_is_estimated() -> None:
    """1 MiB of weights and 1 of activations; the file's size stands for what was not told."""
    assert estimated_bytes(RTX) == 2 << 20
    untold = {**RTX, "weights_bytes": None, "engine_bytes": 4 << 20}
    assert estimated_bytes(untold) == 5 << 20
    for told in (None, 0):
        assert estimated_bytes({**untold, "activation_bytes": told}) == 8 << 20
    with pytest.raises(BundleError, match=r"cannot be read: activation_bytes(.|\n)*'x'"):
        estimated_bytes({**RTX, "activation_bytes": "x"})


def test_all_reasons_are_named() -> None:
    here = machine(gpus=(gpu("T4", (7, 5)),), os="linux-aarch64")
    found = machine_refusals(RTX, here)
    assert [r.rule for r in found] == ["os", "compute_capability"]
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
        {"os": ...},
    ],
)
def test_an_entry_that_cannot_be_read(changes: dict[str, Any]) -> None:
    entry = {**RTX, **changes}
    if changes.get("os") is ...:
        del entry["os"]
    with pytest.raises(BundleError, match="cannot be read"):
        machine_refusals(entry, machine())


# --- the hashes ---

Engine = tuple[Path, dict[str, Any], dict[str, FileRecord]]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    path = tmp_path / "model.rtx.plan"
    path.write_bytes(built_engine())
    files = {path.name: record_of(path), "model.onnx": FileRecord("0" * 64, 1)}
    return path, entry_of(path.read_bytes()), files


# What happened to a file, and the rule that says so
DAMAGED: list[tuple[Callable[[bytes], bytes | None], str]] = [
    (lambda data: data[:-1], "sha256"),
    (lambda data: b"", "sha256"),
    (lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], "sha256"),
    (lambda data: b"GGUF" + data[4:], "sha256"),
    (lambda data: None, "file"),
]


def test_files(engine: Engine) -> None:
    """Cut off, empty, one bit flipped, foreign, missing: each is refused; the intact one is not."""
    path, entry, files = engine
    data = path.read_bytes()
    assert engine_refusals(entry, path.parent, files, machine()) == []
    for damage, rule in DAMAGED:
        content = damage(data)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        (found,) = engine_refusals(entry, path.parent, files, machine())
        assert found.rule == rule and path.name in found.got and all(found.to_dict().values())
    path.write_bytes(data)
    del files[path.name]
    (found,) = engine_refusals(entry, path.parent, files, machine())
    assert found.rule == "file" and "the files of manifest.json" in found.got


def test_hash_is_not_read_twice(engine: Engine) -> None:
    path, entry, files = engine
    path.write_bytes(b"altered")
    assert engine_refusals(entry, path.parent, files, machine(), hashed=True) == []


def test_engine_of_another_graph(engine: Engine) -> None:
    path, entry, files = engine
    rules = lambda entry, files: [
        (r.rule, r.expected) for r in engine_refusals(entry, path.parent, files, machine())
    ]
    other = {**files, "model.onnx": FileRecord("1" * 64, 1)}
    assert rules(entry, other) == [("onnx", "111111111111...")]
    # the same graph, other weights beside it
    weights = {**files, "model.onnx.data": FileRecord("2" * 64, 1)}
    assert rules(entry, weights) == [("onnx", "000000000000... with weights 222222222222...")]
    assert rules({**entry, "onnx_data_sha256": "2" * 64}, weights) == []


def test_every_rule_is_provoked() -> None:
    """The names in the source are those of the cases above: a new rule needs a case."""
    written = set()
    for node in ast.walk(ast.parse(Path(engine_check.__file__).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal":
            assert isinstance(node.args[0], ast.Constant), ast.unparse(node)
            written.add(node.args[0].value)
    provoked = {rule for _, _, rule, _ in REFUSED} | {rule for _, rule in DAMAGED}
    assert written == provoked | {"onnx"}  # test_engine_of_another_graph


def test_a_missing_file_of_another_version(engine: Engine) -> None:
    """Files were not verified: the library is not asked about what is not there."""
    path, entry, files = engine
    path.unlink()
    other = machine(libraries={**LIBRARIES, "tensorrt_rtx": "9.9.9.9"})
    found = engine_refusals(entry, path.parent, files, other)
    assert [r.rule for r in found] == ["version", "file"]


def test_only_a_lone_version_asks_the_library(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, entry, files = engine
    asked: list[str] = []

    def answer(word: str) -> None:
        say = lambda library, path: (asked.append(library) or word, ())
        monkeypatch.setattr(engine_check, "engine_validity", say)

    newer = {**LIBRARIES, "tensorrt_rtx": "9.9.9.9"}
    rules = lambda here: [r.rule for r in engine_refusals(entry, path.parent, files, here)]
    for word, expected in (("VALID", []), ("SUBOPTIMAL", []), ("INVALID", ["version"])):
        answer(word)
        assert rules(machine(libraries=newer)) == expected
    assert asked == ["tensorrt_rtx"] * 3
    assert rules(machine(libraries=newer, gpus=())) == ["version", "gpu"] and len(asked) == 3
    assert rules(machine()) == [] and len(asked) == 3


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
