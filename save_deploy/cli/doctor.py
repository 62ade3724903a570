"""save-doctor: report on this machine, and on the backends that can run a bundle here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from save_deploy.errors import SaveDeployError

if TYPE_CHECKING:
    from save_deploy.runtime.doctor import Answer, Examination

_CPU = {"openvino": "OpenVINO CPU", "onnxruntime": "CPUExecutionProvider"}  # backend -> trial


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Folder written by save-export: also list the backends that can run it."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Exit 3 unless this backend can run the bundle.", show_default=False),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the report to this file; alone: print it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List hardware, packages, backends that load, and the backends that can run a bundle."""
    from save_deploy.runtime.doctor import examine
    from save_deploy.runtime.session.open import known_backend

    if backend is not None and bundle is None:
        raise SaveDeployError(
            "--backend needs a bundle", got=f"--backend {backend} alone",
            expected="BUNDLE as well", hint=f"save-doctor BUNDLE --backend {backend}",
        )  # fmt: skip
    if backend is not None:
        named = known_backend(backend)
        backend = None if named == "auto" else named
    found = examine(bundle)
    for line in _lines(found):
        print(line)
    if json_out is not None:
        from save_deploy.files import write_text

        write_text(json_out, json.dumps(found.to_dict(), indent=2) + "\n", what="the report")
        print(f"written: {json_out}")
    _judge(found, bundle, backend)


def _judge(found: Examination, bundle: Path | None, backend: str | None) -> None:
    """Raise BackendError when the requested backend, or every backend, is refused."""
    asked = [a for a in found.answers if backend in (None, a.backend)]
    if bundle is None or any(answer.runs for answer in asked):
        return
    from save_deploy.runtime.engine_check import refusal_error

    nearest = min(asked, key=lambda answer: len(answer.refusals))
    where = f"{bundle} on {_shown(nearest.backend)}" if backend else f"{bundle}, on any backend,"
    raise refusal_error(where, nearest.refusals)


def _lines(found: Examination) -> list[str]:
    computer, machine = found.computer, found.machine
    gib = lambda n: f"{n / 2**30:.1f} GiB"
    free, total = computer["memory_available_bytes"], computer["memory_bytes"]
    lines = [*_verdict(found), ""]
    for answer in found.answers:
        lines += _answer_lines(answer)
    lines += [""] if found.answers else []
    lines += [
        f"system     {computer['system']}, Python {computer['python']}",
        f"CPU        {computer['cpu']}, {computer['cores']} cores, "
        f"{computer['threads_allowed']} threads allowed",
        f"memory     {gib(total)}, {gib(free)} available",
        f"driver     {machine.driver or machine.problem or 'unknown version'}"
        + (f", up to CUDA {machine.cuda}" if machine.cuda else ""),
    ]
    for i, gpu in enumerate(machine.gpus):
        room = gib(gpu.free_bytes) + " free" if gpu.free_bytes is not None else "free unknown"
        lines.append(
            f"GPU {i}      {gpu.name}, {gpu.target}, {gib(gpu.total_bytes)}, {room}"
            + (" (engines are checked for this GPU)" if i == 0 and len(machine.gpus) > 1 else "")
        )
    lines += ["", "packages   " + ", ".join(f"{n} {v}" for n, v in found.packages.items())]
    lines += [f"imports    {name} {version}" for name, version in machine.libraries.items()]
    lines += [f"not        {name}: {why}" for name, why in machine.broken.items()]
    if found.cuda_provider:
        lines.append(f"CUDA       {found.cuda_provider}")
    lines.append("")
    for trial in found.trials:
        lines.append(f"{'loads' if trial.works else 'not':<10} {trial.name}" + _why(trial.problem))
    return lines


def _verdict(found: Examination) -> list[str]:
    """What a user came for: what runs the bundle, or any bundle, on this machine."""
    from save_deploy.extras import install_line
    from save_deploy.runtime.session.open import ENGINE_BACKENDS

    if found.answers:
        runs = [_shown(answer.backend) for answer in found.answers if answer.runs]
        return [f"runs on    {', '.join(runs) or 'nothing here: see what is missing below'}"]
    works = {trial.name for trial in found.trials if trial.works}
    ready = [name for name, trial in _CPU.items() if trial in works]
    cuda = "CUDAExecutionProvider" in works
    engines = [_shown(n) for n in found.machine.libraries if n in ENGINE_BACKENDS]
    gpu = [*(["onnxruntime-cuda"] if cuda else []), *engines] if found.machine.gpus else []
    cpu_words = ", ".join(ready) or f"nothing: {install_line('cpu')}"
    gpu_words = ", ".join(gpu) or (
        "nothing: see what does not load below" if found.machine.gpus else "no NVIDIA GPU here"
    )
    return [f"on the CPU {cpu_words}", f"on a GPU   {gpu_words}"]


def _shown(backend: str) -> str:
    return backend.replace("_", "-")


def _why(problem: str) -> str:
    return f": {problem}" if problem else ""


def _answer_lines(answer: Answer) -> list[str]:
    memory = f", about {answer.memory_bytes / 2**20:.0f} MiB" if answer.memory_bytes else ""
    file = f" ({answer.file}{memory})" if answer.file else ""
    lines = [f"{'can run' if answer.runs else 'cannot':<10} {_shown(answer.backend)}{file}"]
    for refusal in answer.refusals:
        lines.append(f"           {refusal.what}: {refusal.got}; expected {refusal.expected}")
        lines.append(f"           next: {refusal.cure}")
    return lines
