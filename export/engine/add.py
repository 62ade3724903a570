"""Addition of an engine to a bundle and its manifest.

The manifest matches the files that it lists at every moment, even when the process is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from save_deploy.bundle import GRAPHS, MANIFEST, FileRecord, Manifest, sha256_of
from save_deploy.errors import ExportError, ParityError
from save_deploy.export.engine import cache, library
from save_deploy.export.engine.build import BuildResult, build_engine
from save_deploy.export.engine.graph import GraphFacts, external_files, read_graph
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Allow, failures
from save_deploy.machine import read_nvidia
from save_deploy.onnx_files import weight_files
from save_deploy.partials import partial_folder
from save_deploy.runtime.engine_check import system_name
from save_deploy.runtime.engine_trust import note_built_here

EXPORT_AGAIN = "export the checkpoint again with --target tensorrt"
FILES = {"tensorrt": "model.plan", "tensorrt_rtx": "model.rtx.plan"}
_HEADER_BYTES = 32


@dataclass(frozen=True)
class EnginePlan:
    """A planned build. `options` are resolved for the library and the graph."""

    bundle: Path
    module: str
    version: str
    options: BuildOptions
    facts: GraphFacts
    key: str
    cached: bool
    file: str
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the plan as lines for the terminal."""
        options = self.options.to_dict()
        given = [f"{k}={v}" for k, v in options.items() if v and k not in ("library", "targets")]
        given = [g for g in given if g != "hardware_compatibility=none"]
        return [
            f"bundle:   {self.bundle}",
            f"library:  {self.module} {self.version}",
            f"targets:  {', '.join(self.options.targets) or 'the GPU of this machine'}",
            f"options:  strongly typed{''.join(f', {g}' for g in given)}",
            f"MatMuls:  {self.facts.precision}; {len(self.facts.attentions)} attentions",
            f"inputs:   {'; '.join(self.facts.inputs)}",
            f"outputs:  {'; '.join(self.facts.outputs)}",
            f"engine:   {self.file}, {'in the cache' if self.cached else 'not in the cache'}"
            f" ({self.key[:12]})",
            *(f"note:     {note}" for note in self.notes),
        ]


def plan_engine(bundle: Path, options: BuildOptions) -> EnginePlan:
    """Check the bundle, the library and the options without building.

    Raises BundleError, BackendError or ExportError.
    """
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    weight_files(bundle / GRAPHS[0], manifest.files)
    module = library.choose(options.library, targets=bool(options.targets))
    onnx = bundle / "model.onnx"
    facts = read_graph(onnx)
    fitted = options.fitted(module, facts, driver=library.has_driver())
    version = library.version_of(module)
    rtx = module == "tensorrt_rtx"
    key = cache.key_of(onnx, fitted, module, version, "" if rtx else _gpu())
    gpus = read_nvidia().gpus
    here = None if rtx or not gpus else gpus[0].name
    targets = fitted.targets if rtx or not gpus else (gpus[0].target,)
    return EnginePlan(
        bundle, module, version, fitted, facts, key, cache.lookup(key) is not None,
        file=engine_file(manifest, module, targets, fitted.hardware_compatibility, here),
        notes=tuple(_notes(manifest, fitted, facts, rtx=rtx)),
    )  # fmt: skip


def _notes(
    manifest: Manifest, options: BuildOptions, facts: GraphFacts, *, rtx: bool
) -> Iterator[str]:
    """Yield notes for the user before a build."""
    if rtx and options.optimization_level is not None:
        yield "TensorRT-RTX was found to ignore the optimization level"
    form = manifest.merge.get("target")
    if form in ("portable", "onnxruntime", "openvino") or (form is None and facts.splits_windows):
        yield (
            f"this bundle has the {form or 'portable'} form of the graph, for which TensorRT builds "
            f"more kernels than for its own form: {EXPORT_AGAIN}"
        )


def engine_file(
    manifest: Manifest,
    module: str,
    targets: Sequence[str],
    compatibility: str = "none",
    gpu: str | None = None,
) -> str:
    """Return the file name of an engine: one per set of targets, so engines of other GPUs remain.

    gpu: GPU model to which an engine without hardware compatibility is bound.
    """
    bound = gpu if compatibility == "none" else None
    for entry in manifest.engines:
        same = (module, list(targets), compatibility) == tuple(
            entry.get(key) for key in ("library", "targets", "hardware_compatibility")
        )
        if same and (bound is None or entry.get("gpu") in (None, bound)):
            return str(entry["file"])
    plain = FILES[module]
    if plain not in manifest.files:
        return plain
    words = [*targets, *([] if compatibility == "none" else [compatibility]), bound or ""]
    slug = re.sub(r"[^a-z0-9]+", "_", " ".join(words).lower()).strip("_")
    return plain.replace("model.", f"model.{slug}.", 1)


def add_engine(
    bundle: Path,
    options: BuildOptions | None = None,
    *,
    allow: Allow | None = None,
    use_cache: bool = True,
    on_line: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Add an engine to a bundle and return its manifest entry.

    An engine of the same library for the same GPUs is replaced, others stay.

    The engine is built or taken from the cache, and its receipt is checked. An existing engine of
    the same library is replaced.
    Raises the errors of `plan_engine` and `build_engine`, and ParityError when the receipt fails.
    The bundle is unchanged after an error.
    """
    plan = plan_engine(bundle, options or BuildOptions())
    onnx = bundle / "model.onnx"
    for note in plan.notes:
        on_line(f"note: {note}")
    with partial_folder(bundle / FILES[plan.module]) as folder:
        build: Callable[[Path], BuildResult] = lambda out: build_engine(
            onnx, out, plan.options, on_line=on_line
        )
        if use_cache and cache.usable():
            result, _ = cache.get_or_build(plan.key, build, folder / "engine", on_line=on_line)
        else:
            result = build(folder / "engine")
        problems = failures(result.receipt, allow or Allow())
        if problems:
            raise ParityError(
                "the engine does not match the graph; the bundle was not changed",
                got="\n".join(problems),
                expected="a kernel of the requested type for every MatMul and attention",
                hint="export with --target tensorrt, or save-build BUNDLE with the option named above",
            )
        entry = _entry(plan, result, folder / "engine", onnx)
        engine = f"{plan.module} {plan.version}, for {bundle.absolute()}"
        if not note_built_here(sha256_of(folder / "engine"), engine):
            on_line("note: the cache cannot be written, so this engine will need --trust-engine")
        with _alone(bundle):
            _put(bundle, folder, entry)
    return entry


def _put(bundle: Path, folder: Path, entry: dict[str, Any]) -> None:
    """Remove the old entry, add the file, add the new entry, which gets the name of its file.

    The manifest is valid after each step.
    """
    manifest = Manifest.read(bundle)
    name = engine_file(
        manifest,
        entry["library"],
        entry["targets"],
        entry["hardware_compatibility"],
        entry["gpu"] if entry["library"] == "tensorrt" else None,
    )
    entry["file"] = name
    files = {n: record for n, record in manifest.files.items() if n != name}
    engines = tuple(e for e in manifest.engines if e["file"] != name)
    if len(files) < len(manifest.files) or len(engines) < len(manifest.engines):
        _write(replace(manifest, files=files, engines=engines), folder, bundle)
    engine = folder / "engine"
    record = FileRecord(sha256_of(engine), engine.stat().st_size)
    os.chmod(engine, 0o644)
    os.replace(engine, bundle / name)
    after = replace(manifest, files={**files, name: record}, engines=(*engines, entry))
    _write(after, folder, bundle)


def _write(manifest: Manifest, folder: Path, bundle: Path) -> None:
    manifest.write(folder)
    os.replace(folder / MANIFEST, bundle / MANIFEST)


def _entry(plan: EnginePlan, result: BuildResult, engine: Path, onnx: Path) -> dict[str, Any]:
    with engine.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    device, receipt = result.device, result.receipt
    graph = external_files(onnx)
    # a stripped engine file does not contain the weights, which are read from these files
    stripped = sum(p.stat().st_size for p in graph) if plan.options.strip_weights else 0
    return {
        "file": plan.file,
        "library": result.library,
        "library_version": result.version,
        "targets": list(result.targets),
        "hardware_compatibility": plan.options.hardware_compatibility,
        "version_compatible": plan.options.version_compatible,
        "os": system_name(),
        "gpu": device.get("gpu"),
        "driver": device.get("driver"),
        "cuda": device.get("cuda"),  # the newest version the driver supports; no rule uses it
        "onnx_sha256": sha256_of(onnx),
        "onnx_data_sha256": sha256_of(graph[1]) if len(graph) > 1 else None,
        "engine_bytes": engine.stat().st_size,
        "activation_bytes": receipt.activation_bytes or 0,  # 0: not reported
        "weights_bytes": receipt.weights_bytes or stripped,  # 0: not reported
        "header": header.hex(),  # only older runtimes read it
        "options": plan.options.to_dict(),
        "receipt": receipt.to_dict(),
    }


def _gpu() -> str:
    """Return GPU model and driver, on which an engine of full TensorRT depends."""
    found = read_nvidia()
    return f"{found.gpus[0].name if found.gpus else ''} {found.driver} {found.cuda}"


@contextlib.contextmanager
def _alone(bundle: Path) -> Iterator[None]:
    """Lock the bundle against other processes. The system releases the lock of a dead process."""
    try:
        folder = os.open(bundle, os.O_RDONLY)
    except OSError as error:
        raise ExportError("the bundle cannot be opened", got=str(error),
                          expected="a readable folder") from error  # fmt: skip
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
