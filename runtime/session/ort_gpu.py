"""Sessions on ONNX Runtime's GPU providers, with tensors in fixed device buffers.

Not tested on a GPU; binding, options and the fallback from a CUDA graph were tested with CPU
buffers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.libraries import import_onnxruntime
from save_deploy.runtime.session.cuda import LEGACY_STREAM, Cuda
from save_deploy.runtime.session.device import DeviceArray, device_input
from save_deploy.runtime.session.ort import CPU, CUDA, TENSORRT, OrtSession, Providers
from save_deploy.runtime.session.ort_cuda import CudaOptions

_log = logging.getLogger(__name__)


class OrtGpuSession(OrtSession):
    """An ONNX file on CUDAExecutionProvider or TensorrtExecutionProvider with fixed device buffers.

    Fixed addresses allow replaying a CUDA graph of the whole run. Calls of several threads are
    serialized. ONNX Runtime captures a graph for every calling thread, in the second run of its
    first call.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        provider: str = CUDA,
        precision: str = "fp32",
        threads: int | None = None,
        cache_dir: Path | None = None,
        weights: Sequence[str] = (),
        cuda: CudaOptions = CudaOptions(),
    ) -> None:
        """Open an ONNX file.

        precision: precision of the bundle.
        cache_dir: where TensorRT's engines are cached between starts.
        weights: files of the graph, relative to its folder.
        cuda: options of the CUDA provider.
        Raises BackendError naming what is missing when the provider cannot run here.
        """
        self._device = "cpu" if provider == CPU else "cuda"
        self.cuda = cuda

        def opened(options: CudaOptions) -> None:
            self.cuda = options
            super(OrtGpuSession, self).__init__(
                path, spec, provider=provider, threads=threads, weights=weights,
                providers=with_options(provider, precision, cache_dir, options),
            )  # fmt: skip
            if provider == CUDA and options.graph:
                self._capture()

        try:
            opened(cuda)
        except BackendError as error:
            if provider != CUDA or not cuda.graph:
                raise
            opened(
                CudaOptions(**{**vars(cuda), "graph": False})
            )  # raises what is no fault of graphs
            _log.warning("no CUDA graph, which costs speed: %s", error.got or error.what)

    def _capture(self) -> None:
        """Capture the graph in the first run, so that a failure is known before the first call."""
        nothing = {s.name: np.zeros(s.shape, s.dtype) for s in self.spec.inputs}
        try:
            self._guarded(lambda: self._run(nothing))
        except BackendError:
            self._release()
            raise

    def _bind_outputs(self) -> None:
        """Bind outputs and inputs to buffers that are kept for the life of the session."""
        self._inputs = {s.name: self._value(s.shape, s.dtype) for s in self.spec.inputs}
        self._outputs = {s.name: self._value(s.shape, s.dtype) for s in self.spec.outputs}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def _value(self, shape: tuple[int, ...], dtype: str) -> Any:
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(
            shape, np.dtype(dtype), self._device, 0
        )

    def _run(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        for name, value in self._outputs.items():
            np.copyto(self.buffers[name], value.numpy())

    def infer_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Run device arrays (DLPack or __cuda_array_interface__) and return device arrays.

        Nothing is copied through the host. Inputs are copied on the device into the session's
        buffers. Outputs are the session's own buffers, valid until its next call; torch.from_dlpack
        and cupy.from_dlpack share them.
        """
        cuda = Cuda()
        with self._lock:
            if not self._is_open:
                raise BackendError("session is closed", hint="open the bundle again")
            given = [device_input(inputs, tensor, cuda) for tensor in self.spec.inputs]
            for tensor, array in zip(self.spec.inputs, given, strict=True):
                place = self._inputs[tensor.name]
                n_bytes = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
                cuda.on_device(place.data_ptr(), array.pointer, n_bytes, LEGACY_STREAM)
            cuda.synchronize(LEGACY_STREAM)  # the provider's own stream does not wait for this one
            self._guarded(lambda: self._session.run_with_iobinding(self._binding))
            self._binding.synchronize_outputs()
            return {
                s.name: DeviceArray(self._outputs[s.name].data_ptr(), s.shape, s.dtype)
                for s in self.spec.outputs
            }

    def _release(self) -> None:
        super()._release()
        self._inputs, self._outputs = {}, {}


def with_options(
    provider: str, precision: str, cache_dir: Path | None, cuda: CudaOptions = CudaOptions()
) -> Providers:
    """Return the provider with its options and no fallback: an unsupported node is an error.

    precision: as in the manifest. Raises BackendError for one without a provider option.
    """
    if provider == CUDA:
        return [(CUDA, cuda.provider_options())]
    if provider != TENSORRT:
        return [provider]
    parts = precision.split("_")  # fp16, or the quantized MatMuls and then the floats: int8_fp16
    unknown = set(parts) - {"fp32", "fp16", "int8"}
    if unknown:
        raise BackendError(
            f"{TENSORRT} has no option for this precision",
            got=precision,
            expected="fp32, fp16, int8 or int8_fp16",
            hint="an engine of TensorRT itself: save-build BUNDLE, or --backend onnxruntime",
        )
    options = {"trt_fp16_enable": str("fp16" in parts), "trt_int8_enable": str("int8" in parts)}
    if cache_dir is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache_dir)}
    return [(TENSORRT, options)]
