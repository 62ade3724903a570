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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_adapters_over_sam_become_complete(tmp_path: Path) -> None:
    torch.save(sam_state(sam_modules(1024)), tmp_path / "sam.pth")
    model = load_model(save_model(tmp_path / "m.safetensors"))
    adapters = tmp_path / "a.safetensors"
    save_checkpoint(adapters, model, kind="adapter")
    convert(adapters, tmp_path / "full.safetensors", sam=tmp_path / "sam.pth")
    whole = load_model(tmp_path / "full.safetensors")
    assert same(whole, load_model(adapters, sam=tmp_path / "sam.pth"))


@pytest.mark.slow
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


# SAVE in a layout of one's own: other names for every part, some by pattern
OWN_NAMES = """
system = "save"
[names]
"eye.{rest}" = "image_encoder.{rest}"
"ear.conv{i}.{p}" = "audio_encoder.features.{i}.{p}"
"ear.{rest}" = "audio_encoder.{rest}"
"hear.{rest}" = "audio_adapter.{rest}"
"say.{i}.{p}" = "audio_prompt.layers.{i}.{p}"
"pe" = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"nothing" = "prompt_encoder.no_mask_embed.weight"
"mask.{rest}" = "mask_decoder.{rest}"
"typo.{i}" = "mask_decoder.typo.{i}"
"""
TURNED = (
    ("image_encoder.", "eye."), ("audio_encoder.features.", "ear.conv"), ("audio_encoder.", "ear."),
    ("audio_adapter.", "hear."), ("audio_prompt.layers.", "say."), ("mask_decoder.", "mask."),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "pe"),
    ("prompt_encoder.no_mask_embed.weight", "nothing"),
)  # fmt: skip


def in_own_names(model: SaveModel) -> dict[str, torch.Tensor]:
    turned = {}
    for key, value in model.state_dict().items():
        ours, theirs = next(((a, b) for a, b in TURNED if key.startswith(a)), ("", ""))
        turned[key.replace(ours, theirs, 1) if ours else key] = value
    return turned


@pytest.mark.slow
def test_names_of_ones_own(tmp_path: Path) -> None:
    """A map gives the same model; what it leaves out, what fits nothing and what is zero is told."""
    model = load_model(save_model(tmp_path / "m.safetensors"))
    state = in_own_names(model)
    state["optimizer_scale"] = torch.ones(1)
    never_read = [k for k in state if k.startswith("prompt_encoder.")]  # left as they are: no rule
    torch.save({"weights_of_epoch_3": state}, tmp_path / "own.bin")
    (tmp_path / "names.toml").write_text(OWN_NAMES)
    done = convert(tmp_path / "own.bin", tmp_path / "o.safetensors", names=tmp_path / "names.toml")
    found = load_model(tmp_path / "o.safetensors")
    assert found.config == model.config
    for key, value in model.state_dict().items():
        zero = key in never_read
        assert torch.equal(found.state_dict()[key], torch.zeros_like(value) if zero else value), key
    report = done.mapped
    assert report is not None and report.missing == report.shapes == report.filled == ()
    assert set(report.unused) == {*never_read, "optimizer_scale"}
    assert set(report.zeros) == set(never_read)
    assert report.idle == ("typo.{i} = mask_decoder.typo.{i}",)
    assert any("point_embeddings.{i}.weight (4)" in line for line in report.lines())


def test_a_map_that_gives_too_little(tmp_path: Path) -> None:
    """Missing names and wrong shapes in one report; --vggish gives what it can."""
    model = load_model(save_model(tmp_path / "m.safetensors"))
    state = {k: v for k, v in in_own_names(model).items() if not k.startswith("ear.")}
    state["say.0.weight"] = torch.zeros(3, 3)
    del state["nothing"]
    torch.save(state, tmp_path / "own.pth")
    (tmp_path / "names.toml").write_text(OWN_NAMES)
    torch.save(vggish_state(), tmp_path / "v.pth")
    with pytest.raises(CheckpointError, match="not give a complete model") as caught:
        convert(
            tmp_path / "own.pth", tmp_path / "o.safetensors", names=tmp_path / "names.toml",
            vggish=tmp_path / "v.pth",
        )  # fmt: skip
    told = str(caught.value)
    assert "missing of ours: prompt_encoder.no_mask_embed.weight\n" in told
    assert "audio_prompt.layers.0.weight (3, 3), expected (256, 32)" in told
    assert "given by --sam or --vggish: audio_encoder." in told
    assert "audio_encoder.features.{i}.weight (6)" in told
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names"),
        ("[names]", "their name"),
        ("[names]\na = 1", "names.a"),
        ("[names]\na.b = 'c'", "names.a(.|\n)*quotes"),
        ("[names]\n'a.{x}' = 'b.{x}'", r"\{x\}(.|\n)*\{rest\}"),
        ("[names]\n'a.{i}' = 'b.{j}'", r"each of \{i\} once"),
        ("[names]\n'a.{i}.{i}' = 'b.{i}.{i}'", "once"),
        ("[names]\n'a' = 'b.{i.__class__}'", "once"),
        ("system = 'yolo'\n[names]\n'a' = 'b'", "system(.|\n)*sama_avs"),
        ("backbone = 'vit_q'\n[names]\n'a' = 'b'", "backbone"),
        ("[switches]\ndepht = 3\n[names]\n'a' = 'b'", "switches.depht(.|\n)*depth"),
        ("more = 1\n[names]\n'a' = 'b'", "unknown key more"),
        ("[names]\n'a' = 'image_encoder.neck.0.weight'", "unknown size(.|\n)*vit_b 768x12"),
        ("[names]\n'{rest}' = 'a{rest}'\n[switches]\nres = 3", "switches.res"),
    ],
)
def test_maps_that_say_nothing(tmp_path: Path, text: str, said: str) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "own.pth")
    (tmp_path / "n.toml").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        convert(tmp_path / "own.pth", tmp_path / "o.safetensors", names=tmp_path / "n.toml")


def test_two_of_theirs_for_one_of_ours(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "own.pth")
    (tmp_path / "n.toml").write_text("[names]\n'a' = 'c'\n'b' = 'c'")
    with pytest.raises(CheckpointError, match="a and b = c"):
        convert(tmp_path / "own.pth", tmp_path / "o.safetensors", names=tmp_path / "n.toml")
