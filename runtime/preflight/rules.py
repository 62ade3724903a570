"""The rules: a manifest entry and a machine -> the reasons why the engine may not run there.

Nothing here opens the engine. What the rules know beside the entry is rules.json.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from save_deploy.errors import BackendError, BundleError
from save_deploy.runtime.preflight.machine import CUDA_BINDINGS, Gpu, Machine

Entry = Mapping[str, Any]
_VALID = ("VALID", "SUBOPTIMAL")


@dataclass(frozen=True)
class Refusal:
    """One reason. rule: its name, for programs; the rest as in every error text."""

    rule: str
    what: str
    got: str
    expected: str
    cure: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@functools.cache
def rules() -> dict[str, Any]:
    """rules.json."""
    text = resources.files("save_deploy.runtime.preflight").joinpath("rules.json").read_text()
    return json.loads(text)


def library_rules(entry: Entry) -> dict[str, Any]:
    """What rules.json says of the entry's library. Raises BundleError for an unknown one."""
    try:
        return rules()["libraries"][entry["library"]]
    except (KeyError, TypeError) as error:
        raise malformed(entry, f"library {error}") from error


def malformed(entry: Entry, got: str) -> BundleError:
    name = entry.get("file", "an engine") if isinstance(entry, Mapping) else "an engine"
    return BundleError(
        f"manifest entry of {name} cannot be read",
        got=got,
        expected="an entry written with this version of save-deploy",
        hint="build the engine again",
    )


def check(entry: Entry, machine: Machine, *, validity: str | None = None) -> list[Refusal]:
    """Every reason why the engine of this manifest entry may not run on the first GPU; [] = it may.

    validity: what the library's own check of the file's header said, where one was asked: VALID or
    SUBOPTIMAL lifts the version rule. Raises BundleError for an entry that cannot be read.
    """
    known = library_rules(entry)
    try:
        found = [
            *_system(entry, machine),
            *_library(entry, machine, known, validity),
            *_driver(entry, machine, known),
        ]
        if machine.gpus:
            found += [*_capability(entry, machine.gpus[0]), *_memory(entry, machine.gpus[0])]
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(entry, repr(error)) from error


def needed_bytes(entry: Entry) -> int:
    """GPU memory to have free: weights and activations, times a margin, plus the CUDA context.

    Where the builder did not tell (0): weights like the file, activations like the weights. The margin
    is a choice, not a measurement: not run on a GPU yet.
    """
    memory = rules()["memory"]
    weights = int(entry["weights_bytes"] or entry["engine_bytes"])
    planned = weights + int(entry["activation_bytes"] or weights)
    return int(planned * memory["factor"]) + memory["extra_bytes"]


def refusal_error(where: str, refusals: Sequence[Refusal]) -> BackendError:
    """The first reason as an error (exit 3) of `where`; the others in a line each below its cure."""
    first, *rest = refusals
    more = "".join(f"\nalso: {r.what} ({r.got}); {r.cure}" for r in rest)
    return BackendError(
        f"{where}: {first.what}",
        got=first.got,
        expected=first.expected,
        hint=first.cure + more,
    )


def _system(entry: Entry, machine: Machine) -> Iterator[Refusal]:
    if entry["os"] != machine.os:
        yield Refusal(
            "os",
            "engine of another operating system",
            machine.os,
            entry["os"],
            f"build the engine on {machine.os}",
        )


def _library(
    entry: Entry, machine: Machine, known: dict[str, Any], validity: str | None
) -> Iterator[Refusal]:
    name, library, built = known["name"], entry["library"], entry["library_version"]
    if CUDA_BINDINGS not in machine.libraries:
        yield Refusal(
            "cuda_bindings",
            "cuda-bindings cannot be imported",
            machine.broken.get(CUDA_BINDINGS, "not installed"),
            f"the Python package {CUDA_BINDINGS}",
            'pip install "save-deploy[cuda]"',
        )
    here = machine.libraries.get(library)
    if here is None:
        yield Refusal(
            "library",
            f"{name} cannot be imported",
            machine.broken.get(library, "not installed"),
            f"{library} {built}",
            known["install"],
        )
    elif not _runs_version(built, here, entry, known) and validity not in _VALID:
        yield Refusal(
            "version",
            f"engine of another {name}",
            f"{library} {here}",
            f"{library} {built} ({known['reason']})",
            f"build the engine again with {here}, or install {built}",
        )


def _runs_version(built: str, here: str, entry: Entry, known: dict[str, Any]) -> bool:
    wanted, found = _numbers(built), _numbers(here)
    n = min(len(wanted), len(found))  # some releases leave the build number out
    if n >= 3 and wanted[:n] == found[:n]:
        return True
    newer = known["other_version"] == "same_or_newer_if_version_compatible"
    return newer and bool(entry["version_compatible"]) and found >= wanted


def _driver(entry: Entry, machine: Machine, known: dict[str, Any]) -> Iterator[Refusal]:
    if not machine.gpus:
        yield Refusal(
            "gpu",
            "no usable NVIDIA GPU",
            machine.problem or "none",
            f"a GPU of {', '.join(entry['targets'])} with its driver",
            "install NVIDIA's driver, or use a CPU backend: --backend onnxruntime",
        )
        return
    # what is loaded here decides; the CUDA of the driver that built the engine says nothing of it
    asked = [machine.library_cuda.get(entry["library"], known["cuda"])]
    asked += [v for n, v in machine.libraries.items() if n == CUDA_BINDINGS]
    major = str(max(_numbers(version)[0] for version in asked))
    oldest = rules()["driver"].get(major, {}).get(machine.os.split("-")[0])
    too_old = oldest and machine.driver and _numbers(machine.driver) < _numbers(oldest)
    # the driver's own word covers systems and releases the table does not list
    unserved = machine.cuda is not None and _numbers(machine.cuda)[0] < int(major)
    if too_old or unserved:
        yield Refusal(
            "driver",
            "NVIDIA's driver is too old",
            f"driver {machine.driver or 'of unknown version'}, up to CUDA {machine.cuda}",
            f"driver {oldest} or newer, for CUDA {major}"
            if oldest
            else f"a driver for CUDA {major}",
            "install a newer driver, or the CUDA 12 builds of the libraries",
        )


def _capability(entry: Entry, gpu: Gpu) -> Iterator[Refusal]:
    level = entry["hardware_compatibility"]
    rule = rules()["hardware_compatibility"][level]
    targets = ", ".join(entry["targets"])
    if rule == "8.0_or_newer":
        if gpu.compute_capability < (8, 0):
            yield Refusal(
                "compute_capability",
                "GPU is older than the engine allows",
                f"{gpu.name} ({gpu.target})",
                "compute capability 8.0 or newer (ampere_plus)",
                "build the engine on this GPU",
            )
    elif gpu.target not in entry["targets"]:
        yield Refusal(
            "compute_capability",
            "engine of another compute capability",
            f"{gpu.name} ({gpu.target})",
            targets,
            f"build the engine again for {gpu.target}",
        )
    elif rule == "listed_and_same_gpu" and entry["gpu"] not in (None, gpu.name):
        yield Refusal(
            "gpu_model",
            "engine of another GPU model",
            gpu.name,
            f"{entry['gpu']} (built with hardware_compatibility none)",
            "build the engine on this GPU, or with hardware_compatibility same_compute_capability",
        )


def _memory(entry: Entry, gpu: Gpu) -> Iterator[Refusal]:
    need, free = needed_bytes(entry), gpu.free_bytes
    room = gpu.total_bytes if free is None else free
    if need > room:
        yield Refusal(
            "memory",
            "not enough GPU memory",
            f"{room / 2**20:.0f} MiB {'in all' if free is None else 'free'} on {gpu.name}",
            f"{need / 2**20:.0f} MiB (weights and activations with a margin)",
            "end other programs on this GPU, or export a smaller model",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """ "580.65.06" -> (580, 65, 6), "13.0.0rc1" -> (13, 0, 0). Raises ValueError for text."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    if found is None:
        raise ValueError(f"version {version!r}")
    return tuple(int(part) for part in found[0].split("."))
