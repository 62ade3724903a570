"""Files of other projects by content: any suffix, wrapper and prefix, a loss or a copy beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from save_deploy.checkpoints import inspect_checkpoint, load_model
from save_deploy.checkpoints.foreign import read_sam, read_vggish
from save_deploy.checkpoints.weights import open_weights
from save_deploy.errors import CheckpointError, SaveDeployError
from save_deploy.training.start import initial_model
from tests.checkpoints.files import sam_modules, sam_state, sama_state, vggish_state

pytestmark = pytest.mark.usefixtures("presets")
LOSS = {"criterion.pos_weight": torch.ones(1)}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value.contiguous() for key, value in state.items()}


def compiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch.compile of one part: _orig_mod. in the middle of its names."""
    return {k.replace("image_encoder.", "image_encoder._orig_mod."): v for k, v in state.items()}


# file name -> content made of a state dict, what load says that it leaves out
FILES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "BEST.PTH": (lambda s: s, ()),
    "pytorch_model.bin": (lambda s: under("module.", s), ()),
    "net.pth.tar": (lambda s: {"state_dict": under("net.", s), "arch": "x"}, ("arch",)),
    "last.ckpt": (
        lambda s: {"state_dict": {**under("model.", s), **LOSS}, "epoch": 1},
        ("epoch", "criterion.pos_weight"),
    ),
    "loss": (lambda s: {**s, **LOSS}, ("criterion.pos_weight",)),
    "deep.pt": (lambda s: under("module.learner.sam.", s), ()),
    "ema.pth": (lambda s: {"ema": {"module": s, "updates": 7}}, ("updates",)),
    "named.pth": (lambda s: {"best_weights": s, "score": 0.5}, ("score",)),
    "two.pth": (
        lambda s: {"model": s, "ema": under("module.", s), "optimizer": {"state": {0: s}}},
        ("ema", "optimizer"),
    ),
    "copy.pth": (
        lambda s: {**under("net.", s), **under("ema_net.", s)},
        ("ema_net.image_encoder.pos_embed",),
    ),
    "compiled.pth": (compiled, ()),
    "model.safetensors": (lambda s: under("sam.", s), ()),
    "safetensors.pth": (lambda s: under("", s), ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_any_suffix_wrapper_and_prefix(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """inspect and load agree on whose it is; load gives every tensor and says what it left out."""
    state, path = sama_state(sam_modules()), tmp_path / name
    make, left_out = FILES[name]
    if "safetensors" in name:
        save_file(make(state), path)
    else:
        torch.save(make(state), path)
    found = inspect_checkpoint(path)
    assert (found.system, found.missing, found.unused) == ("SAMA-AVS", (), ())
    assert set(left_out) <= set(found.dropped) and bool(left_out) == bool(found.dropped)
    weights = load_model(path).state_dict()
    said = capsys.readouterr().err
    assert ("left out: " in said) == bool(left_out)
    assert all(word in said for word in left_out if not word.startswith("ema_net"))
    for key, value in state.items():
        if key.startswith(("image_encoder.blocks", "mask_decoder")):
            assert torch.equal(weights[key], value)


def test_training_starts_from_any_suffix(tmp_path: Path) -> None:
    torch.save(sama_state(sam_modules()), tmp_path / "last.ckpt")
    assert initial_model(init=tmp_path / "last.ckpt", res=64).config.system == "sama_avs"


def test_several_models_are_not_guessed_at(tmp_path: Path) -> None:
    state = sama_state(sam_modules())
    student = under("student.", state)
    torch.save(student | under("teacher.", state), tmp_path / "f.pth")
    assert inspect_checkpoint(tmp_path / "f.pth").dropped[0].startswith("teacher.")
    torch.save(student | under("second.", state), tmp_path / "g.pth")
    for read in (load_model, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=r"several models(.|\n)*second\., student\."):
            read(tmp_path / "g.pth")


def test_sam_and_vggish_as_others_store_them(tmp_path: Path, capsys: Any) -> None:
    """SAM as safetensors; torch.hub's VGGish, whose class also holds a PCA."""
    state = sam_state(sam_modules())
    save_file(under("", state), tmp_path / "sam.safetensors")
    base, preset = read_sam(tmp_path / "sam.safetensors")
    assert preset == "vit_x" and base.keys() == state.keys()
    assert inspect_checkpoint(tmp_path / "sam.safetensors").layout == "SAM (safetensors)"
    pca = {"pproc.pca_eigen_vectors": torch.ones(128, 128), "pproc.pca_means": torch.ones(128, 1)}
    torch.save({**vggish_state(), **pca}, tmp_path / "v.pth")
    assert read_vggish(tmp_path / "v.pth").keys() == under("audio_encoder.", vggish_state()).keys()
    assert "pproc.pca_means" in capsys.readouterr().err
    found = inspect_checkpoint(tmp_path / "v.pth")
    assert (found.unused, found.dropped) == ((), tuple(pca))


OTHERS: dict[str, tuple[Any, str]] = {
    "Medical-SAM-Adapter, not SAM-Med2D": (
        lambda s: {**s, "image_encoder.blocks.0.Adapter.D_fc1.weight": torch.ones(8, 32)},
        r"1 tensors are not part of a SAM checkpoint\n.*D_fc1",
    ),
    "SAM in a model of one's own": (
        lambda s: {**under("sam.", s), "sound.fc.weight": torch.ones(1)},
        r"SAM without SAVE's trained parts\n.*and in it sound\.fc\.weight",
    ),
    "embeddings, not VGGish": (
        lambda _: {"embeddings.0.weight": torch.ones(4, 4), "encoder.0.weight": torch.ones(4)},
        "unknown checkpoint layout",
    ),
    "MobileSAM, not SAM": (
        lambda _: {"image_encoder.patch_embed.seq.0.c.weight": torch.ones(4)},
        "unknown checkpoint layout",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_file_is_called_what_it_is_not(tmp_path: Path, name: str) -> None:
    make, said = OTHERS[name]
    torch.save(make(sam_state(sam_modules())), tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match=said):
        load_model(tmp_path / "f.pth")


def test_a_dict_that_contains_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        open_weights(tmp_path / "f.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.blocks.x.norm1.weight", (3,)),
        ("image_encoder.blocks.99999999999.norm1.weight", (3,)),
        (f"image_encoder.blocks.{'9' * 5000}.norm1.weight", (3,)),
        ("image_encoder.pos_embed", (3,)),
        ("image_encoder.pos_embed", (1, 0, 0, 32)),
        ("image_encoder.blocks.2.attn.rel_pos_h", (3,)),
        ("image_encoder.patch_embed.proj.weight", ()),
    ],
)
def test_names_and_shapes_that_make_no_sense(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    state = {**sama_state(sam_modules()), name: torch.zeros(shape)}
    torch.save(state, tmp_path / "f.pth")
    inspect_checkpoint(tmp_path / "f.pth")
    with pytest.raises(SaveDeployError):
        load_model(tmp_path / "f.pth")
