"""ONNX Runtime's CUDA provider: its options, what its versions need, and where nodes were placed.

Imports neither onnxruntime nor CUDA. Written against documentation; not run on a GPU yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from save_deploy.errors import BackendError, SaveDeployError
from save_deploy.machine import Nvidia

# session option: the session remembers which provider every node was given to (1.24 and newer)
RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
# wheels of this version and newer are built for CUDA 13, older ones for CUDA 12
CUDA_13_SINCE = (1, 27)
# older ones have no CUDA kernel for Pad of opset 19, which bundles use
PAD_19_SINCE = (1, 25)
DRIVER_OF = {12: "525", 13: "580"}  # the oldest driver on Linux that serves each
_ARENA = {"power2": "kNextPowerOfTwo", "grow": "kSameAsRequested"}
_SWITCHES = {"on": True, "off": False}
_MIB = 2**20
_SHOWN = 5


@dataclass(frozen=True)
class CudaOptions:
    """Of backend onnxruntime-cuda; every one is a setting of ONNX Runtime's provider.

    graph: the whole run is captured once and replayed as one launch, which takes fixed buffers; tf32:
    inputs of float32 products are rounded to 10 bits, which no bundle asks for; nhwc: convolutions
    with channels last; memory_mib: what the provider's arena may take, None: what is free; arena: by
    how much it grows, to what was asked ("grow") or to powers of two ("power2").
    """

    graph: bool = True
    tf32: bool = False
    nhwc: bool = False
    memory_mib: int | None = None
    arena: str = "grow"

    def __post_init__(self) -> None:
        if self.arena not in _ARENA:
            raise SaveDeployError(
                "unknown arena of CUDA memory", got=self.arena, expected=", ".join(_ARENA)
            )
        if self.memory_mib is not None and not 64 <= self.memory_mib <= 2**20:
            raise SaveDeployError(
                "CUDA memory out of range", got=f"{self.memory_mib} MiB", expected="64 to 1048576"
            )

    @classmethod
    def parse(cls, text: str) -> CudaOptions:
        """ "graph=off,tf32=on,memory=4096" -> options. Raises SaveDeployError naming the wrong part."""
        found = cls()
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, _, value = part.partition("=")
            if key in ("graph", "tf32", "nhwc") and value in _SWITCHES:
                switched: dict[str, Any] = {key: _SWITCHES[value]}
                found = replace(found, **switched)
            elif key == "memory" and re.fullmatch(r"\d{1,7}", value):
                found = replace(found, memory_mib=int(value))
            elif key == "arena":
                found = replace(found, arena=value)
            else:
                raise SaveDeployError(
                    "unknown CUDA option",
                    got=part[:80],
                    expected="graph=on|off, tf32=on|off, nhwc=on|off, memory=MIB, arena=grow|power2",
                )
        return found

    def provider_options(self) -> dict[str, str]:
        """As ONNX Runtime takes them."""
        options = {
            "enable_cuda_graph": str(int(self.graph)),
            "use_tf32": str(int(self.tf32)),
            "prefer_nhwc": str(int(self.nhwc)),
            "arena_extend_strategy": _ARENA[self.arena],
        }
        if self.memory_mib is not None:
            options["gpu_mem_limit"] = str(self.memory_mib * _MIB)
        return options


def cuda_of(version: str) -> int:
    """CUDA's major version that a wheel of onnxruntime-gpu from PyPI is built for."""
    return 13 if _numbers(version) >= CUDA_13_SINCE else 12


def require_version(version: str, nvidia: Nvidia) -> None:
    """Raise BackendError where this onnxruntime-gpu lacks a kernel of our graphs, or where the driver
    does not serve its CUDA. What cannot be read is left to the loader."""
    if (numbers := _numbers(version)) and numbers < PAD_19_SINCE:
        raise BackendError(
            "this onnxruntime-gpu is too old: it has no CUDA kernel for Pad of opset 19",
            got=f"onnxruntime-gpu {version}",
            expected="1.25 or newer",
            hint='pip install "onnxruntime-gpu>=1.27" (CUDA 13), or "onnxruntime-gpu>=1.25,<1.27" '
            "(CUDA 12)",
        )
    needed, served = cuda_of(version), _numbers(nvidia.cuda or "")
    if served and served[0] < needed:
        cure = f"install NVIDIA's driver {DRIVER_OF[needed]} or newer"
        if needed == 13 and served[0] == 12:
            cure += ', or pip install "onnxruntime-gpu>=1.25,<1.27", which is built for CUDA 12'
        raise BackendError(
            f"onnxruntime-gpu {version} is built for CUDA {needed}",
            got=f"driver {nvidia.driver or 'of unknown version'}, up to CUDA {nvidia.cuda}",
            expected=f"a driver for CUDA {needed}",
            hint=f"{cure}, or --backend onnxruntime",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """ "1.27.0" -> (1, 27); empty for what is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def placement(session: Any) -> dict[str, list[str]]:
    """Provider -> names of its nodes, as the session has placed them. Empty where this version of ONNX
    Runtime does not tell, or was not asked to remember (RECORD_PLACEMENT)."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    found: dict[str, list[str]] = {}
    for part in ask() if ask is not None else ():
        nodes = [f"{node.op_type} {node.name}".strip() for node in part.get_nodes()]
        found.setdefault(str(part.ep_name), []).extend(nodes)
    return found


def require_placement(session: Any, provider: str, file: str) -> None:
    """Raise BackendError where a node runs anywhere else, or is a copy between host and device: one of
    them in the middle of a graph costs more than the graph."""
    found = placement(session)
    elsewhere = {name: nodes for name, nodes in found.items() if name != provider}
    copies = [node for node in found.get(provider, ()) if node.startswith("Memcpy")]
    if copies:
        elsewhere["between host and device"] = copies
    if elsewhere:
        raise BackendError(
            f"nodes of {file} do not run on {provider}",
            got="; ".join(_counted(where, nodes) for where, nodes in elsewhere.items()),
            expected=f"every node on {provider}, no copies between them",
            hint="export again with --target portable, or --backend onnxruntime",
        )


def _counted(where: str, nodes: Sequence[str]) -> str:
    more = f", and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return f"{len(nodes)} on {where}: {_joined(nodes[:_SHOWN])}{more}"


def _joined(names: Iterable[str]) -> str:
    return ", ".join(name[:60] for name in names)
