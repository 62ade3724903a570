"""Files converted in both directions: the model stays the same, nothing half written remains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from save_deploy.checkpoints import convert, load_model, save_checkpoint
from save_deploy.checkpoints.foreign import read_sam
from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError, OutputError
from save_deploy.model.save import SaveModel
from tests.checkpoints.files import gavs_state, sam_modules, sam_state, sama_state, vggish_state
from tests.conftest import randomise

pytestmark = pytest.mark.usefixtures("presets")


def save_model(path: Path, system: str = "save", backbone: str = "vit_x", res: int = 256) -> Path:
    torch.manual_seed(0)
    model = SaveModel(SaveConfig.of_system(system, backbone, res=res))
    randomise(model)
    save_checkpoint(path, model)
    return path


def same(one: SaveModel, other: SaveModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return one.config == other.config and all(torch.equal(v, b[k]) for k, v in a.items())


def test_sama_to_ours_and_back(tmp_path: Path) -> None:
    state = sama_state(sam_modules())
    torch.save(state, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    assert (done.layout, done.config.system, done.left_out) == ("save", "sama_avs", ())
    ours = load_model(tmp_path / "ours.safetensors", system="sama_avs")
    assert same(ours, load_model(tmp_path / "in.pth"))
    done = convert(tmp_path / "ours.safetensors", tmp_path / "back.pth", layout="sama_avs")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    assert done.tensors == len(state)
    assert all("point" in k or "mask_downscaling" in k for k in done.left_out)
    assert not list(tmp_path.glob("*.partial*"))


def test_gavs_to_ours_and_back(tmp_path: Path) -> None:
    torch.save(gavs_state(sam_modules(depth=5), 5, 2), tmp_path / "in.pth")
    torch.save(vggish_state(), tmp_path / "vggish.pth")
    vggish, ours = tmp_path / "vggish.pth", tmp_path / "ours.safetensors"
    with pytest.raises(CheckpointError, match="--vggish"):
        convert(tmp_path / "in.pth", ours)
    assert not ours.exists()
    convert(tmp_path / "in.pth", ours, vggish=vggish)
    done = convert(ours, tmp_path / "back.pth", layout="gavs")
    assert all(k.startswith("audio_encoder.") for k in done.left_out) and done.left_out
    one, other = load_model(ours), load_model(tmp_path / "back.pth", vggish=vggish)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-5)
    assert one.config == other.config


def test_save_to_med2d_is_a_base(tmp_path: Path) -> None:
    """Its wrapper, its names; the sound side is left out and said to be."""
    path = save_model(tmp_path / "m.safetensors")
    done = convert(path, tmp_path / "med.pth", layout="sam_med2d")
    stored = torch.load(tmp_path / "med.pth", weights_only=True)
    assert list(stored) == ["model"] and len(stored["model"]) == done.tensors
    base, _ = read_sam(tmp_path / "med.pth")
    model = load_model(path).state_dict()
    assert set(base) | set(done.left_out) == set(model)
    assert all(torch.equal(v, model[k]) for k, v in base.items())


def test_adapters_over_sam_become_complete(tmp_path: Path) -> None:
    torch.save(sam_state(sam_modules(1024)), tmp_path / "sam.pth")
    model = load_model(save_model(tmp_path / "m.safetensors"))
    adapters = tmp_path / "a.safetensors"
    save_checkpoint(adapters, model, kind="adapter")
    convert(adapters, tmp_path / "full.safetensors", sam=tmp_path / "sam.pth")
    whole = load_model(tmp_path / "full.safetensors")
    assert same(whole, load_model(adapters, sam=tmp_path / "sam.pth"))


def test_adapters_over_med2d_keep_their_own(tmp_path: Path) -> None:
    """A base with image adapters of its own does not overwrite or add to the trained ones."""
    convert(
        save_model(tmp_path / "m.safetensors"), tmp_path / "med.pth", layout="sam_med2d", force=True
    )
    for system in ("save", "save_star"):
        path = save_model(tmp_path / f"{system}.safetensors", system)
        model = load_model(path)
        adapters = tmp_path / f"{system}_a.safetensors"
        save_checkpoint(adapters, model, kind="adapter")
        found = load_model(adapters, sam=tmp_path / "med.pth").state_dict()
        assert found.keys() == model.state_dict().keys()
        if system == "save":
            name = "image_encoder.blocks.0.adapter.norm.weight"
            assert torch.equal(found[name], model.state_dict()[name])


def test_other_resolution_on_the_way(tmp_path: Path) -> None:
    torch.save(sama_state(sam_modules(1024)), tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "o.safetensors", res=224)
    assert (done.config.system, done.config.res) == ("sama_avs_ft", 224)
    assert load_model(tmp_path / "o.safetensors").image_encoder.pos_embed.shape[1] == 14


def test_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "m.safetensors")
    out = tmp_path / "out.pth"
    with pytest.raises(CheckpointError, match="cannot be written as a SAMA-AVS"):
        convert(path, out, layout="sama_avs")
    with pytest.raises(CheckpointError, match="unknown layout"):
        convert(path, out, layout="sam")
    with pytest.raises(CheckpointError, match=r"does not fit the layout(.|\n)*\.safetensors"):
        convert(path, out)
    assert not out.exists()
    out.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"output exists(.|\n)*--force"):
        convert(path, out, layout="sam_med2d")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OutputError, match=r"cannot be written(.|\n)*disk full"):
        convert(path, out, layout="sam_med2d", force=True)
    assert out.read_bytes() == b"mine"
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.partial*"))


def test_force_replaces_even_its_own_source(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.safetensors")
    before = load_model(path)
    convert(path, path, force=True)
    assert same(load_model(path), before)
