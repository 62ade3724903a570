"""Parsing of the names in `save-deploy bench` to entries of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from save_deploy.bundle import GraphSpec, Manifest, model_spec
from save_deploy.config import SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.precision import Precision
from save_deploy.runtime.compare.entries import EagerSource, Entry, GraphFile
from save_deploy.runtime.eager_mode import MODES, named_mode

PLAIN = (*MODES, "naive", "naive-int8", "merged", "fp16", "int8")
KINDS = (*PLAIN, "merged:KEY=VALUE+...", "bundle:DIR")


@dataclass(frozen=True)
class Subject:
    """The model whose forms are benchmarked.

    activation_bytes: size of the largest tensors of one call of the eager model.
    macs_eager: multiply-accumulates per call, including padded windows.
    macs: multiply-accumulates of the merged model, without padding.
    """

    config: SaveConfig
    source: EagerSource
    threads: int | None
    activation_bytes: int
    macs_eager: int
    macs: int

    @property
    def name(self) -> str:
        return f"{self.config.name} ({self.config.depth} blocks)"

    @property
    def batch(self) -> int:
        return self.source.batch

    @property
    def spec(self) -> GraphSpec:
        return model_spec(self.config, self.batch)

    @property
    def parameters(self) -> int:
        return self.source.n_bytes // 4


def parse_entries(
    what: str, backends: Sequence[str], graphs: dict[str, Path], subject: Subject
) -> list[Entry]:
    """Parse "eager,naive,bundle:DIR" to entries; graphs get one entry per backend.

    graphs: ONNX file of every name except those of torch.
    Modes of torch run on the device of the subject's source. Raises SaveDeployError for an unknown
    name.
    """
    found = []
    for form in split_names(what):
        if form in MODES:
            mode = named_mode(form, subject.source.mode.device)
            source = replace(subject.source, mode=mode)
            entry = Entry(f"{form} (torch)", "torch", mode.precision, 0.0, eager=source)
            found.append(replace(entry, form=form, threads=subject.threads))
            continue
        for backend in backends:
            found.append(graph_entry(form, backend, graphs[form], subject))
    return found


def graph_entry(form: str, backend: str, path: Path, subject: Subject) -> Entry:
    """Return the entry of a graph file of the subject on a backend."""
    graph = GraphFile(path, subject.config, subject.batch, small_weights=_small_weights(form))
    return Entry(
        f"{form} ({backend})", backend, _precision(form), 0.0, threads=subject.threads,
        graph=graph, form=form,
    )  # fmt: skip


def is_int8(entry: Entry) -> bool:
    """Return True when the INT8 rate of the machine is the entry's lower bound."""
    return Precision.parse(entry.precision).quantized == "int8"


def _small_weights(form: str) -> bool:
    kind, _, folder = form.partition(":")
    return Manifest.read(Path(folder)).small_weights if kind == "bundle" else form == "int8"


def _precision(form: str) -> str:
    kind, _, folder = form.partition(":")
    if kind == "bundle":
        return str(Manifest.read(Path(folder)).precision["precision"])
    if form == "fp16":
        return form
    return "int8" if form in ("int8", "naive-int8") else "fp32"


def bundle_graphs(names: Sequence[str]) -> dict[str, tuple[Path, GraphSpec]]:
    """Return model graph and interface of each bundle:DIR. Raises BundleError for other folders."""
    found = {}
    for name in names:
        kind, _, folder = name.partition(":")
        if kind == "bundle":
            found[name] = (Path(folder) / "model.onnx", Manifest.read(Path(folder)).model)
    return found


def split_names(what: str) -> list[str]:
    """Return the names of a comma-separated list. Raises for a name of an unknown kind."""
    names = [name.strip() for name in what.split(",") if name.strip()]
    for name in names:
        kind, _, rest = name.partition(":")
        if name not in PLAIN and not (kind in ("merged", "bundle") and rest):
            raise SaveDeployError("unknown entry", got=name, expected=", ".join(KINDS))
    if not names:
        raise SaveDeployError("nothing to benchmark", got=repr(what), expected=", ".join(KINDS))
    return list(dict.fromkeys(names))
