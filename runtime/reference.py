"""A bundle beside the eager model it was made of."""

from __future__ import annotations

from pathlib import Path

from save_deploy.checkpoints import builtin_path, load_model
from save_deploy.errors import BundleError
from save_deploy.manifest import Manifest, sha256_of
from save_deploy.runtime.compare import REFERENCE
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.pipeline import SavePipeline, load


def open_with_reference(
    bundle: Path,
    *,
    checkpoint: Path | None = None,
    sam: Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> tuple[dict[str, SavePipeline], dict[str, float]]:
    """-> pipelines by name (eager first), sizes in MB by name.

    The checkpoint must be the file the bundle was made of, by hash: a comparison with other weights
    says nothing. Raises BundleError otherwise.
    """
    manifest = Manifest.read(bundle)
    source = checkpoint or builtin_path()
    recorded = manifest.source["files"][0]
    if not source.is_file() or sha256_of(source) != recorded["sha256"]:
        raise BundleError(
            "the bundle was made of another checkpoint",
            got=str(source),
            expected=f"{recorded['name']} with sha256 {recorded['sha256'][:12]}...",
            hint="save-compare BUNDLE --checkpoint FILE",
        )
    model = load_model(checkpoint, res=manifest.config.res, sam=sam)
    if threads:
        import torch

        torch.set_num_threads(threads)
    ours = load(bundle, backend=backend, threads=threads)
    pipelines = {REFERENCE: eager_pipeline(model, batch=ours.batch), "bundle": ours}
    graphs = [
        r.size
        for name, r in manifest.files.items()
        if name.startswith(("model.onnx", "audio.onnx"))
    ]
    eager_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    return pipelines, {REFERENCE: eager_bytes / 1e6, "bundle": sum(graphs) / 1e6}
