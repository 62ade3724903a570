"""A tiny real engine file, or 4 KiB in its place, with the manifest entry of either."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import FileRecord, Manifest
from save_deploy.machine import Gpu
from save_deploy.runtime.engine_check import Machine

ONE_NODE = bytes.fromhex(  # y = Relu(x) on one float
    "08083a350a0c0a0178120179220452656c7512036f6e655a0f0a0178120a0a08080112040a0208"
    "01620f0a0179120a0a08080112040a02080142040a001011"
)
HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
LIBRARIES = {"tensorrt_rtx": "1.7.1.116", "tensorrt": "10.13.0.35", "cuda.bindings": "13.5.0"}


def built_engine() -> bytes:
    """Built for SM86 and SM89 on the CPU; crafted_engine() without the library."""
    if not HAS_RTX:
        return crafted_engine()
    import tensorrt_rtx as trt

    from save_deploy.runtime.engine_check import last_error_logger

    logger = last_error_logger("tensorrt_rtx")
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(ONE_NODE), logger.last
    config = builder.create_builder_config()
    config.num_compute_capabilities = 2
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.set_compute_capability(trt.ComputeCapability.SM89, 1)
    return bytes(builder.build_serialized_network(network, config))


def crafted_engine() -> bytes:
    return b"vtrt".ljust(4096, b"\0")


def entry_of(data: bytes, **changes: Any) -> dict[str, Any]:
    return {
        "file": "model.rtx.plan",
        "library": "tensorrt_rtx",
        "library_version": "1.7.1.116",
        "targets": ["SM86", "SM89"],
        "hardware_compatibility": "none",
        "version_compatible": False,
        "os": "linux-x86_64",
        "gpu": None,
        "driver": None,
        "cuda": None,
        "onnx_sha256": "0" * 64,
        "onnx_data_sha256": None,
        "engine_bytes": len(data),
        "activation_bytes": 1 << 20,
        "weights_bytes": 1 << 20,
        "header": data[:32].hex(),
        "options": {"strip_weights": False},
        "receipt": {},
        **changes,
    }


def full_entry(**changes: Any) -> dict[str, Any]:
    """Of an engine of full TensorRT, built on an L4."""
    values = {
        "file": "model.plan", "library": "tensorrt", "library_version": "10.13.0.35",
        "targets": ["SM89"], "gpu": "NVIDIA L4", "driver": "580.1", "cuda": "13.0",
    }  # fmt: skip
    return entry_of(crafted_engine(), **{**values, **changes})


def with_engine(bundle: Path, folder: Path) -> tuple[Path, Manifest]:
    """A copy of a bundle with an engine file of this kind in it (a tiny one, of another graph)."""
    copy = folder / "with-engine"
    shutil.copytree(bundle, copy)
    path = copy / "model.rtx.plan"
    path.write_bytes(crafted_engine())
    manifest = Manifest.read(copy)
    graph = {"onnx_sha256": manifest.files["model.onnx"].sha256}
    if weights := manifest.files.get("model.onnx.data"):
        graph["onnx_data_sha256"] = weights.sha256
    manifest = replace(
        manifest,
        engines=(entry_of(path.read_bytes(), **graph),),
        files={**manifest.files, path.name: record_of(path)},
    )
    manifest.write(copy)
    return copy, manifest


def record_of(path: Path) -> FileRecord:
    data = path.read_bytes()
    return FileRecord(hashlib.sha256(data).hexdigest(), len(data))


def machine(**changes: Any) -> Machine:
    """A machine with one L4 and everything installed."""
    values: dict[str, Any] = {
        "os": "linux-x86_64", "driver": "580.65.06", "cuda": "13.0", "libraries": LIBRARIES,
        "gpus": (Gpu("NVIDIA L4", (8, 9), 24 << 30, 20 << 30),),
    }  # fmt: skip
    return Machine(**{**values, **changes})


def gpu(name: str = "NVIDIA L4", capability: tuple[int, int] = (8, 9), free: int = 20 << 30) -> Gpu:
    return Gpu(name, capability, 24 << 30, free)


def write_wav(path: Path) -> None:
    """A second of noise, 16 kHz mono."""
    noise = np.random.default_rng(0).normal(scale=3000, size=16_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
