"""The verbs as functions: a checkpoint becomes a Bundle, a Bundle is verified, built, compared, run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from save_deploy.bundle import Manifest, check_own_bundle
from save_deploy.errors import BundleError
from save_deploy.export.inputs import check_inputs
from save_deploy.export.options import ExportOptions
from save_deploy.extras import named_extras
from save_deploy.fields import read_json
from save_deploy.files import check_folder_target
from save_deploy.precision import Precision
from save_deploy.runtime.inputs import as_folder, as_path

if TYPE_CHECKING:
    from save_deploy.export.engine.options import BuildOptions
    from save_deploy.runtime.pipeline import SavePipeline
    from save_deploy.runtime.verify import Verified

OnStage = Callable[[str, str], None]


class Bundle:
    """A folder written by save-export. Goes wherever the path of a bundle goes.

    >>> made = Bundle(bundle)
    >>> made
    <bundle small: vit_t at 224 px, fp32, no engine>
    >>> made.verify().parity.mask_agreement
    1.0
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises BundleError for what is no bundle."""
        self.folder = as_folder(folder)
        self._manifest = Manifest.read(self.folder)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        config, engines = self.manifest.config, self.engines
        words = ", ".join(engines) if engines else "no engine"
        name = self.folder.resolve().name
        return f"<bundle {name}: {config.name} at {config.res} px, {self.precision}, {words}>"

    @property
    def manifest(self) -> Manifest:
        """What manifest.json says; build() changes it."""
        return self._manifest

    @property
    def precision(self) -> str:
        """fp32, fp16, int8 ..."""
        return str(self.manifest.precision["precision"])

    @property
    def engines(self) -> tuple[str, ...]:
        """Files of TensorRT engines."""
        return tuple(str(entry["file"]) for entry in self.manifest.engines)

    @cached_property
    def report(self) -> dict[str, Any]:
        """report.json of the export: rows of the comparison with eager, what was merged. Raises
        BundleError where it is missing or no JSON."""
        return read_json(self.folder / "report.json", what="report", error=BundleError).values

    def load(self, **how: Any) -> SavePipeline:
        """save_deploy.load of it; how: backend, threads, threshold ..."""
        from save_deploy.runtime.pipeline import load

        return load(self.folder, **how)

    @named_extras()
    def verify(
        self, *, backend: str = "auto", threads: int | None = None, trust: bool = False
    ) -> Verified:
        """Hashes, golden samples and conformance pack, as `save-deploy verify`. Raises BundleError,
        BackendError, ParityError."""
        from save_deploy.runtime.verify import verify_bundle

        return verify_bundle(self.folder, backend=backend, threads=threads, trust=trust)

    @named_extras()
    def build(
        self,
        library: str = "auto",
        targets: Sequence[str] = (),
        *,
        options: BuildOptions | None = None,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any]:
        """A TensorRT engine into the bundle, as `save-build` -> its entry in the manifest. options: all
        other options of the verb. Raises ExportError, BackendError, ParityError."""
        from save_deploy.export.engine.add import add_engine
        from save_deploy.export.engine.options import BuildOptions

        asked = options or BuildOptions(library=library, targets=tuple(targets))
        entry = add_engine(self.folder, asked, on_line=on_line)
        self._manifest = Manifest.read(self.folder)
        return entry


@named_extras()
def export(
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    res: int | None = None,
    precision: str | None = None,
    data: str | None = None,
    force: bool = False,
    options: ExportOptions | None = None,
    on_stage: OnStage = lambda *_: None,
) -> Bundle:
    """Turn a checkpoint into a bundle, as `save-export` does, without an engine (see Bundle.build).

    checkpoint None: the built-in vit_t. out: the bundle's folder, by default as the verb names it; an
    existing one is replaced with force. precision: fp32 (the default), fp16, int8, int8_fp16, fp8 ...
    options: all other options of the verb, whose fields the named arguments replace. on_stage(stage,
    detail) is told what is going on. Raises SaveDeployError: nothing is written then.

    >>> made = export(checkpoint, res=224, out="own", options=ExportOptions(n_golden=1, rounds=3))
    >>> made, made.load()
    (<bundle own: vit_t at 224 px, fp32, no engine>, <SAVE vit_t at 224 px, fp32 on ...>)
    """
    given: dict[str, Any] = {
        "checkpoint": None if checkpoint is None else as_path(checkpoint, "checkpoint"),
        "out": None if out is None else as_path(out, "bundle"),
        "res": res,
        "precision": None if precision is None else Precision.parse(precision),
        "data": data,
        "force": force or None,
    }
    asked = replace(options or ExportOptions(), **{k: v for k, v in given.items() if v is not None})
    check_folder_target(asked.folder, force=asked.force, is_ours=check_own_bundle)
    check_inputs(asked)
    from save_deploy.export.export import export as run_export  # torch

    return Bundle(run_export(asked, on_stage=on_stage).folder)
