"""Session on OpenVINO, the fastest backend on most CPUs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays, GraphSpec, TensorSpec
from save_deploy.errors import BackendError
from save_deploy.libraries import import_openvino
from save_deploy.runtime.session.base import BufferedSession, Port, default_threads, mismatch
from save_deploy.runtime.session.compiled import Cache, keep, read_kept
from save_deploy.runtime.session.links import gathered

_DTYPES = {
    "f32": "float32", "f16": "float16", "f64": "float64", "i8": "int8", "i32": "int32", "i64": "int64",
    "u8": "uint8", "boolean": "bool",
}  # fmt: skip
INSTALL = 'pip install "save-deploy[openvino]"'


class OpenVinoSession(BufferedSession):
    """An ONNX file on OpenVINO's CPU device, with one stream and f32 arithmetic.

    On CPUs with bf16 instructions OpenVINO would compute in bf16 by default.
    """

    backend = "openvino"

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        threads: int | None = None,
        streams: int = 1,
        cache: Cache | None = None,
        weights: Sequence[str] = (),
    ) -> None:
        """threads: of all calls together; default all physical cores.
        streams: calls that run at the same time, of this session and its twins.
        cache: where the compiled model is kept; the next start maps it instead of compiling.
        weights: files of the graph, relative to its folder.

        Raises BackendError when OpenVINO is not installed or cannot compile the graph, BundleError when
        the graph has other inputs or outputs than the spec.
        """
        try:
            openvino = import_openvino()
        except ImportError as error:
            raise BackendError(
                "openvino is not installed",
                got=str(error),
                expected="the package openvino",
                hint=f"{INSTALL}, or --backend onnxruntime",
            ) from error
        super().__init__(spec, threads or default_threads())
        try:
            config = cpu_config(self.threads, streams)
            self._model, self._mapped = _compiled(path, weights, config, cache)
        except RuntimeError as error:
            raise BackendError(
                f"openvino cannot run {path.name}",
                got=next((line for line in reversed(str(error).splitlines()) if line), "")[:300],
                expected="a compiled model",
                hint="--backend onnxruntime",
            ) from error
        self._tensor = openvino.Tensor
        ports = self._model.inputs, self._model.outputs
        self._open_graph(path.name, *map(_ports, ports, (spec.inputs, spec.outputs)))

    def _bind(self) -> None:
        self._request: Any = self._model.create_infer_request()
        # into a buffer of ours it writes nothing at all, without a word, where an open shape grows
        self._open = {n for n in self.buffers if self._model.output(n).partial_shape.is_dynamic}
        for name in self.buffers.keys() - self._open:
            self._request.set_tensor(name, self._tensor(self.buffers[name], shared_memory=True))

    def _run(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))
        self._request.infer()
        for name in self._open:
            found, buffer = self._request.get_tensor(name), self.buffers[name]
            if tuple(found.shape) != buffer.shape:
                raise mismatch(
                    f"the graph gives another {name} than the manifest says",
                    got=f"{tuple(found.shape)}",
                    expected=f"{buffer.shape}",
                )
            buffer[...] = found.data

    def _release(self) -> None:
        self._request = self._model = None
        self._mapped = None  # after the model, which reads it


def _compiled(
    path: Path, weights: Sequence[str], config: dict[str, Any], cache: Cache | None
) -> tuple[Any, Any]:
    """The compiled model, taken from the cache folder or put there, and the memory that it reads."""
    core = import_openvino().Core()
    place = None if cache is None else cache.folder / _blob_name(core, config)
    if place is not None and (found := _imported(core, place, config)) is not None:
        return found
    with gathered(path, weights) as graph:
        model = core.compile_model(graph, "CPU", config)
    if cache is None or place is None or cache.confirm is None:
        return model, None
    cache.confirm()
    with contextlib.suppress(RuntimeError):  # a graph that cannot be kept is compiled every time
        if keep(place, model.export_model().getbuffer()):
            # it shares its weights with other processes
            return _imported(core, place, config) or (model, None)
    return model, None


def _blob_name(core: Any, config: dict[str, Any]) -> str:
    cpu = [
        core.get_property("CPU", f"{what}")
        for what in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
    ]
    key = json.dumps([import_openvino().get_version(), cpu, config], sort_keys=True)
    return f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.blob"


def _imported(core: Any, place: Path, config: dict[str, Any]) -> tuple[Any, Any] | None:
    """The cached model and the mapped file that it reads; None when it is missing or damaged."""
    if (kept := read_kept(place)) is None:
        return None
    tensor = import_openvino().Tensor(np.frombuffer(kept, np.uint8), shared_memory=True)
    with contextlib.suppress(RuntimeError):
        return core.import_model(tensor, "CPU", config), (kept, tensor)
    return None


def _ports(found: Sequence[Any], wanted: Sequence[TensorSpec]) -> Iterator[Port]:
    """Return the ports; of several names of a port, that of the spec."""
    known = {spec.name for spec in wanted}
    for port in found:
        names, sides = sorted(port.get_names()), port.partial_shape
        name = next((n for n in names if n in known), next(iter(names), "without a name"))
        kind = port.element_type.get_type_name()
        shape = tuple(s.get_length() if s.is_static else None for s in sides) if (
            sides.rank.is_static) else None  # fmt: skip
        yield Port(name, _DTYPES.get(kind, kind), shape)


def cpu_config(threads: int, streams: int = 1) -> dict[str, Any]:
    """Return the configuration of every OpenVINO run of the project. threads: of all streams."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
    }
