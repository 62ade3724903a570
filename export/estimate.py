"""Estimate of parameters, work, files and memory of an export. Reads only the checkpoint header."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import psutil
import torch

from save_deploy.bundle import WINDOW_SAMPLES
from save_deploy.checkpoints import builtin_path, read_header
from save_deploy.config import AUDIO_DIM, SaveConfig
from save_deploy.export.audio_graph import DeployAudioEncoder
from save_deploy.export.memory import is_large, score_bytes
from save_deploy.export.merge.deploy import DeployModel, FrameModel
from save_deploy.export.merge.proof import count_macs
from save_deploy.export.options import ExportOptions
from save_deploy.export.quantize.sites import find_sites
from save_deploy.model.save import SaveModel
from save_deploy.runtime.session.open import PACKED_FACTOR

BYTES = {"fp32": 4, "fp16": 2}
GIB = 2**30
LIBRARIES_BYTES = int(1.1 * GIB)  # memory of torch, exporter and runtime, measured on vit_t


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of an export.

    Parameters and multiply-accumulates are exact. File sizes are accurate to about 1 %. Memory is a
    formula fitted to measured exports (see peak_bytes).
    """

    config: SaveConfig
    kind: str
    parameters: dict[str, int]
    macs_eager: int
    macs: int
    file_bytes: dict[str, int]
    peak_bytes: int


def estimate(options: ExportOptions) -> Estimate:
    """Return the estimate. Raises CheckpointError when the header cannot be read."""
    config, kind = read_header(options.checkpoint or builtin_path())
    config = config.replace(res=options.res)
    with torch.device("meta"):
        model = SaveModel(config).eval()
        deploy = DeployModel(model, options.forms).eval()
        audio = DeployAudioEncoder(model.audio_encoder)
    parameters: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = "image_adapters" if ".adapter." in name else name.split(".")[0]
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    side, batch = options.res, options.batch
    frames = torch.empty(batch, side, side, 3, dtype=torch.uint8, device="meta")
    sounds = torch.empty(batch, AUDIO_DIM, device="meta")
    graph_bytes = 4 * sum(p.numel() for p in deploy.parameters())
    return Estimate(
        config=config,
        kind=kind,
        parameters=parameters,
        macs_eager=count_macs(FrameModel(model), frames, sounds),
        macs=count_macs(deploy, frames, sounds),
        file_bytes={
            "model.onnx": _graph_file_bytes(deploy, options),
            "audio.onnx": 4 * sum(p.numel() for p in audio.parameters()),
            "golden": options.n_golden
            * (side * side * (3 + 1 + 4) + 4 * (WINDOW_SAMPLES + AUDIO_DIM)),
        },
        peak_bytes=peak_bytes(config, 4 * sum(parameters.values()), graph_bytes, options),
    )


def _graph_file_bytes(deploy: DeployModel, options: ExportOptions) -> int:
    """Return the size of model.onnx with its weights.

    Quantized weights have one byte, others their float type.
    """
    total = sum(p.numel() for p in deploy.parameters())
    eight_bit = 0
    if options.precision.quantized:
        modules = [deploy.get_submodule(p.name) for p in find_sites(deploy)]
        eight_bit = sum(p.numel() for m in modules for p in m.parameters() if p.ndim > 1)
    return eight_bit + (total - eight_bit) * BYTES[options.precision.floats]


def peak_bytes(
    config: SaveConfig, eager_bytes: int, graph_bytes: int, options: ExportOptions
) -> int:
    """Return the estimated peak memory of an export, in bytes.

    The sum of libraries, weights with the additions of merging, and activations. Weights that only
    the merged model has (Winograd's) are not mapped from the checkpoint. For a large quantized
    model, one FP32 session replaces the weights if it is larger. For a smaller model both FP32
    sessions of the comparison count, each with its own packed copy of the weights.
    Measured / formula in GiB for FP16: vit_t at 256 px 1.3 / 1.3, vit_h at 256 px 9.4 / 9.4, vit_h
    at 1024 px 12.7 / 12.4.
    """
    activations = 3 * max(options.batches) * score_bytes(config)
    if is_large(config, eager_bytes):
        session = int(PACKED_FACTOR * graph_bytes) if options.precision.quantized else 0
        weights = int(1.06 * eager_bytes) + max(0, graph_bytes - eager_bytes)
        return LIBRARIES_BYTES + max(weights, session) + activations
    return LIBRARIES_BYTES + eager_bytes + 3 * graph_bytes + activations


def print_estimate(found: Estimate, options: ExportOptions) -> None:
    """Print parameters, work, files and memory, with the resources of this machine."""
    total = sum(found.parameters.values())
    print(f"{found.config.name} at {options.res} px, {options.precision}, batch {options.batch}")
    for part, n in sorted(found.parameters.items(), key=lambda item: -item[1]):
        print(f"  {part:18} {n / 1e6:10.2f} M parameters")
    print(f"  {'total':18} {total / 1e6:10.2f} M parameters")
    print(f"work   {found.macs_eager / 1e9:.4g} -> {found.macs / 1e9:.4g} GMAC per call")
    sizes = ", ".join(f"{name} {size / 1e6:.4g} MB" for name, size in found.file_bytes.items())
    parent = options.folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    print(f"files  {sizes} in {options.folder}/ ({free / 1e9:.4g} GB free there)")
    available = psutil.virtual_memory().available
    print(
        f"memory about {found.peak_bytes / GIB:.1f} GiB at the peak "
        f"({available / GIB:.1f} GiB available here)"
    )
    if found.kind == "adapter" and options.sam is None:
        print("note   this checkpoint has only the trained parts: add --sam")
    needed = sum(found.file_bytes.values())
    if found.peak_bytes > available or needed > free:
        print("note   this machine has too little memory or disk space")
