"""Session on ONNX Runtime's GPU providers: inputs and outputs stay on the device between calls.

Not run on a GPU yet; the binding itself was run with buffers on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.libraries import import_onnxruntime
from save_deploy.runtime.session.cuda import Cuda
from save_deploy.runtime.session.device import DeviceArray, device_input
from save_deploy.runtime.session.ort import OrtSession, Providers
from save_deploy.runtime.session.providers import CPU, CUDA, TENSORRT


class OrtGpuSession(OrtSession):
    """An ONNX file on CUDAExecutionProvider or TensorrtExecutionProvider, bound to device buffers."""

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
    ) -> None:
        """precision: of the bundle. cache_dir: where TensorRT's engines are kept between starts.
        weights: files of the graph, relative to its folder.

        Raises BackendError naming what is missing when the provider cannot run here.
        """
        self._device = "cpu" if provider == CPU else "cuda"
        super().__init__(
            path,
            spec,
            provider=provider,
            threads=threads,
            providers=_with_options(provider, precision, cache_dir),
            weights=weights,
        )

    def _bind_outputs(self) -> None:
        self._inputs = {s.name: self._value(s.shape, s.dtype) for s in self.spec.inputs}
        self._outputs = {s.name: self._value(s.shape, s.dtype) for s in self.spec.outputs}
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def _value(self, shape: tuple[int, ...], dtype: str) -> Any:
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(
            shape, np.dtype(dtype), self._device, 0
        )

    def _run(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._inputs[name].update_inplace(array)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        self._session.run_with_iobinding(self._binding)
        for name, value in self._outputs.items():
            np.copyto(self.buffers[name], value.numpy())

    def infer_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Device arrays (DLPack or __cuda_array_interface__) -> device arrays, no copy to the host.

        The outputs are the session's own buffers: valid until its next call.
        """
        cuda = Cuda()
        with self._lock:
            if not self._is_open:
                raise BackendError("session is closed", hint="open the bundle again")
            given = [device_input(inputs, tensor, cuda) for tensor in self.spec.inputs]
            for tensor, array in zip(self.spec.inputs, given, strict=True):
                self._binding.bind_input(
                    tensor.name, "cuda", 0, np.dtype(tensor.dtype), tensor.shape, array.pointer
                )
            self._guarded(lambda: self._session.run_with_iobinding(self._binding))
            self._binding.synchronize_outputs()
            return {
                s.name: DeviceArray(self._outputs[s.name].data_ptr(), s.shape, s.dtype)
                for s in self.spec.outputs
            }

    def _release(self) -> None:
        super()._release()
        self._inputs, self._outputs = {}, {}


def _with_options(provider: str, precision: str, cache_dir: Path | None) -> Providers:
    """The provider with its options, and no other: what it cannot run is an error.

    precision: of the manifest. Raises BackendError for one that the provider has no option for.
    """
    if provider == CUDA:
        # TF32 would round the inputs of float32 products to 10 bits: no precision of any bundle
        return [(CUDA, {"use_tf32": "0"})]
    if provider != TENSORRT:
        return [provider]
    parts = precision.split("_")  # fp16, or the quantized products and then the floats: int8_fp16
    unknown = set(parts) - {"fp32", "fp16", "int8"}
    if unknown:
        raise BackendError(
            f"{TENSORRT} has no option for this precision",
            got=precision,
            expected="fp32, fp16, int8 or int8_fp16",
            hint="an engine of TensorRT itself: save-deploy build BUNDLE, or --backend onnxruntime",
        )
    options = {"trt_fp16_enable": str("fp16" in parts), "trt_int8_enable": str("int8" in parts)}
    if cache_dir is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache_dir)}
    return [(TENSORRT, options)]
