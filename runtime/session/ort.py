"""Session on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.libraries import import_onnxruntime
from save_deploy.runtime.session.base import BufferedSession, Port, default_threads
from save_deploy.runtime.session.links import gathered
from save_deploy.runtime.session.providers import CPU, PROVIDERS, require_provider

PRECISE = "session.x64quantprecision"
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(half)": "float16"}

Providers = Sequence[str | tuple[str, dict[str, Any]]]


class OrtSession(BufferedSession):
    """An ONNX file on ONNX Runtime. The provider asked for is the one that runs, or an error."""

    backend = "onnxruntime"

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        provider: str = CPU,
        threads: int | None = None,
        low_memory: bool = False,
        providers: Providers | None = None,
        weights: Sequence[str] = (),
    ) -> None:
        """threads: within one operator; default all physical cores. low_memory leaves external weights
        mapped from the file (no packed copies, FP16 converted anew in every call: a third slower) and
        returns activations to the system. providers: with options, the asked one first. weights: files
        of the graph, relative to its folder.

        Raises BackendError when the provider is not active after loading (ONNX Runtime itself falls
        back to the CPU silently), BundleError when the graph has other inputs or outputs than the spec.
        """
        super().__init__(spec, threads or default_threads())
        if provider != CPU:
            require_provider(provider)
            self.backend = PROVIDERS.get(provider, self.backend)
        with gathered(path, weights) as graph:
            self._session: Any = _open(
                graph,
                session_options(self.threads, low_memory=low_memory),
                provider,
                providers or [provider],
                ["ConstantFolding"] if low_memory else None,
            )
        ports = self._session.get_inputs(), self._session.get_outputs()
        self._open_graph(path.name, *(map(_port, side) for side in ports))
        self._binding: Any = self._session.io_binding()
        self._bind_outputs()

    def _bind_outputs(self) -> None:
        for name, buffer in self.buffers.items():
            self._binding.bind_output(
                name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data
            )

    def _run(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        self._session.run_with_iobinding(self._binding)

    def _release(self) -> None:
        self._binding = self._session = None


def _port(found: Any) -> Port:
    """Of a NodeArg: `tensor(uint8)` -> uint8; sides without a number are names or None."""
    dtype = _DTYPES.get(found.type) or found.type.removeprefix("tensor(").removesuffix(")")
    sides = (side if isinstance(side, int) else None for side in found.shape or ())
    return Port(found.name, dtype, None if found.shape is None else tuple(sides))


def session_options(threads: int, *, low_memory: bool = False) -> Any:
    """onnxruntime.SessionOptions of every CPU run of the project."""
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = not low_memory
    if low_memory:
        levels = import_onnxruntime().GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
    # without VNNI two 8-bit products are added in 16 bits, which saturates: masks get lost without a
    # word; so slower kernels there (no effect on processors that have it)
    options.add_session_config_entry(PRECISE, "1")
    # threads otherwise spin on after a run, which slows whatever the application does next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open(
    path: Path, options: Any, provider: str, providers: Providers, disabled: list[str] | None
) -> Any:
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = _load(path, options, providers, disabled)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BackendError(
            f"onnxruntime cannot run {path.name} on {provider}",
            got=str(error).splitlines()[0][:300],
            expected="a loaded session",
            hint="install the provider's libraries, or use the CPU",
        ) from error
    active = session.get_providers()[0]
    if active != provider:
        raise BackendError(
            "onnxruntime fell back to another provider",
            got=active,
            expected=provider,
            hint="install the provider's libraries, or use the CPU",
        )
    return session


def _load(path: Path, options: Any, providers: Providers, disabled: list[str] | None) -> Any:
    """With precise 8-bit kernels where the graph allows them: they want weights of another sign, and
    one that two products share would be converted twice (our graphs share none; others may)."""
    load = partial(
        import_onnxruntime().InferenceSession,
        str(path),
        options,
        providers=list(providers),
        disabled_optimizers=disabled,
    )
    try:
        return load()
    except Exception as error:
        if "AddInitializedOrtValue" not in str(error):
            raise
    options.add_session_config_entry(PRECISE, "0")
    return load()
