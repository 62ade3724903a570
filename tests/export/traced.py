"""Traces kept within a test process: they depend on the module alone, and take most of an export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

Trace = Callable[..., ir.Model]


def module_key(module: nn.Module, example: Sequence[Tensor], **names: object) -> str:
    """Hash of all a trace can depend on: structure, plain attributes, weights, shapes, versions."""
    digest = hashlib.sha256(f"{torch.__version__} {onnx.__version__} {names}".encode())
    for name, part in module.named_modules():
        plain = {k: v for k, v in sorted(vars(part).items()) if not k.startswith("_")}
        digest.update(f"{name} {type(part).__qualname__} {plain!r}".encode())
    # not state_dict: buffers that no checkpoint holds are part of the graph too
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    for tensor in example:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return digest.hexdigest()


def traced_once(trace: Trace) -> Trace:
    """`trace` that is called once for equal modules; every caller gets a graph of its own."""
    kept: dict[str, bytes] = {}

    def from_kept(module: nn.Module, example: Sequence[Tensor], **names: object) -> ir.Model:
        key = module_key(module, example, **names)
        if key not in kept:
            model = trace(module, example, **names)
            kept[key] = ir.to_proto(model).SerializeToString()
            return model
        return ir.from_proto(onnx.load_from_string(kept[key]))

    return from_kept
