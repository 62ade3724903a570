"""Session on OpenVINO: the faster one on most CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.libraries import import_openvino
from save_deploy.runtime.session.base import BufferedSession, default_threads

INSTALL = 'pip install "save-deploy[openvino]"'


class OpenVinoSession(BufferedSession):
    """An ONNX file on OpenVINO's CPU device: one stream, f32 arithmetic whatever the CPU prefers.

    OpenVINO's own default on CPUs with bf16 instructions is bf16, which is no type of any bundle.
    """

    backend = "openvino"

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """cache_dir: where the compiled model is kept; the next start reads it instead of compiling.
        It must belong to this very file, such as a folder named after its hash.

        Raises BackendError when OpenVINO is not installed or cannot compile the graph.
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
        config = cpu_config(self.threads)
        if cache_dir is not None:
            config["CACHE_DIR"] = str(cache_dir)
        try:
            self._model: Any = openvino.Core().compile_model(path, "CPU", config)
        except RuntimeError as error:
            raise BackendError(
                f"openvino cannot run {path.name}",
                got=next((line for line in reversed(str(error).splitlines()) if line), "")[:300],
                expected="a compiled model",
                hint="--backend onnxruntime",
            ) from error
        self._tensor = openvino.Tensor
        self._request: Any = self._model.create_infer_request()
        for name, buffer in self.buffers.items():
            self._request.set_tensor(name, self._tensor(buffer, shared_memory=True))

    def _run(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))
        self._request.infer()

    def _release(self) -> None:
        self._request = self._model = None


def cpu_config(threads: int) -> dict[str, Any]:
    """Configuration of every OpenVINO run of the project."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
