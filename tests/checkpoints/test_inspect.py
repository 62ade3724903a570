"""What inspect_checkpoint says about every kind of file, and that it reads no weight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from save_deploy.checkpoints import builtin_path, inspect_checkpoint, load_model, save_checkpoint
from save_deploy.checkpoints.inspect import Inspection
from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError
from save_deploy.model.save import SaveModel
from tests.checkpoints.files import (
    gavs_state,
    med2d_state,
    sam_modules,
    sam_state,
    sama_state,
    vggish_state,
)

pytestmark = pytest.mark.usefixtures("presets")


def trained(found: Inspection) -> set[str]:
    return {part.name for part in found.parts if part.trained}


def test_our_own_file() -> None:
    found = inspect_checkpoint(builtin_path())
    model = load_model()
    assert (found.layout, found.kind, found.format_version) == ("save-deploy (full)", "full", "1")
    assert (found.system, found.backbone, found.res) == ("SAVE(**)", "vit_t", 256)
    state = model.state_dict()
    assert found.parameters == sum(v.numel() for v in state.values())
    assert sum(p.tensors for p in found.parts) == len(state)
    encoder = sum(v.numel() for k, v in state.items() if k.startswith("audio_encoder."))
    sound = next(p for p in found.parts if p.name == "audio_encoder")
    assert (sound.parameters, sound.trained) == (encoder, False)
    assert trained(found) == {
        "image_adapter", "audio_adapter", "audio_prompt", "mask_decoder", "no_mask_embed"
    }  # fmt: skip
    assert found.missing == found.unused == found.dropped == ()
    assert found.next == f"save-export {builtin_path()} --res 256"
    assert json.loads(json.dumps(found.to_dict()))["parameters"] == found.parameters


def test_switches_notes_and_an_adapter_file(tmp_path: Path) -> None:
    config = SaveConfig.preset("vit_x", res=224, audio_mode="recursive", prompt_source="last")
    path = tmp_path / "a.safetensors"
    save_checkpoint(
        path, SaveModel(config), kind="adapter", dtype=torch.float16, notes={"steps": 7}
    )
    found = inspect_checkpoint(path)
    assert found.config == {"audio_mode": "recursive", "prompt_source": "last"}
    assert found.notes == {"steps": 7} and found.kind == "adapter"
    assert found.missing == ()
    assert {dtype for part in found.parts for dtype in part.dtypes} == {"F16"}
    assert all(part.bytes == 2 * part.parameters for part in found.parts)
    assert found.next == f"save-export {path} --res 224 --sam sam_vit_*.pth"


def test_sama(tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    state = {f"module.{k}": v for k, v in sama_state(sam_modules(1024)).items()}
    torch.save({"model": state, "optimizer": {"lr": 1}, "epoch": 3}, path)
    found = inspect_checkpoint(path)
    assert found.layout == "SAMA-AVS (PyTorch, under 'model', names start with module.)"
    assert (found.system, found.backbone, found.res) == ("SAMA-AVS", "vit_x", 1024)
    assert found.dropped == ("optimizer", "epoch")
    assert found.parameters == sum(v.numel() for v in state.values())
    assert trained(found) == {"audio_adapter", "mask_decoder", "no_mask_embed"}
    assert found.config["audio_inject"] == "before"
    assert found.next == f"save-export {path} --res 1024"


def test_gavs_lacks_its_sound_encoder(tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    torch.save(gavs_state(sam_modules(depth=5), 5, 2), path)
    found = inspect_checkpoint(path)
    assert found.system == "GAVS" and found.missing
    assert all(name.startswith("audio_encoder.") for name in found.missing)
    assert "--vggish" in found.next and str(path) in found.next
    assert any("BGR" in remark for remark in found.remarks)


def test_halves_of_a_model(tmp_path: Path) -> None:
    for name, state, title, command in (
        ("sam", sam_state(sam_modules()), "SAM (PyTorch)", "save-train --sam "),
        ("med", med2d_state(sam_modules(256)), "SAM-Med2D (PyTorch)", "save-train --sam "),
        ("vgg", vggish_state(), "VGGish (PyTorch)", " --vggish "),
    ):
        path = tmp_path / f"{name}.pth"
        torch.save(state, path)
        found = inspect_checkpoint(path)
        assert (found.layout, found.system) == (title, None)
        assert f"{command}{path}" in found.next
        assert not found.missing and not found.unused and not trained(found)


def test_stray_and_missing_tensors(tmp_path: Path) -> None:
    state = sama_state(sam_modules())
    state["extra.weight"] = torch.zeros(3)
    del state["no_mask_embed.weight"]
    torch.save(state, tmp_path / "f.pth")
    found = inspect_checkpoint(tmp_path / "f.pth")
    assert found.unused == ("extra.weight",) and found.next == ""
    assert found.missing == ("prompt_encoder.no_mask_embed.weight",)
    assert next(p for p in found.parts if p.name == "unknown").parameters == 3


def test_unknown_files_say_their_first_names(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(2), "bn": torch.zeros(1)}, tmp_path / "f.pth")
    found = inspect_checkpoint(tmp_path / "f.pth")
    assert found.layout == "unknown (PyTorch): conv.weight, bn"
    assert (found.system, found.parameters) == (None, 3) and "--map names.toml" in found.next
    torch.save({"net.conv.weight": torch.zeros(2), "net.bn": torch.zeros(1)}, tmp_path / "f.pth")
    found = inspect_checkpoint(tmp_path / "f.pth")  # the names as a map has to have them
    assert found.unused == ("net.conv.weight", "net.bn")
    save_file({"a.b": torch.zeros(2, dtype=torch.int64)}, tmp_path / "g.safetensors")
    found = inspect_checkpoint(tmp_path / "g.safetensors")
    assert found.layout == "unknown (safetensors): a.b"
    assert (found.parts[0].dtypes, found.parts[0].bytes) == (("I64",), 16)


def test_broken_files(tmp_path: Path) -> None:
    whole = builtin_path().read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:5000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        inspect_checkpoint(tmp_path / "t.safetensors")
    (tmp_path / "p.pth").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="a web page"):
        inspect_checkpoint(tmp_path / "p.pth")
    with pytest.raises(CheckpointError, match="not found"):
        inspect_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "{"}, "config is not JSON"),
        ({"config": "[]"}, "config"),
        ({"config": '{"depth": 1000000000}'}, "config: name"),
        ({"kind": "half"}, "kind"),
        ({"notes": "[1"}, "notes is not JSON"),
        ({"format_version": "2"}, "another format version"),
    ],
)
def test_damaged_headers(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    """Each names the file and the entry of its header."""
    path = tmp_path / "h.safetensors"
    header = {"format": "save-deploy", "format_version": "1", "kind": "full", "notes": "{}"}
    header["config"] = SaveConfig.preset("vit_t").to_json()
    save_file({"a": torch.zeros(1)}, path, header)
    assert inspect_checkpoint(path).backbone == "vit_t"
    save_file({"a": torch.zeros(1)}, path, header | changes)
    with pytest.raises(CheckpointError, match=rf"(?s){message}") as caught:
        inspect_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read there")
@pytest.mark.parametrize(
    "kind",
    ["zip", *(pytest.param(k, marks=pytest.mark.thorough) for k in ("legacy", "safetensors"))],
)
def test_large_files_are_not_read(tmp_path: Path, kind: str) -> None:
    """Peak memory of a fresh process: 300 MB of weights must not show in it."""
    path = tmp_path / ("f.safetensors" if kind == "safetensors" else "f.pth")
    big = {"w": torch.ones(75_000_000)}
    if kind == "safetensors":
        save_file(big, path)
    else:
        torch.save(big, path, _use_new_zipfile_serialization=kind == "zip")
    # VmHWM, as ru_maxrss starts from the parent's peak
    code = (
        "import re, sys; from pathlib import Path\n"
        "from save_deploy.checkpoints import inspect_checkpoint\n"
        "status = Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024\n"
        "before = peak()\n"
        "found = inspect_checkpoint(Path(sys.argv[1]))\n"
        "print(found.parameters, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    path.unlink()
    parameters, grown_mb = done.stdout.split()
    assert int(parameters) == 75_000_000
    assert float(grown_mb) < 60
