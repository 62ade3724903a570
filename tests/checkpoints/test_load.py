"""Every way a weight file can be wrong, and the three ways it can be right."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, PromptEncoder

from save_deploy import config as config_module
from save_deploy.checkpoints import builtin_path, load_model, save_checkpoint
from save_deploy.checkpoints.foreign import read_sam
from save_deploy.checkpoints.load import resize_abs_pos, resize_rel_pos
from save_deploy.checkpoints.native import sam_fingerprint
from save_deploy.checkpoints.weights import open_weights
from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError, SaveDeployError
from save_deploy.model.mask_decoder import MaskDecoder
from save_deploy.model.save import SaveModel
from save_deploy.systems import comes_with_sam
from tests.conftest import TINY, randomise


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> SaveModel:
    """A small model whose size is registered as a preset, at 256 px."""
    preset = {k: v for k, v in TINY.items() if k not in ("name", "res")}
    monkeypatch.setitem(config_module.PRESETS, "vit_x", preset)
    torch.manual_seed(0)
    model = randomise(SaveModel(SaveConfig.preset("vit_x", res=256))).eval()
    assert isinstance(model, SaveModel)
    return model


def official_sam(path: Path, model: SaveModel) -> dict[str, torch.Tensor]:
    """A .pth as segment-anything's build_sam saves it: 1024 px tables, its own modules' keys."""
    torch.manual_seed(5)
    c = model.config
    encoder = ImageEncoderViT(
        img_size=1024, embed_dim=c.embed_dim, depth=c.depth, num_heads=c.num_heads,
        use_rel_pos=True, window_size=c.window_size, global_attn_indexes=c.global_blocks,
    )  # fmt: skip
    state = {f"image_encoder.{k}": v for k, v in randomise(encoder).state_dict().items()}
    prompt = PromptEncoder(256, (64, 64), (1024, 1024), 16)
    state |= {f"prompt_encoder.{k}": v for k, v in prompt.state_dict().items()}
    state |= {f"mask_decoder.{k}": v for k, v in MaskDecoder(c).state_dict().items()}
    torch.save(state, path)
    return state


def test_round_trip(small: SaveModel, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.safetensors", small)
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == small.config
    for key, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not list(tmp_path.glob("*.partial*"))


def test_adapter_only_over_official_sam(small: SaveModel, tmp_path: Path) -> None:
    """Frozen parts come from the .pth (positions resized), the trained parts from our file."""
    base = official_sam(tmp_path / "sam.pth", small)
    save_checkpoint(tmp_path / "a.safetensors", small, kind="adapter")
    loaded = load_model(tmp_path / "a.safetensors", sam=tmp_path / "sam.pth").state_dict()
    for key, value in loaded.items():
        if not comes_with_sam(key, "save", 3):
            assert torch.equal(value, small.state_dict()[key]), key
        elif value.shape == base[key].shape:
            assert torch.equal(value, base[key]), key
    expected = resize_abs_pos(base["image_encoder.pos_embed"], 16)
    assert torch.equal(loaded["image_encoder.pos_embed"], expected)
    assert loaded["image_encoder.blocks.2.attn.rel_pos_h"].shape == (31, 16)
    with pytest.raises(CheckpointError, match=r"--sam"):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.slow
def test_trained_parts_fit_one_sam(small: SaveModel, tmp_path: Path) -> None:
    """Trained on a copy of SAM (resized tables, bfloat16), refused over a fine-tuned one: one weight of
    the frozen encoder differs."""
    base, path = official_sam(tmp_path / "sam.pth", small), tmp_path / "a.safetensors"
    save_checkpoint(path, small, kind="adapter")
    trained = load_model(path, sam=tmp_path / "sam.pth").bfloat16()
    fits = sam_fingerprint(trained.state_dict(), trained.config)
    save_checkpoint(path, small, kind="adapter", notes={"sam": fits})
    load_model(path, sam=tmp_path / "sam.pth")
    base["image_encoder.blocks.1.mlp.lin1.weight"][3, 4] += 0.1
    torch.save(base, tmp_path / "tuned.pth")
    with pytest.raises(CheckpointError, match=rf"another SAM than(.|\n)*tuned.pth(.|\n)*{fits}"):
        load_model(path, sam=tmp_path / "tuned.pth")


def test_other_resolution(small: SaveModel, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.safetensors", small)
    loaded = load_model(tmp_path / "m.safetensors", res=224)
    assert loaded.config.res == 224 and loaded.image_encoder.pos_embed.shape[1] == 14
    with pytest.raises(SaveDeployError, match="resolution"):
        load_model(tmp_path / "m.safetensors", res=300)


def test_position_tables_worked_values() -> None:
    """SPEC 10: 64 -> 16 of a ramp samples 1.5 + 4k; 127 -> 31 and 127 -> 27 of a ramp."""
    ramp = torch.arange(64.0).reshape(1, 1, 64, 1).expand(1, 64, 64, 1)
    got = resize_abs_pos(ramp, 16)[0, 3, :, 0]
    torch.testing.assert_close(got, 1.5 + 4 * torch.arange(16.0))
    table = torch.arange(127.0)[:, None]
    to_31, to_27 = resize_rel_pos(table, 31)[:, 0], resize_rel_pos(table, 27)[:, 0]
    assert to_31[[0, 15, 30]].tolist() == pytest.approx([1.548387, 63.0, 124.451607], abs=1e-4)
    assert to_27[[0, 13]].tolist() == pytest.approx([1.851852, 63.0], abs=1e-4)


MED2D_TABLES = {  # side: pos_embed[3, :2] and its last, rel_pos[0] and its middle; sums of magnitudes
    16: ([0.34839, 0.127912, 0.724453, -0.773133], [-0.117131, 0.164398],
         [0.204588, -0.637536, -0.667534, 0.296938], [-0.845535, 0.999241, -0.802607, 0.327327],
         (94.8082, 60.3784)),
    14: ([-0.7203, 0.674639, -0.57263, 0.534738], [-0.431697, 0.132518],
         [0.608474, -0.440718, -0.887668, 0.011742], [-0.845531, 0.999234, -0.8026, 0.327322],
         (136.2409, 49.1399)),
}  # fmt: skip


@pytest.mark.parametrize("grid", MED2D_TABLES)
def test_position_tables_are_sam_med2ds(grid: int) -> None:
    """What SAM-Med2D's own load_from made of tables of 1024 px."""

    def table(*shape: int) -> torch.Tensor:
        steps = torch.arange(math.prod(shape), dtype=torch.float64)
        return torch.sin(0.7 * steps**1.2).float().reshape(shape)

    absolute = resize_abs_pos(table(1, 64, 64, 2), grid)
    relative = resize_rel_pos(table(127, 4), 2 * grid - 1)
    row, last, first, middle, sums = MED2D_TABLES[grid]
    assert absolute[0, 3, :2].flatten().tolist() == pytest.approx(row, abs=2e-5)
    assert absolute[0, -1, -1].tolist() == pytest.approx(last, abs=2e-5)
    assert relative[0].tolist() == pytest.approx(first, abs=2e-5)
    assert relative[grid - 1].tolist() == pytest.approx(middle, abs=2e-5)
    found = float(absolute.abs().sum()), float(relative.abs().sum())
    assert found == pytest.approx(sums, abs=1e-3)


def test_rel_pos_equals_segment_anything() -> None:
    from segment_anything.modeling.image_encoder import get_rel_pos

    table = torch.randn(127, 8)
    expected = get_rel_pos(16, 16, table)
    torch.testing.assert_close(get_rel_pos(16, 16, resize_rel_pos(table, 31)), expected)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Evil()}, "evil.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(CheckpointError):
            open_weights(Path(name))
    assert not Path("pwned").exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, 20_000])
def test_truncated_files(small: SaveModel, tmp_path: Path, kept: int) -> None:
    official_sam(tmp_path / "sam.pth", small)
    save_checkpoint(tmp_path / "m.safetensors", small)
    for name in ("sam.pth", "m.safetensors"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match=r"cannot be read|more than tensors"):
            load_model(path)


def test_wrong_keys_are_all_counted(small: SaveModel, tmp_path: Path) -> None:
    state = small.state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["image_encoder.neck.0.weight"]
    state["mask_decoder.iou_token.weight"] = torch.zeros(2, 256)
    metadata = {"format": "save-deploy", "format_version": "1", "kind": "full"}
    metadata["config"] = small.config.to_json()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(CheckpointError, match="3 tensors") as caught:
        load_model(tmp_path / "m.safetensors")
    text = str(caught.value)
    assert "missing image_encoder.neck.0.weight" in text and "unknown extra.weight" in text
    assert "shape of mask_decoder.iou_token.weight: (2, 256), expected (1, 256)" in text


def test_nan_weights(small: SaveModel, tmp_path: Path) -> None:
    small.image_encoder.blocks[0].mlp.lin1.weight.data[3, 3] = float("nan")
    save_checkpoint(tmp_path / "m.safetensors", small)
    with pytest.raises(CheckpointError, match=r"NaN(.|\n)*blocks\.0\.mlp\.lin1\.weight"):
        load_model(tmp_path / "m.safetensors")


def test_foreign_files(small: SaveModel, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="unknown checkpoint layout"):
        load_model(tmp_path / "x.safetensors")
    official_sam(tmp_path / "sam.pth", small)
    with pytest.raises(CheckpointError, match="SAM without SAVE"):
        load_model(tmp_path / "sam.pth")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="unknown checkpoint layout"):
        load_model(tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="not a SAM checkpoint"):
        read_sam(tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="not found"):
        load_model(tmp_path / "nothing.safetensors")


def test_builtin_checkpoint_is_small_and_loads() -> None:
    assert builtin_path().stat().st_size < 30e6
    model = load_model()
    assert (model.config.name, model.config.res) == ("vit_t", 256)
    assert model.config.image_adapter_skip == "input"  # as SAM-Med2D's published code


@pytest.mark.parametrize("beside", [True, False])
def test_the_state_of_a_run_names_its_weights(
    small: SaveModel, tmp_path: Path, beside: bool
) -> None:
    """last.pt of save-train: what it is, and which file is meant."""
    state = {"model": small.state_dict(), "optimizer": {}, "train_config": "{}", "step": 3}
    torch.save(state, tmp_path / "last.pt")
    if beside:
        (tmp_path / "best.safetensors").write_bytes(b"")
    word = "save-export .*best.safetensors" if beside else "save-train --resume"
    with pytest.raises(CheckpointError, match=rf"state of a training run(.|\n)*{word}"):
        load_model(tmp_path / "last.pt")
