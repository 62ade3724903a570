"""Bundles with and without engines, made once; figures for the report; a reason for every skip.

None of this ran on a GPU yet. With SAVE_GPU_DRY=1 the tests of ONNX Runtime and of the eager model run
on the CPU, to see that they run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from save_deploy.bundle import GraphSpec, Manifest
from save_deploy.export.engine.targets import RTX_TARGETS
from save_deploy.machine import read_nvidia
from save_deploy.runtime.engine_check import Machine, probe_machine
from tests.gpu.report import COLLECTOR
from tests.gpu.tree import is_dry

SHORT = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Engine:
    """A bundle with one engine in it."""

    folder: Path
    library: str
    entry: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / self.entry["file"]

    @property
    def spec(self) -> GraphSpec:
        return Manifest.read(self.folder).model

    @property
    def receipt(self) -> dict[str, Any]:
        return self.entry["receipt"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    nvidia = read_nvidia()
    if is_dry():
        return
    reason = f"no GPU: {nvidia.problem}"
    for item in items:
        if item.get_closest_marker("gpu") and not nvidia.gpus:
            # before other reasons: this one says what is missing
            item.own_markers.insert(0, pytest.mark.skip(reason=reason).mark)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines, compiled kernels and verdicts of earlier runs, and of the user, stay out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def machine() -> Machine:
    return probe_machine()


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_bundle(precision, res=...): a bundle without an engine: one that was exported before
    ($SAVE_GPU_BUNDLES/fp16_256), else exported now, once per session."""
    made: dict[tuple[str, int], Path] = {}
    before = os.environ.get("SAVE_GPU_BUNDLES")

    def make(precision: str, *, res: int = 256) -> Path:
        key = (precision, res)
        if key in made:
            return made[key]
        ready = None if before is None else Path(before) / f"{precision}_{res}"
        if ready is not None and ready.is_dir():
            made[key] = ready
        elif is_dry():
            pytest.skip(f"dry run without {precision}_{res}")
        else:
            from save_deploy.export.export import export
            from save_deploy.export.options import ExportOptions

            made[key] = tmp_path_factory.mktemp("bundles") / f"{precision}_{res}"
            export(ExportOptions(precision=precision, res=res, out=made[key], n_golden=8, rounds=3))
        return made[key]

    return make


@pytest.fixture(params=["tensorrt_rtx", "tensorrt"])
def library(request: pytest.FixtureRequest, machine: Machine) -> str:
    """Each library that is installed and knows this GPU."""
    if is_dry():
        pytest.skip("engines run on a GPU only")
    name = str(request.param)
    require_library(name, machine)
    return name


def require_library(name: str, machine: Machine) -> None:
    """Skip, with the reason, where a library is missing or has no code for this GPU."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if name in machine.broken:
        pytest.fail(f"{name} is installed and does not import: {machine.broken[name]}")
    if name == "tensorrt_rtx" and machine.gpus[0].target not in RTX_TARGETS:
        pytest.skip(f"{name} has no code for {machine.gpus[0].target}")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """figures(p50_ms=1.2): numbers that the report shows beside the test's outcome."""

    collector = request.config.stash.get(COLLECTOR, None)

    def record(**values: Any) -> None:
        request.node.user_properties.extend(values.items())
        if collector is not None:
            collector.note(request.node.nodeid, tuple(request.node.user_properties))

    return record


@pytest.fixture(scope="session")
def make_engine(
    tmp_path_factory: pytest.TempPathFactory, machine: Machine
) -> Iterator[Callable[..., Engine]]:
    """make_engine(library, precision=..., target=..., res=..., forms=...): built once per session."""
    made: dict[tuple[Any, ...], Engine] = {}

    def make(
        library: str, *, precision: str = "fp16", target: str = "tensorrt", res: int = 256,
        forms: Any = None,
    ) -> Engine:  # fmt: skip
        key = (library, precision, target, res, str(forms))
        if key not in made:
            folder = tmp_path_factory.mktemp("engines") / "bundle"
            made[key] = build(library, folder, machine, precision, target, res, forms)
        return made[key]

    yield make


def build(
    library: str, folder: Path, machine: Machine, precision: str, target: str, res: int, forms: Any
) -> Engine:
    """Export (proven on the CPU) and build for this GPU. forms: other than those of the target."""
    from save_deploy.export import options as export_options
    from save_deploy.export.engine.add import add_engine
    from save_deploy.export.engine.options import BuildOptions
    from save_deploy.export.engine.receipt import Allow
    from save_deploy.export.export import export
    from save_deploy.export.options import ExportOptions

    with pytest.MonkeyPatch.context() as patch:
        if forms is not None:
            patch.setattr(export_options, "forms_for", lambda *_, **__: forms)
        export(
            ExportOptions(
                precision=precision, target=target, res=res, out=folder, n_golden=8, rounds=3
            )
        )
    targets = (machine.gpus[0].target,) if library == "tensorrt_rtx" else ()
    entry = add_engine(
        folder,
        BuildOptions(library=SHORT[library], targets=targets),
        # what is fused is asserted where it is the subject, not here
        allow=Allow(unfused=True, fp32=True, dequantised=True, unproven=True),
    )
    return Engine(folder, library, entry)
