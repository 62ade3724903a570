"""Options, version requirements and node placement of ONNX Runtime's CUDA provider.

Imports neither onnxruntime nor CUDA. Written from the documentation; not tested on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from save_deploy.errors import BackendError, SaveDeployError
from save_deploy.fields import check_word
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
    """Options of backend onnxruntime-cuda; each is a setting of ONNX Runtime's provider.

    graph: capture the whole run once and replay it as one launch, which needs fixed buffers.
    tf32: round inputs of float32 products to 10 bits, which no bundle requires.
    nhwc: run convolutions channels-last.
    memory_mib: limit of the provider's arena, None for the free memory.
    arena: how it grows, to the requested size ("grow") or to powers of two ("power2").
    """

    graph: bool = True
    tf32: bool = False
    nhwc: bool = False
    memory_mib: int | None = None
    arena: str = "grow"

    def __post_init__(self) -> None:
        check_word("arena of CUDA memory", self.arena, _ARENA)
        if self.memory_mib is not None and not 64 <= self.memory_mib <= 2**20:
            raise SaveDeployError(
                "CUDA memory out of range", got=f"{self.memory_mib} MiB", expected="64 to 1048576"
            )

    @classmethod
    def parse(cls, text: str) -> CudaOptions:
        """Parse "graph=off,tf32=on,memory=4096". Raises SaveDeployError naming the wrong part."""
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
        """Return the options in the form of ONNX Runtime."""
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
    """Return the CUDA major version that a PyPI wheel of onnxruntime-gpu is built for."""
    return 13 if _numbers(version) >= CUDA_13_SINCE else 12


def require_version(version: str, nvidia: Nvidia) -> None:
    """Raise BackendError for an unsupported version of onnxruntime-gpu or of the driver.

    The version must have kernels for our graphs, and the driver must support its CUDA. Values that
    cannot be read are left to the loader.
    """
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
    """Return "1.27.0" as (1, 27), () for text that is not a version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def placement(session: Any) -> dict[str, list[str]]:
    """Return provider -> names of the nodes that the session placed there.

    Empty when this version of ONNX Runtime does not report it, or RECORD_PLACEMENT was not set.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    found: dict[str, list[str]] = {}
    for part in ask() if ask is not None else ():
        nodes = [f"{node.op_type} {node.name}".strip() for node in part.get_nodes()]
        found.setdefault(str(part.ep_name), []).extend(nodes)
    return found


def require_placement(session: Any, provider: str, file: str) -> None:
    """Raise BackendError when a node runs elsewhere, or is a copy between host and device.

    A single copy in the middle of a graph costs more time than the graph.
    """
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
