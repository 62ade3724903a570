"""Kernels that ran each quantized MatMul, read from the profile of a backend.

A Q/DQ graph only requests INT8: a bias of another rank or a misplaced activation makes a backend
compute in float32 silently. So the graph is run once, and the profile of the run is read.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays
from save_deploy.errors import BackendError
from save_deploy.libraries import import_onnxruntime, import_openvino
from save_deploy.runtime.session import default_threads
from save_deploy.runtime.session.openvino import INSTALL, cpu_config
from save_deploy.runtime.session.ort import session_options

NOT_FOUND = "not found"
# ONNX Runtime's operators that multiply 8-bit integers; every other MatMul multiplies floats
_INT8_OPS = frozenset(
    ("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul")
)
_INT8_TYPE = re.compile(r"(?:^|_)(?:[iu]8|u?int8)(?:_|$)", re.IGNORECASE)  # brgemm_avx512_i8
_PRODUCT = re.compile(r"MatMul|Gemm|FullyConnected")
_KERNEL_EVENT = "_kernel_time"


@dataclass(frozen=True)
class KernelCheck:
    """Kernels of the given MatMuls.

    not_int8: MatMuls that ran otherwise or were not found, as `node: operator (type)`.
    kinds: kernel type -> number of the given MatMuls, including `not found`.
    """

    backend: str
    asked: int
    int8: int
    not_int8: tuple[str, ...]
    kinds: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "not_int8": list(self.not_int8)}


@dataclass(frozen=True)
class _Executed:
    """One executed MatMul: node name, kernel type, and its description for reports."""

    name: str
    kind: str
    text: str
    int8: bool


def executed_kernels(
    backend: str, path: Path, matmuls: Sequence[str], inputs: Arrays, *, threads: int | None = None,
    small_weights: bool = False,
) -> KernelCheck:  # fmt: skip
    """Run an ONNX file once on a backend (onnxruntime, openvino) and return its MatMul kernels.

    matmuls: names of MatMul nodes of the file.
    inputs: all inputs of the graph.
    small_weights: as in Content.
    A MatMul that became several kernels counts as INT8 when all of them are INT8. Raises
    BackendError for an unknown, missing or failing backend.
    """
    onnxruntime = partial(_run_onnxruntime, small_weights=small_weights)
    readers: dict[str, Callable[[Path, Arrays, int], list[_Executed]]] = {
        "onnxruntime": onnxruntime,
        "openvino": _run_openvino,
    }
    if backend not in readers:
        raise BackendError("unknown backend", got=backend, expected=", ".join(readers))
    inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    return _check(backend, matmuls, readers[backend](path, inputs, threads or default_threads()))


def _check(backend: str, matmuls: Sequence[str], executed: Iterable[_Executed]) -> KernelCheck:
    kinds: Counter[str] = Counter()
    not_int8 = []
    executed = tuple(executed)
    for name in matmuls:
        found = [kernel for kernel in executed if _belongs(kernel.name, name)]
        found.sort(key=lambda kernel: kernel.int8)  # a float kernel first: it decides
        kinds[found[0].kind if found else NOT_FOUND] += 1
        if not found or not found[0].int8:
            not_int8.append(f"{name}: {found[0].text if found else NOT_FOUND}")
    asked = len(matmuls)
    return KernelCheck(backend, asked, asked - len(not_int8), tuple(not_int8), dict(kinds))


def _belongs(executed: str, matmul: str) -> bool:
    """Return True when an executed node is part of a MatMul.

    `x/matmul/MatMulAddFusion` is part of `x/matmul`; `x/matmul_2` and `x/matmul.a` are not.
    """
    executed = executed.removeprefix("fused ")  # ONNX Runtime's MatMuls with an activation
    rest = executed.removeprefix(matmul)
    return executed.startswith(matmul) and (not rest or not re.match(r"[\w.]", rest))


def _run_onnxruntime(
    path: Path, inputs: Arrays, threads: int, *, small_weights: bool
) -> list[_Executed]:
    """Return the MatMuls in ONNX Runtime's profile of one run, with the options of OrtSession."""
    ort = import_onnxruntime()
    with tempfile.TemporaryDirectory(prefix="save-deploy-profile-") as folder:
        options = session_options(threads, small_weights=small_weights)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            session.run(None, inputs)
            events = json.loads(Path(session.end_profiling()).read_text())
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise _cannot_run("onnxruntime", path, str(error).splitlines()) from error
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL_EVENT)]
    return [_of_event(e) for e in nodes if _PRODUCT.search(e["args"]["op_name"])]


def _of_event(event: dict[str, Any]) -> _Executed:
    args = event["args"]
    kind = args["op_name"]
    # [{"float": [1, 8, 16]}, ...]: the type of the first input stands for the MatMul
    dtype = next((str(next(iter(shape))) for shape in args.get("input_type_shape", [])), "?")
    text = f"{kind} ({'float32' if dtype == 'float' else dtype})"
    return _Executed(event["name"].removesuffix(_KERNEL_EVENT), kind, text, kind in _INT8_OPS)


def _run_openvino(path: Path, inputs: Arrays, threads: int) -> list[_Executed]:
    """Return the MatMuls in OpenVINO's counters of one run, with the options of OpenVinoSession."""
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise BackendError(
            "openvino is not installed",
            got=str(error),
            expected="the package openvino",
            hint=f"{INSTALL}, or check onnxruntime alone",
        ) from error
    config = {**cpu_config(threads), "PERF_COUNT": True}
    try:
        request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
        request.infer(inputs)
    except RuntimeError as error:
        raise _cannot_run("openvino", path, str(error).splitlines()[::-1]) from error
    return [
        _Executed(
            info.node_name,
            info.exec_type,
            f"{info.node_type} ({info.exec_type})",
            _INT8_TYPE.search(info.exec_type) is not None,
        )
        for info in request.get_profiling_info()
        # nodes fused into another one are listed too, as not run
        if info.status == info.Status.EXECUTED and _PRODUCT.search(info.node_type)
    ]


def _cannot_run(backend: str, path: Path, lines: Sequence[str]) -> BackendError:
    return BackendError(
        f"{backend} cannot run {path.name}",
        got=next((line for line in lines if line), "")[:300],
        expected="one run with these inputs",
        hint="check the file and its inputs with another backend",
    )
