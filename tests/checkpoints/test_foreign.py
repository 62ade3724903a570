"""Other projects' files as SaveModel: same function, both directions, nothing lost in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from save_deploy.checkpoints import load_model
from save_deploy.checkpoints.foreign import (
    from_save,
    identify,
    read_sam,
    read_vggish,
    shapes_of,
    swap_colors,
    to_ours,
    to_save,
)
from save_deploy.checkpoints.load import model_from_state
from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError, SaveDeployError
from save_deploy.model.save import SaveModel
from tests.checkpoints.files import (
    gavs_forward,
    gavs_state,
    med2d_state,
    sam_modules,
    sam_state,
    sama_forward,
    sama_state,
    vggish_state,
)
from tests.conftest import make_tiny, randomise

pytestmark = pytest.mark.usefixtures("presets")


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def frame_and_sound(side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    frame = torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8)
    return frame, torch.randn(1, 1, 96, 64, generator=generator)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", ["", "model"])
def test_sama_computes_what_its_code_computes(tmp_path: Path, prefix: str, wrapper: str) -> None:
    parts = sam_modules()
    state = sama_state(parts)
    content: Any = {prefix + k: v for k, v in state.items()}
    path = saved(tmp_path / "model_epoch_best.pth", {wrapper: content} if wrapper else content)
    model = load_model(path)
    assert (model.config.system, model.config.name, model.config.res) == ("sama_avs", "vit_x", 64)
    frame, log_mel = frame_and_sound()
    expected = sama_forward(parts, state, frame, log_mel)
    torch.testing.assert_close(model(frame, log_mel), expected, rtol=1e-5, atol=1e-5)
    # the sound shows, and so does its own matrix: with SAM's there would be another mask
    assert (model(frame, -log_mel) - expected).abs().max() > 1e-3
    model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.neg_()
    assert (model(frame, log_mel) - expected).abs().max() > 1e-3


def test_sama_there_and_back(tmp_path: Path) -> None:
    state = sama_state(sam_modules())
    layout = identify(shapes_of(state))
    assert layout is not None and layout.complete and layout.name == "sama_avs"
    config, ours = to_save(state, layout)
    assert equal(from_save(ours, config, "sama_avs"), state)
    never_read = "prompt_encoder.mask_downscaling.0.weight"
    assert torch.equal(ours[never_read], torch.zeros(4, 1, 2, 2))


def test_sama_from_our_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SaveConfig.of_system("sama_avs", "vit_x").replace(res=64)
    model = randomise(SaveModel(config)).requires_grad_(False).eval()
    theirs = from_save(model.state_dict(), config, "sama_avs")
    assert "image_encoder.prompt_generator.lightweight_mlp_2.0.bias" in theirs
    assert not any(
        k.startswith(("prompt_encoder", "audio_adapter", "audio_prompt")) for k in theirs
    )
    loaded = load_model(saved(tmp_path / "f.pth", theirs))
    frame, log_mel = frame_and_sound()
    assert loaded.config == config
    assert torch.equal(loaded(frame, log_mel), model(frame, log_mel))


@pytest.mark.slow
def test_sama_of_vit_h_has_every_parameter_of_its_code() -> None:
    """SPEC 7: 715,996,004 parameters; ours add the rest of SAM's prompt encoder, never read."""
    config = SaveConfig.of_system("sama_avs", "vit_h", res=1024)
    with torch.device("meta"):
        model = SaveModel(config)
    theirs = from_save({k: v.to("meta") for k, v in model.state_dict().items()}, config, "sama_avs")
    matrix = "pe_layer.positional_encoding_gaussian_matrix"  # a buffer
    assert sum(v.numel() for k, v in theirs.items() if k != matrix) == 715_996_004
    point_and_mask_prompts = 5 * 256 + (4 * 4 + 4) + 2 * 4 + (16 * 4 * 4 + 16) + 2 * 16 + 17 * 256
    assert sum(p.numel() for p in model.parameters()) == 715_996_004 + point_and_mask_prompts
    layout = identify(shapes_of(theirs))
    assert layout is not None and layout.complete
    assert (layout.backbone, layout.res) == ("vit_h", 1024)


@pytest.mark.slow
def test_sama_at_another_resolution_is_the_fine_tuned_row(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.pth", sama_state(sam_modules(1024)))
    assert load_model(path).config.system == "sama_avs"
    small = load_model(path, res=256)
    assert (small.config.system, small.config.res) == ("sama_avs_ft", 256)
    assert small.image_encoder.pos_embed.shape == (1, 16, 16, 32)
    assert load_model(path, res=1024).config.system == "sama_avs"
    assert load_model(path, res=256, system="sama_avs").config.system == "sama_avs"
    with pytest.raises(SaveDeployError, match="resolution"):
        load_model(path, res=300)


def test_of_another_system(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.pth", sama_state(sam_modules()))
    with pytest.raises(CheckpointError, match=r"another system\n.*SAMA-AVS in .*\n.*SAVE\(\*\*\)"):
        load_model(path, system="save")
    assert load_model(system="save").config.system == "save"  # the built-in one
    with pytest.raises(CheckpointError, match=r"SAVE\(\*\*\) in (.|\n)*GAVS"):
        load_model(system="gavs")
    with pytest.raises(SaveDeployError, match="unknown system"):
        load_model(system="yolo")


@pytest.mark.slow
@pytest.mark.parametrize("tune_v", [2, 1])
def test_gavs_computes_what_its_code_computes(tmp_path: Path, tune_v: int) -> None:
    """On BGR frames, with the adapters of the last three blocks, or of as many as were tuned."""
    parts = sam_modules(depth=5)
    state = gavs_state(parts, 5, tune_v)
    path = saved(tmp_path / "epoch_59.pth", state)
    with pytest.raises(CheckpointError, match=r"without its audio encoder(.|\n)*--vggish"):
        load_model(path)
    model = load_model(path, vggish=saved(tmp_path / "vggish.pth", vggish_state()))
    config = model.config
    assert (config.system, config.name, config.image_adapter_start) == ("gavs", "vit_y", tune_v)
    frame, log_mel = frame_and_sound()
    sound = model.audio_encoder(log_mel)
    expected = gavs_forward(parts, state, frame, sound, tune_v)
    torch.testing.assert_close(model(frame, log_mel), expected, rtol=1e-4, atol=1e-4)
    assert (model(frame, -log_mel) - expected).abs().max() > 1e-2
    swapped = gavs_forward(parts, state, frame.flip(-1), sound, tune_v)
    assert (swapped - expected).abs().max() > 1e-2  # the order of colors shows


def test_gavs_there_and_back() -> None:
    state = gavs_state(sam_modules(depth=5), 5, tune_v=2)
    bare = {k.removeprefix("model_v."): v for k, v in state.items()}
    layout = identify(shapes_of(bare))
    assert layout is not None and layout.missing_groups == ("audio_encoder",)
    assert not layout.complete and not layout.unmatched
    config, ours = to_save(bare, layout)
    back = from_save(ours, config, "gavs")
    assert back.keys() == state.keys()
    for key, value in state.items():
        if "patch_embed" in key:  # rewritten for RGB and back
            torch.testing.assert_close(back[key], value, rtol=1e-5, atol=1e-5)
        elif ".adapter_v." in key and int(key.split(".")[3]) < 2:
            assert not back[key].any()  # never read by its code; zeros do nothing anywhere
        else:
            assert torch.equal(back[key], value), key


def test_gavs_with_a_sound_encoder_inside(tmp_path: Path) -> None:
    bare = {
        k.removeprefix("model_v."): v for k, v in gavs_state(sam_modules(depth=5), 5, 2).items()
    }
    bare |= {f"audio_encoder.{k}": v for k, v in vggish_state().items()}
    path = saved(tmp_path / "f.pth", bare)
    assert load_model(path).config.system == "gavs"
    with pytest.raises(CheckpointError, match="VGGish was given"):
        load_model(path, vggish=saved(tmp_path / "v.pth", vggish_state()))


def test_swapped_colors_twice_are_the_original() -> None:
    state = make_tiny().state_dict()
    back = swap_colors(swap_colors(state))
    for key in ("weight", "bias"):
        name = f"image_encoder.patch_embed.proj.{key}"
        assert not torch.allclose(swap_colors(state)[name], state[name])
        torch.testing.assert_close(back[name], state[name], rtol=1e-5, atol=1e-6)


def test_med2d_as_a_base(tmp_path: Path) -> None:
    """The wrapper its train.py writes, with the optimizer object in it."""
    state = med2d_state(sam_modules(256))
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
    path = saved(tmp_path / "epoch1_sam.pth", {"model": state, "optimizer": optimizer})
    base, preset = read_sam(path)
    assert preset == "vit_x" and len(base) == len(state)
    name = "image_encoder.blocks.1.adapter.spatial.2.weight"
    assert torch.equal(base[name], state["image_encoder.blocks.1.Adapter.spatial.2.weight"])
    assert base["image_encoder.pos_embed"].shape == (1, 16, 16, 32)
    # every tensor of SAVE(**) but its sound side, by name and shape
    model = SaveModel(SaveConfig.preset("vit_x", res=256))
    of_sound = ("audio_encoder.", "audio_adapter.", "audio_prompt.")
    picture = {k: v.shape for k, v in model.state_dict().items() if not k.startswith(of_sound)}
    assert {k: v.shape for k, v in base.items()} == picture
    with pytest.raises(CheckpointError, match=r"SAM-Med2D(.|\n)*save-train --sam"):
        load_model(path)


def test_med2d_there_and_back() -> None:
    config = SaveConfig.preset("vit_x", res=256)
    model = randomise(SaveModel(config)).requires_grad_(False)
    theirs = from_save(model.state_dict(), config, "sam_med2d")
    layout = identify(shapes_of(theirs))
    assert layout is not None and layout.name == "sam_med2d" and not layout.missing
    ours = to_ours(theirs, layout)
    assert ours and all(torch.equal(v, model.state_dict()[k]) for k, v in ours.items())
    assert any(".Adapter.norm.bias" in k for k in theirs)


def test_sam_names_are_segment_anythings() -> None:
    state = sam_state(sam_modules())
    layout = identify(shapes_of(state))
    assert layout is not None and (layout.name, layout.backbone, layout.res) == ("sam", "vit_x", 64)
    assert layout.names == {k: k for k in state} and not layout.unmatched and not layout.missing


def test_vggish_alone(tmp_path: Path) -> None:
    """The public file is of the legacy kind, which cannot be mapped."""
    path = tmp_path / "vggish.pth"
    torch.save(vggish_state(), path, _use_new_zipfile_serialization=False)
    found = read_vggish(path)
    expected = {f"audio_encoder.{k}": v for k, v in vggish_state().items()}
    assert equal(found, expected)
    with pytest.raises(CheckpointError, match=r"this is VGGish(.|\n)*save-train"):
        load_model(path)
    with pytest.raises(CheckpointError, match=r"not a SAM checkpoint(.|\n)*VGGish"):
        read_sam(path)
    with pytest.raises(CheckpointError, match=r"not a VGGish checkpoint(.|\n)*SAM"):
        read_vggish(saved(tmp_path / "sam.pth", sam_state(sam_modules())))


def test_every_stray_tensor_is_named(tmp_path: Path) -> None:
    """PCA of VGGish's outputs would change the sound: SAMA-AVS with it is not ours."""
    state = sama_state(sam_modules())
    pca = "audio_encoder.audio_backbone.pproc.pca_means"
    with pytest.raises(CheckpointError, match=rf"1 tensors are not part of a SAMA-AVS(.|\n)*{pca}"):
        load_model(saved(tmp_path / "f.pth", {**state, pca: torch.zeros(128, 1)}))
    del state["mask_decoder.iou_token.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors of SAMA-AVS are missing(.|\n)*iou_token"):
        load_model(saved(tmp_path / "g.pth", state))


def test_incomplete_sam_is_no_base(tmp_path: Path) -> None:
    state = sam_state(sam_modules())
    del state["image_encoder.blocks.1.norm1.bias"]
    with pytest.raises(CheckpointError, match=r"1 tensors of SAM are missing(.|\n)*norm1\.bias"):
        read_sam(saved(tmp_path / "f.pth", state))


def test_stored_pixel_means_must_be_sams(tmp_path: Path) -> None:
    state = sam_state(sam_modules())
    state["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    base, _ = read_sam(saved(tmp_path / "f.pth", state))
    assert "pixel_mean" not in base
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    with pytest.raises(CheckpointError, match="another pixel_mean"):
        read_sam(saved(tmp_path / "g.pth", state))


def test_unknown_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.pth", sama_state(sam_modules(depth=4), depth=4))
    with pytest.raises(CheckpointError, match=r"unknown size(.|\n)*width 32, depth 4"):
        load_model(path)


def test_our_tensors_without_their_configuration(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"SAVE's tensors without their configuration(.|\n)*--map"
    ):
        load_model(saved(tmp_path / "f.pth", make_tiny().state_dict()))


@pytest.mark.parametrize(
    ("changes", "layout", "said"),
    [
        (dict(system="save"), "sama_avs", "SAMA-AVS"),
        (dict(system="save", image_adapter_position="end"), "sam_med2d", "position=end"),
        (dict(system="save_star", image_adapter="off"), "sam_med2d", "cannot be written"),
        (dict(), "sam", "not a layout to write"),
        (dict(), "yolo", "not a layout to write"),
    ],
)
def test_what_their_code_would_compute_otherwise(
    changes: dict[str, Any], layout: str, said: str
) -> None:
    model = make_tiny(**changes)
    with pytest.raises(CheckpointError, match=said):
        from_save(model.state_dict(), model.config, layout)


def test_sama_with_our_injection_is_not_samas() -> None:
    config = SaveConfig.of_system("sama_avs", "vit_x", audio_inject="after")
    with pytest.raises(CheckpointError, match=r"audio_inject=after(.|\n)*audio_inject=before"):
        from_save(SaveModel(config).state_dict(), config, "sama_avs")


def test_model_of_mapped_tensors_is_strict() -> None:
    """to_save gives exactly the tensors of its configuration."""
    state = sama_state(sam_modules())
    layout = identify(shapes_of(state))
    assert layout is not None
    config, ours = to_save(state, layout)
    assert set(model_from_state(config, ours, source="test").state_dict()) == set(ours)
