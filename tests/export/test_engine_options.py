"""GPU names, targets and options: what is accepted, and how what cannot be built is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from save_deploy.errors import BackendError, ExportError
from save_deploy.export.engine import library
from save_deploy.export.engine.graph import GraphFacts, MatMul
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.targets import capability_of, resolve
from save_deploy.machine import Gpu, Nvidia


def facts(*dtypes: str, fp8: bool = False) -> GraphFacts:
    products = tuple(MatMul(f"p{i}", "m", "MatMul", d, False) for i, d in enumerate(dtypes))
    return GraphFacts(products, (), (), fp8, (), (), {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("8.6", "SM86"), ("86", "SM86"), ("SM86", "SM86"), ("sm_89", "SM89"), ("12.0", "SM120"),
        ("120", "SM120"), ("T4", "SM75"), ("Tesla T4", "SM75"), ("A100", "SM80"),
        ("NVIDIA A100-SXM4-80GB", "SM80"), ("NVIDIA A100 80GB PCIe", "SM80"), ("A10", "SM86"),
        ("NVIDIA A10G", "SM86"), ("RTX A6000", "SM86"), ("NVIDIA GeForce RTX 3090 Ti", "SM86"),
        ("RTX 4090", "SM89"), ("rtx4070ti", "SM89"), ("RTX 4070 Ti SUPER", "SM89"),
        ("GeForce RTX 4060 Laptop GPU", "SM89"), ("RTX 4090 D", "SM89"), ("L4", "SM89"),
        ("NVIDIA L40S", "SM89"), ("RTX 6000 Ada Generation", "SM89"), ("RTX 5090", "SM120"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "SM120"), ("DGX Spark", "SM121"),
        ("A6000", "SM86"), ("NVIDIA RTX 4000 SFF Ada Generation", "SM89"), ("RTX PRO 1000", "SM120"),
        ("RTX PRO 500 Blackwell Generation Laptop GPU", "SM120"), ("NVIDIA A2", "SM86"),
        ("GB10", "SM121"), ("NVIDIA H100 80GB HBM3", "SM90"), ("H200", "SM90"), ("B200", "SM100"),
    ],
)  # fmt: skip
def test_capability_of(name: str, expected: str) -> None:
    assert capability_of(name) == expected


@pytest.mark.parametrize("name", ["RTX 6000", "banana", "", "8", "8.66", "GTX", "Ti", "Blackwell"])
def test_unknown_gpu(name: str) -> None:
    """RTX 6000 is three GPUs of three generations."""
    with pytest.raises(ExportError, match="unknown GPU") as caught:
        capability_of(name)
    assert caught.value.hint and caught.value.expected


@pytest.mark.parametrize("name", ["H100", "H200", "SM90", "9.0", "GB100", "SM100", "V100", "Orin"])
def test_gpus_without_an_rtx_target(name: str) -> None:
    with pytest.raises(ExportError, match="no such target") as caught:
        BuildOptions(targets=("L4", name))
    assert "full TensorRT" in caught.value.hint and name in caught.value.got


def test_targets_are_sorted_and_unique() -> None:
    assert resolve(["RTX 5090", "8.6", "RTX 3090", "T4"]) == ("SM75", "SM86", "SM120")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"library": "trt"}, "unknown library"),
        ({"workspace_mib": 0}, "workspace"),
        ({"optimization_level": 6}, "optimization level"),
        ({"optimization_level": -1}, "optimization level"),
        ({"hardware_compatibility": "all"}, "unknown hardware compatibility"),
    ],
)
def test_bad_values(change: dict[str, object], what: str) -> None:
    with pytest.raises(ExportError, match=what) as caught:
        BuildOptions(**change)  # type: ignore[arg-type]
    assert caught.value.got and caught.value.expected
    assert caught.value.hint or "unknown" in what  # there what is expected says all


def test_default_targets() -> None:
    fit = lambda f: BuildOptions().fitted("tensorrt_rtx", f, driver=False).targets
    assert fit(facts("fp16")) == ("SM80", "SM86", "SM89", "SM120", "SM121")
    assert fit(facts("fp16", fp8=True)) == ("SM89", "SM120", "SM121")


@pytest.mark.parametrize(
    ("target", "graph", "why"),
    [
        ("T4", facts("fp16", "fp32"), "Turing: FP32 GEMM is not supported"),
        ("7.5", facts("bf16"), "BF16"),
        ("RTX 3090", facts("fp16", fp8=True), "FP8 needs SM89"),
    ],
)
def test_targets_without_the_graphs_types(target: str, graph: GraphFacts, why: str) -> None:
    options = BuildOptions(targets=(target,))
    with pytest.raises(ExportError, match=why):
        options.fitted("tensorrt_rtx", graph, driver=False)


def test_turing_takes_a_graph_without_fp32_products() -> None:
    options = BuildOptions(targets=("T4",))
    assert options.fitted("tensorrt_rtx", facts("fp16"), driver=False).targets == ("SM75",)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"timing_cache": Path("t")}, "--timing-cache"),
        ({"hardware_compatibility": "ampere_plus"}, "--hardware-compatibility"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"strip_weights": True}, "libcuda"),
        ({"refit": True}, "libcuda"),
    ],
)
def test_what_rtx_refuses(change: dict[str, object], what: str) -> None:
    options = BuildOptions(**change)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=what):
        options.fitted("tensorrt_rtx", facts("fp16"), driver=False)
    if "libcuda" in what:
        assert options.fitted("tensorrt_rtx", facts("fp16"), driver=True).targets
    else:
        options.fitted("tensorrt", facts("fp16"), driver=True)


def test_full_tensorrt_has_no_targets() -> None:
    options = BuildOptions(targets=("L4",))
    with pytest.raises(ExportError, match="GPU of this machine"):
        options.fitted("tensorrt", facts("fp16"), driver=True)
    assert replace(options, targets=()).fitted("tensorrt", facts(), driver=True).targets == ()


@pytest.mark.parametrize(
    ("installed", "driver", "asked", "targets", "chosen"),
    [
        ({"tensorrt", "tensorrt_rtx"}, True, "auto", False, "tensorrt"),
        ({"tensorrt", "tensorrt_rtx"}, True, "auto", True, "tensorrt_rtx"),
        ({"tensorrt", "tensorrt_rtx"}, False, "auto", False, "tensorrt_rtx"),
        ({"tensorrt_rtx"}, True, "auto", False, "tensorrt_rtx"),
        ({"tensorrt"}, True, "auto", False, "tensorrt"),
        ({"tensorrt"}, True, "tensorrt", False, "tensorrt"),
        ({"tensorrt"}, True, "rtx", False, None),
        ({"tensorrt_rtx"}, True, "tensorrt", False, None),
        ({"tensorrt"}, False, "tensorrt", False, None),
        (set(), True, "auto", False, None),
    ],
)
def test_choice_of_the_library(
    installed: set[str], driver: bool, asked: str, targets: bool, chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    find = lambda name: object() if name in installed else None
    monkeypatch.setattr(library.importlib.util, "find_spec", find)
    monkeypatch.setattr(library, "has_driver", lambda: driver)
    if chosen:
        assert library.choose(asked, targets=targets) == chosen
        return
    with pytest.raises(BackendError) as caught:
        library.choose(asked, targets=targets)
    assert caught.value.exit_code == 3
    assert "pip install" in caught.value.hint or "--library rtx" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "fine"), [("10.7.0", False), ("10.8.0.43", True), ("11.4.0", True)]
)
def test_old_tensorrt(version: str, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type("Module", (), {"__version__": version})
    monkeypatch.setattr(library.importlib, "import_module", lambda name: module)
    if fine:
        assert library.version_of("tensorrt") == version
        return
    with pytest.raises(BackendError, match="too old"):
        library.version_of("tensorrt")


def test_auto_builds_nothing_that_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """RTX alone beside a Hopper GPU: refused with the cure, unless the GPU or the library is named."""
    find = lambda name: object() if name == "tensorrt_rtx" else None
    seen = Nvidia((Gpu("NVIDIA H100", (9, 0), 80 << 30, None),), "580.1", "13.0")
    monkeypatch.setattr(library.importlib.util, "find_spec", find)
    monkeypatch.setattr(library, "has_driver", lambda: True)
    monkeypatch.setattr(library, "read_nvidia", lambda: seen)
    with pytest.raises(BackendError, match=r"not support the GPU(.|\n)*H100 \(SM90\)") as caught:
        library.choose("auto")
    assert "pip install tensorrt" in caught.value.hint and "--for" in caught.value.hint
    assert library.choose("auto", targets=True) == library.choose("rtx") == "tensorrt_rtx"
    assert library.engine_for("auto") == ""
    why = library.why_no_engine("auto")
    assert "H100 (SM90): pip install tensorrt" in why and library.why_no_engine("none") == ""
    seen = replace(seen, gpus=(Gpu("NVIDIA L4", (8, 9), 24 << 30, None),))
    assert library.choose("auto") == "tensorrt_rtx" and library.engine_for("auto") == "rtx"
    assert library.why_no_engine("auto") == ""


def test_engine_of_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be built is refused before the export begins; auto without a GPU builds none."""
    monkeypatch.setattr(library, "read_nvidia", Nvidia)
    monkeypatch.setattr(library, "has_driver", lambda: False)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: object())
    assert library.engine_for("none") == library.engine_for("auto") == ""
    assert library.engine_for("rtx") == "rtx"
    with pytest.raises(ExportError, match="unknown engine"):
        library.engine_for("abacus")
    with pytest.raises(BackendError, match="builds only on the target GPU"):
        library.engine_for("tensorrt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "code"),
    [
        ("abacus", 1),
        pytest.param(
            "tensorrt", 3, marks=pytest.mark.skipif(library.has_driver(), reason="a GPU is here")
        ),
    ],
)
def test_export_refuses_an_engine_at_once(tmp_path: Path, engine: str, code: int) -> None:
    command = [sys.executable, "-m", "save_deploy", "export", "--engine", engine, "-o", "bundle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code and "expected" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
