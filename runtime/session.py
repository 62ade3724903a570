"""A session: one loaded graph of any backend, with one checked way to call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from save_deploy.errors import BackendError
from save_deploy.specs import Arrays, GraphSpec


class Session(Protocol):
    """Context manager; `infer` maps named arrays to named arrays and checks them first."""

    backend: str
    spec: GraphSpec

    def infer(self, inputs: Arrays) -> Arrays: ...

    def close(self) -> None: ...


class OrtSession:
    """An ONNX file on ONNX Runtime. The provider asked for is the one that runs, or an error."""

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        provider: str = "CPUExecutionProvider",
        threads: int | None = None,
        low_memory: bool = False,
    ) -> None:
        """threads: within one operator; default all cores. low_memory keeps FP16 weights as they are
        (a CPU otherwise stores an FP32 copy of all) and returns activations to the system.

        Raises BackendError when the provider is not active after loading (ONNX Runtime itself falls
        back to the CPU silently).
        """
        import onnxruntime as ort

        self.backend, self.spec = "onnxruntime", spec
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = not low_memory
        if provider != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session: Any = ort.InferenceSession(
                str(path),
                options,
                providers=[provider],
                disabled_optimizers=["ConstantFolding"] if low_memory else None,
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BackendError(
                f"onnxruntime cannot run {path.name} on {provider}",
                got=str(error).splitlines()[0][:300],
                expected="a loaded session",
                hint="install the provider's libraries, or use the CPU",
            ) from error
        active = self._session.get_providers()[0]
        if active != provider:
            raise BackendError(
                "onnxruntime fell back to another provider",
                got=active,
                expected=provider,
                hint="install the provider's libraries, or use the CPU",
            )
        self._names = [output.name for output in spec.outputs]

    def infer(self, inputs: Arrays) -> Arrays:
        self.spec.check_inputs(inputs)
        outputs = self._session.run(self._names, inputs)
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_batch(array: np.ndarray) -> np.ndarray:
    """(...) -> (1,...), contiguous."""
    return np.ascontiguousarray(array[None])
