"""What is benchmarked: names people type -> contenders, and what one run says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from save_deploy.bundle import GraphSpec, Manifest, TensorSpec
from save_deploy.errors import SaveDeployError
from save_deploy.metrics.latency import LatencyResult

GEMM, GEMM_INT8 = "gemm", "gemm-int8"
GEMM_SIDE = 2048
GEMM_SPEC = GraphSpec(
    inputs=(TensorSpec("a", "float32", (GEMM_SIDE, GEMM_SIDE), "left factor"),),
    outputs=(TensorSpec("c", "float32", (GEMM_SIDE, GEMM_SIDE), "product with a constant"),),
)
PLAIN = ("eager", "compile", "naive", "naive-int8", "merged", "int8")
KINDS = (*PLAIN, "merged:KEY=VALUE+...", "bundle:DIR")


@dataclass(frozen=True)
class Subject:
    """The model all contenders are forms of."""

    name: str
    res: int
    batch: int
    spec: GraphSpec
    checkpoint: Path
    sam: Path | None
    threads: int | None
    parameters: int
    activation_bytes: int  # largest tensors of one call of the eager model
    macs_eager: int  # per call, padded windows included
    macs: int  # per call, useful work only: what the merged model computes


@dataclass(frozen=True)
class Contender:
    """graph: eager, compile, naive, merged..., or a bundle's folder; path: its ONNX file; int8: its
    products are, so that the rate of 8-bit products is its measure."""

    graph: str
    backend: str
    path: Path | None = None
    int8: bool = False

    @property
    def name(self) -> str:
        return f"{self.graph} ({self.backend})"

    @property
    def is_yardstick(self) -> bool:
        return self.graph in (GEMM, GEMM_INT8)


@dataclass(frozen=True)
class Outcome:
    """A contender's samples, its start, its memory, and how far its logits are from eager's.

    first_mask_s: from the start of its process (libraries included) to the first mask. max_rel_err:
    largest logit difference over eager's logit range. failed: why there are no samples.
    """

    contender: Contender
    latency: LatencyResult | None = None
    load_s: float = 0.0
    first_mask_s: float = 0.0
    peak_mib: float = 0.0
    max_rel_err: float | None = None
    failed: str = ""


def parse_contenders(
    what: str, backends: Sequence[str], graphs: dict[str, Path]
) -> list[Contender]:
    """ "eager,naive,bundle:DIR" -> contenders, graphs once per backend; `graphs` maps all names but
    eager and compile to ONNX files. Raises SaveDeployError for an unknown name."""
    found = []
    for name in split_names(what):
        if name in ("eager", "compile"):
            found.append(Contender(name, "torch"))
            continue
        int8 = _is_int8(name)
        found += [Contender(name, backend, graphs[name], int8) for backend in backends]
    return found


def _is_int8(name: str) -> bool:
    kind, _, folder = name.partition(":")
    if kind == "bundle":
        return str(Manifest.read(Path(folder)).precision["precision"]).startswith("int8")
    return name in ("int8", "naive-int8")


def bundle_graphs(names: Sequence[str]) -> dict[str, tuple[Path, GraphSpec]]:
    """bundle:DIR -> its model graph and interface. Raises BundleError for another folder."""
    found = {}
    for name in names:
        kind, _, folder = name.partition(":")
        if kind == "bundle":
            found[name] = (Path(folder) / "model.onnx", Manifest.read(Path(folder)).model)
    return found


def split_names(what: str) -> list[str]:
    """The contenders of a comma-separated list, each of a known kind."""
    names = [name.strip() for name in what.split(",") if name.strip()]
    for name in names:
        kind, _, rest = name.partition(":")
        if name not in PLAIN and not (kind in ("merged", "bundle") and rest):
            raise SaveDeployError("unknown contender", got=name, expected=", ".join(KINDS))
    if not names:
        raise SaveDeployError("nothing to benchmark", got=repr(what), expected=", ".join(KINDS))
    return list(dict.fromkeys(names))
