"""What is fuzzed in Python: every reader of a stranger's file, with small valid files of our own."""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.numpy import save as safetensors_bytes

from save_deploy.bundle import Manifest
from save_deploy.calibration.table import CalibrationTable
from save_deploy.checkpoints.inspect import inspect_checkpoint
from save_deploy.data.audio import read_waveform
from save_deploy.data.safe_pickle import load_audio_names, load_log_mel
from save_deploy.data.tables import read_table
from save_deploy.data.transforms import read_frame
from save_deploy.recipes.recipe import ROWS, load_recipe, recipe_names
from tests.calibration.test_table import make as calibration_table
from tests.test_manifest import manifest


@dataclass(frozen=True)
class Reader:
    """name: of the file; read(path) raises nothing but SaveDeployError; seeds: valid files."""

    name: str
    read: Callable[[Path], object]
    seeds: tuple[bytes, ...]


def _sound(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    samples = 0.1 * np.sin(np.arange(800, dtype=np.float32))
    soundfile.write(out, np.stack([samples, samples], 1), 16_000, format=kind, **options)
    return out.getvalue()


def _picture(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.effect_noise((9, 7), 50).convert(mode).save(out, format=kind)
    return out.getvalue()


def _torch_file(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def readers() -> dict[str, Reader]:
    """By name of the file."""
    weights = {"a.weight": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)}
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        manifest().write(Path(folder))
        of_bundle = (Path(folder) / "manifest.json").read_bytes()
        path = Path(folder) / "calibration.json"
        calibration_table(["blocks.0.attn.qkv"]).write(path)
        of_table = path.read_bytes()
    found = [
        Reader("manifest.json", lambda path: Manifest.read(path.parent), (of_bundle,)),
        Reader("calibration.json", CalibrationTable.read, (of_table,)),
        Reader("x.safetensors", inspect_checkpoint, (safetensors_bytes(weights),)),
        Reader("x.pth", inspect_checkpoint, (_torch_file(tensors),)),
        Reader("names.pkl", load_audio_names, (pickle.dumps({0: ["a"], 3: ["b", "c"]}),)),
        Reader("mel.pkl", load_log_mel, (pickle.dumps(torch.zeros(1, 1, 96, 64)),)),
        Reader("x.csv", read_table, (b"name,category,split\na,dog,train\nb,cat,test\n",)),
        Reader("x.toml", load_recipe, ((ROWS / f"{recipe_names()[0]}.toml").read_bytes(),)),
        Reader("x.png", read_frame, (_picture("PNG"), _picture("PNG", "P"), _picture("JPEG"))),
        Reader("x.wav", read_waveform, (_sound("WAV"), _sound("FLAC"), _sound("OGG"))),
    ]
    return {reader.name: reader for reader in found}


def _planted(path: Path) -> None:
    data = path.read_bytes()
    if data[:2] == b"SA" and data[2:3] == b"V":
        raise IndexError("planted")


PLANTED = Reader("planted", _planted, (b"SxVE",))


def reader(name: str) -> Reader:
    """One of the readers, or the one with a planted fault."""
    return PLANTED if name == PLANTED.name else readers()[name]
