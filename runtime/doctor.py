"""Report on this machine: installed backends, those that really load, and those a bundle can use.

The list of compiled-in providers does not show which ones load, so each is tried on a graph of one
node in a separate process, which may print and crash. torch is not imported.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from save_deploy.bundle import Manifest
from save_deploy.errors import BackendError
from save_deploy.extras import EXTRA_OF, install_line
from save_deploy.libraries import import_onnxruntime
from save_deploy.machine import (
    Nvidia,
    allowed_cores,
    available_bytes,
    cpu_name,
    version,
    versions,
)
from save_deploy.runtime.engine_check import (
    GRAPH,
    Machine,
    Refusal,
    engine_refusals,
    estimated_bytes,
    probe_machine,
)
from save_deploy.runtime.engine_trust import trust_refusals
from save_deploy.runtime.session.choose import BUILD
from save_deploy.runtime.session.open import CPU_BACKENDS, ENGINE_BACKENDS, cpu_bytes, graph_bytes
from save_deploy.runtime.session.ort import PROVIDERS, require_provider
from save_deploy.runtime.session.ort_cuda import cuda_of, require_version

_TRIAL_TIMEOUT_S = 60
# y = Relu(x) on one float, opset 17
_ONE_NODE = (
    "08083a350a0c0a0178120179220452656c7512036f6e655a0f0a0178120a0a08080112040a0208"
    "01620f0a0179120a0a08080112040a02080142040a001011"
)
_TRY_PROVIDER = f"""
import json, sys
import numpy
from save_deploy.libraries import import_onnxruntime
onnxruntime = import_onnxruntime()
wanted = sys.argv[1]
if wanted != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession(bytes.fromhex("{_ONE_NODE}"), providers=[wanted])
session.run(None, {{"x": numpy.ones(1, "f")}})
print(json.dumps(session.get_providers()[0]))
"""
_TRY_OPENVINO = f"""
import json
import numpy
from save_deploy.libraries import import_openvino
core = import_openvino().Core()
model = core.read_model(bytes.fromhex("{_ONE_NODE}"))
for device in core.available_devices:
    core.compile_model(model, device)([numpy.ones(1, "f")])
print(json.dumps("CPU" if "CPU" in core.available_devices else ""))
"""


@dataclass(frozen=True)
class Trial:
    """Trial of one provider on a graph of one node.

    active: the provider that ran.
    problem: why the requested one did not run.
    """

    name: str
    works: bool
    active: str
    problem: str


@dataclass(frozen=True)
class Answer:
    """Whether `file` of the bundle could run on a backend.

    memory_bytes: estimate; GPU memory for GPU backends.
    """

    backend: str
    file: str
    memory_bytes: int | None
    refusals: tuple[Refusal, ...]

    @property
    def runs(self) -> bool:
        return not self.refusals


@dataclass(frozen=True)
class Examination:
    """Full report. answers: empty without a bundle."""

    computer: dict[str, Any]
    machine: Machine
    packages: dict[str, str]
    trials: tuple[Trial, ...]
    cuda_provider: str
    answers: tuple[Answer, ...]

    def to_dict(self) -> dict[str, Any]:
        answers = [{"runs": a.runs, **asdict(a)} for a in self.answers]
        return {**asdict(self), "machine": self.machine.to_dict(), "answers": answers}


def examine(bundle: Path | None = None) -> Examination:
    """Examine the machine and, if given, a bundle. Raises BundleError for an altered bundle."""
    manifest = None
    if bundle is not None:
        manifest = Manifest.read(bundle)
        manifest.verify(bundle)
    machine, trials = probe_machine(), run_trials()
    answers: tuple[Answer, ...] = ()
    if bundle is not None and manifest is not None:
        answers = tuple(_answers(bundle, manifest, machine, trials))
    packages = {n: v for n, v in versions().items() if n != "python"}
    return Examination(_computer(), machine, packages, trials, _cuda_provider(machine), answers)


def _cuda_provider(machine: Machine) -> str:
    """Return the CUDA version that onnxruntime-gpu needs, and any problem with this machine.

    "" when onnxruntime-gpu is not installed.
    """
    found = version("onnxruntime-gpu")
    if not found:
        return ""
    text = f"onnxruntime-gpu {found} is built for CUDA {cuda_of(found)}"
    nvidia = Nvidia(machine.gpus, machine.driver, machine.cuda, machine.problem)
    try:
        require_version(found, nvidia)
    except BackendError as error:
        return f"{text}; {error.what}; next: {error.hint}"
    return text if machine.gpus else f"{text}; no GPU here"


def run_trials() -> tuple[Trial, ...]:
    """Try every provider of the installed onnxruntime, and OpenVINO if installed."""
    names = []
    if version("onnxruntime-gpu") or version("onnxruntime"):
        names = import_onnxruntime().get_available_providers()
    started = [(name, name, _start(_TRY_PROVIDER, name)) for name in names]
    if version("openvino"):
        started.append(("OpenVINO CPU", "CPU", _start(_TRY_OPENVINO)))
    return tuple(_result(name, wanted, process) for name, wanted, process in started)


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _result(name: str, wanted: str, process: subprocess.Popen[str]) -> Trial:
    try:
        out, err = process.communicate(timeout=_TRIAL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Trial(name, False, "", f"no answer in {_TRIAL_TIMEOUT_S} s")
    lines = out.strip().splitlines()
    active = json.loads(lines[-1]) if process.returncode == 0 and lines else ""
    if active == wanted:
        return Trial(name, True, active, "")
    return Trial(name, False, active, _reason(name, err, active))


def _reason(provider: str, stderr: str, active: str) -> str:
    """Return why a provider did not run.

    Our own check is more precise than the library's output.
    """
    try:
        if provider in PROVIDERS:
            require_provider(provider)
    except BackendError as error:
        return error.got or error.what
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"ran on {active or 'nothing'}"


def _answers(
    bundle: Path, manifest: Manifest, machine: Machine, trials: Iterable[Trial]
) -> Iterable[Answer]:
    tried = {trial.name: trial for trial in trials}
    cpu = {"onnxruntime": "CPUExecutionProvider", "openvino": "OpenVINO CPU"}
    for backend in CPU_BACKENDS:
        yield _cpu_answer(backend, bundle, tried.get(cpu[backend]))
    for provider, backend in PROVIDERS.items():
        memory = 2 * graph_bytes(bundle / GRAPH)  # weights, and activations of about their size
        yield Answer(backend, GRAPH, memory, tuple(_provider_refusals(provider)))
    for library in ENGINE_BACKENDS:
        entries = [entry for entry in manifest.engines if entry.get("library") == library]
        for entry in entries:
            found = engine_refusals(entry, bundle, manifest.files, machine, hashed=True)
            found += trust_refusals(entry, manifest.files)
            yield Answer(library, entry["file"], estimated_bytes(entry), tuple(found))
        if not entries:
            none = Refusal(
                "no_engine", "the bundle has none", "no engine", "an engine", BUILD[library]
            )
            yield Answer(library, "", None, (none,))


def _cpu_answer(backend: str, bundle: Path, trial: Trial | None) -> Answer:
    available, found = available_bytes(), []
    # ONNX Runtime can leave the weights in the file when packed copies do not fit
    fast, small = cpu_bytes(bundle / GRAPH), graph_bytes(bundle / GRAPH)
    memory = small if backend == "onnxruntime" and fast > available else fast
    if trial is None or not trial.works:
        problem = trial.problem if trial is not None else "not installed"
        cure = install_line(EXTRA_OF[backend])
        found.append(Refusal("package", f"{backend} does not load", problem, backend, cure))
    if memory > available:
        got, need = f"{available / 2**20:.0f} MiB free", f"{memory / 2**20:.0f} MiB"
        cure = "end other programs, or --backend onnxruntime"
        found.append(Refusal("memory", "not enough memory", got, need, cure))
    return Answer(backend, GRAPH, memory, tuple(found))


def _provider_refusals(provider: str) -> Iterable[Refusal]:
    try:
        require_provider(provider)
    except BackendError as error:
        yield Refusal("provider", error.what, error.got, error.expected, error.hint)


def _computer() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads_allowed": allowed_cores(),
        "memory_bytes": memory.total,
        "memory_available_bytes": available_bytes(),
    }
