"""Contents of an ONNX file that a receipt checks: MatMuls, attentions and quantized inputs.

The receipt compares them, by module of the model, with the kernels that the builder reports.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from save_deploy.bundle import sha256_of
from save_deploy.errors import ExportError

MATMULS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Operators allowed between the two MatMuls of an attention and its softmax.
_BETWEEN = frozenset(
    "Add Sub Mul Div Where Cast Reshape Transpose Squeeze Unsqueeze Identity Concat Slice Expand "
    "Dropout QuantizeLinear DequantizeLinear".split()
)
_LABELS = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}


@dataclass(frozen=True)
class MatMul:
    """A MatMul, Gemm or convolution.

    dtype: type of its data input (fp32, fp16, bf16 ...).
    quantized: True when that input comes from a DequantizeLinear.
    """

    node: str
    module: str
    operator: str
    dtype: str
    quantized: bool


@dataclass(frozen=True)
class Attention:
    """Node names of one attention: MatMul of the scores, softmax, and MatMul of the values.

    An Attention operator is all three.
    """

    module: str
    scores: str
    softmax: str
    values: str
    dtype: str


@dataclass(frozen=True)
class GraphFacts:
    """Facts of a graph that a receipt compares.

    plain_softmax: softmax nodes outside of recognized attentions.
    fp8: True when the graph has an FP8 tensor.
    modules: node name -> module.
    """

    matmuls: tuple[MatMul, ...]
    attentions: tuple[Attention, ...]
    plain_softmax: tuple[str, ...]
    fp8: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    modules: dict[str, str] = field(repr=False)

    def count(self, dtype: str) -> int:
        """Return the number of MatMuls with this data type that are not quantized."""
        return sum(m.dtype == dtype and not m.quantized for m in self.matmuls)

    @property
    def splits_windows(self) -> bool:
        """True for the portable form: one attention per shape of a window, several in a block."""
        per_module = Counter(a.module for a in self.attentions)
        return any(n > 1 for n in per_module.values())

    @property
    def precision(self) -> str:
        """MatMuls by data type: `fp16 90, fp32 14, quantized 27`."""
        kinds = Counter("quantized" if m.quantized else m.dtype for m in self.matmuls)
        return ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()) or "no MatMuls"


def read_graph(path: Path) -> GraphFacts:
    """Read an ONNX file without its external weights. Raises ExportError when it is not valid."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        graph = _Graph(model)
    except Exception as error:  # errors of protobuf and onnx, or OSError
        raise ExportError(
            "not a readable ONNX file",
            got=f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            expected="a file written by save-export",
            hint="export the bundle again",
        ) from error
    return graph.facts()


def external_files(path: Path) -> list[Path]:
    """Return the ONNX file and its external weights NAME.data, those that exist."""
    data = path.with_name(path.name + ".data")
    return [p for p in (path, data) if p.is_file()]


def content_hash(path: Path) -> str:
    """Return a sha256 over the hashes of the graph file and its external weights."""
    names = [f"{p.name.removeprefix(path.name)}:{sha256_of(p)}" for p in external_files(path)]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


class _Graph:
    def __init__(self, model: Any) -> None:
        import onnx

        graph = model.graph
        self.nodes: list[Any] = list(graph.node)
        self.producer = {o: n for n in self.nodes for o in n.output}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.consumers[name].append(node)
        self.constant = {w.name for w in graph.initializer}
        for node in self.nodes:  # ONNX files have nodes in topological order
            if node.op_type == "Constant" or (
                node.input and all(not i or i in self.constant for i in node.input)
            ):
                self.constant.update(node.output)
        self.graph, self.type_name = graph, onnx.TensorProto.DataType.Name
        self.types = self._types(graph)
        if any(n.input[0] not in self.types for n in self.nodes if n.op_type in MATMULS):
            self.types |= self._types(onnx.shape_inference.infer_shapes(model).graph)

    @staticmethod
    def _types(graph: Any) -> dict[str, int]:
        types = {w.name: w.data_type for w in graph.initializer}
        for value in (*graph.value_info, *graph.input, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
        return types

    def facts(self) -> GraphFacts:
        attentions, plain = self._attentions()
        fp8 = {f"FLOAT8E{kind}" for kind in ("4M3FN", "4M3FNUZ", "5M2", "5M2FNUZ")}
        return GraphFacts(
            matmuls=tuple(
                MatMul(
                    n.name, _module(n) or "", n.op_type, self._dtype(n.input[0]), self._quantized(n)
                )
                for n in self.nodes
                if n.op_type in MATMULS and not set(n.output) <= self.constant
            ),
            attentions=attentions,
            plain_softmax=plain,
            fp8=any(self.type_name(t) in fp8 for t in self.types.values()),
            inputs=tuple(self._described(v) for v in self.graph.input),
            outputs=tuple(self._described(v) for v in self.graph.output),
            modules=self._modules(),
        )

    def _modules(self) -> dict[str, str]:
        """Return node -> module.

        Casts and Q/DQ nodes without a module get that of their first reader.
        """
        found: dict[str, str] = {}
        for node in reversed(self.nodes):
            module = _module(node)
            if module is None:
                readers = [c.name for o in node.output for c in self.consumers.get(o, [])]
                module = found.get(readers[0], "") if readers else ""
            found[node.name] = module
        return found

    def _dtype(self, value: str) -> str:
        name = self.type_name(self.types.get(value, 0))
        return _LABELS.get(name, name.lower())

    def _quantized(self, node: Any) -> bool:
        made_by = self.producer.get(node.input[0])
        return made_by is not None and made_by.op_type == "DequantizeLinear"

    def _described(self, value: Any) -> str:
        dims = value.type.tensor_type.shape.dim
        shape = ", ".join(str(d.dim_value or d.dim_param or "?") for d in dims)
        return f"{value.name} {self._dtype(value.name)} ({shape})"

    def _attentions(self) -> tuple[tuple[Attention, ...], tuple[str, ...]]:
        """Return the attentions, and the softmax nodes that belong to none."""
        found, plain = [], []
        for node in self.nodes:
            if node.op_type == "Attention":
                dtype = self._dtype(node.input[0])
                found.append(Attention(_module(node) or "", node.name, node.name, node.name, dtype))
            if node.op_type != "Softmax":
                continue
            scores = self._nearest(node, lambda n: [self.producer.get(i) for i in n.input])
            values = self._nearest(
                node, lambda n: [c for o in n.output for c in self.consumers.get(o, [])]
            )
            if scores is None or values is None:
                plain.append(node.name)
            else:
                dtype = self._dtype(scores.input[0])
                found.append(
                    Attention(_module(node) or "", scores.name, node.name, values.name, dtype)
                )
        return tuple(found), tuple(plain)

    def _nearest(self, start: Any, step: Callable[[Any], Iterable[Any]]) -> Any:
        """Return the nearest MatMul of two computed tensors in direction `step`, or None.

        A MatMul with a constant (a table of relative positions) is not part of an attention and is
        skipped.
        """
        queue, seen = deque([start]), {id(start)}
        while queue:
            for node in step(queue.popleft()):
                if node is None or id(node) in seen:
                    continue
                seen.add(id(node))
                if node.op_type in ("MatMul", "Einsum"):
                    if not any(i in self.constant for i in node.input):
                        return node
                elif node.op_type in _BETWEEN:
                    queue.append(node)
        return None


def _module(node: Any) -> str | None:
    """Return the module in the node's metadata, "" for the model itself, None without one."""
    return next((str(e.value) for e in node.metadata_props if e.key == "module"), None)
