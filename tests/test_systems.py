"""All eight systems of the paper: counts, what a step trains, scores, ONNX parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from save_deploy.checkpoints.native import read_native, save_checkpoint
from save_deploy.config import SaveConfig
from save_deploy.data.scenes import Scenes
from save_deploy.errors import SaveDeployError
from save_deploy.model.save import SaveModel
from save_deploy.systems import SYSTEMS, comes_with_sam, group_of
from save_deploy.training.evaluate import best_mask, evaluate
from save_deploy.training.parameters import trainable_parameters
from save_deploy.training.start import initial_model
from save_deploy.training.systems_table import scene_batch, try_step
from tests.conftest import TINY, make_tiny, randomise

BACKBONES = ("vit_b", "vit_l", "vit_h")
# SPEC 1.6 and 6: what the trained parts hold, the decoder's unused heads (132,612 + 419,424) left out
UNUSED = 132_612 + 419_424
LEARNED = {
    "save": {"vit_b": 194_377_444, "vit_l": 671_499_236, "vit_h": 1_383_634_148},
    "save_star": {"vit_b": 13_872_868, "vit_l": 29_721_572, "vit_h": 46_617_828},
    "sama_avs": {
        "vit_b": 1_186_560 + 4_058_596, "vit_l": 2_110_464 + 4_058_596,
        "vit_h": 6_276_736 + UNUSED,
    },
}  # fmt: skip


def tiny(system: str, **changes: Any) -> SaveModel:
    switches = dict(SYSTEMS[system].switches)
    if system == "gavs":
        switches |= {"image_adapter_start": 1, "bottleneck_dim": 12}
    return make_tiny(**{**switches, "system": system, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("system", LEARNED)
def test_learned_parameters(system: str, backbone: str) -> None:
    with torch.device("meta"):
        model = SaveModel(SaveConfig.of_system(system, backbone))
    learned = trainable_parameters(model, freeze_sam=True)
    assert sum(p.numel() for p in learned.values()) == LEARNED[system][backbone] - UNUSED


@pytest.mark.slow
def test_gavs_parameters() -> None:
    """Three visual bottlenecks, two in the decoder, a 128-512-256 prompt, norms of the last two."""
    with torch.device("meta"):
        model = SaveModel(SaveConfig.of_system("gavs", "vit_b", res=1024))
    learned = trainable_parameters(model, freeze_sam=True)
    visual = 3 * (768 * 128 + 128 + 128 * 768 + 768)
    decoder = 2 * (256 * 128 + 128 + 128 * 256 + 256)
    prompt = 128 * 512 + 512 + 512 * 256 + 256
    norms = 2 * 2 * 2 * 768
    assert sum(p.numel() for p in learned.values()) == visual + decoder + prompt + norms


@pytest.mark.slow
@pytest.mark.parametrize("system", [s for s in SYSTEMS if s != "sam"])
def test_a_step_trains_exactly_what_it_should(system: str) -> None:
    model = tiny(system).train()
    assert try_step(model, scene_batch(64, 2)) == "yes"
    groups = {group_of(n, 3) for n, p in model.named_parameters() if p.requires_grad}
    assert groups == set(SYSTEMS[system].trains)


@pytest.mark.slow
def test_a_step_that_trains_too_little_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a prompt that the decoder never reads does not move."""
    model = tiny("save").train()
    monkeypatch.setattr(
        SaveModel, "decode", lambda self, x, source: decode_without_prompt(self, x, source)
    )
    assert "unmoved" in try_step(model, scene_batch(64, 2))


def decode_without_prompt(model: SaveModel, x: torch.Tensor, source: torch.Tensor) -> Any:
    from save_deploy.model.save import decode_masks

    return decode_masks(None, model.prompt_encoder, model.mask_decoder, x, source)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_it_scores_and_keeps_its_name(system: str, tmp_path: Path) -> None:
    model = tiny(system)
    score = evaluate(model, Scenes(n_clips=1))
    assert 0 <= score.m_j <= 100 and score.n_frames == 5
    save_checkpoint(tmp_path / "a.safetensors", model, kind="adapter")
    state, config, _ = read_native(tmp_path / "a.safetensors")
    assert config.system == system
    assert not any(comes_with_sam(name, system, 3) for name in state)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["save", pytest.param("gavs", marks=pytest.mark.thorough)])
def test_export_with_parity(system: str, tmp_path: Path) -> None:
    """The real exporter on a small model, within 1e-4 of eager's range. Where the other systems differ
    from these two, test_merge.py compares in float64."""
    from save_deploy.bundle import model_spec
    from save_deploy.export.graph import save_graph
    from save_deploy.export.merge.deploy import merge
    from save_deploy.export.trace import graph_from_module
    from save_deploy.runtime.session import open_session

    model = tiny(system)
    deploy, proof = merge(model)
    spec = model_spec(model.config)
    frames = torch.randint(0, 256, spec.inputs[0].shape, dtype=torch.uint8)
    sound = torch.rand(1, 128)
    graph = graph_from_module(
        deploy, (frames, sound), inputs=[i.name for i in spec.inputs], output="mask_logits"
    )
    save_graph(graph, tmp_path / "model.onnx")
    with open_session("onnxruntime", tmp_path / "model.onnx", spec) as session:
        got = session.infer({"image": frames.numpy(), "audio_embedding": sound.numpy()})
    with torch.inference_mode():
        expected = model.forward_embedding(frames, sound).numpy()
        other = model.forward_embedding(frames, sound + 1).numpy()
    spread = expected.max() - expected.min()
    assert proof.exact
    assert np.abs(got["mask_logits"] - expected).max() <= 1e-4 * spread
    # the twin: another sound must be told apart
    assert np.abs(other - expected).max() > 1e-3 * spread


@pytest.mark.slow
def test_oracle_equals_segment_anything() -> None:
    """The best of SAM's masks at grid points, against segment-anything's own predictor."""
    model = tiny("sam")
    config = model.config
    encoder = nn.Module()
    encoder.img_size = config.res  # type: ignore[assignment]
    encoder.forward = model.image_encoder.forward  # type: ignore[method-assign]
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    sam = Sam(
        encoder, PromptEncoder(256, (4, 4), (64, 64), 16),
        MaskDecoder(transformer_dim=256, transformer=transformer),
    ).eval()  # fmt: skip
    sam.prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
    sam.mask_decoder.load_state_dict(model.mask_decoder.state_dict())
    predictor = SamPredictor(sam)
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    truth = np.zeros((64, 64), bool)
    truth[10:40, 20:50] = True
    predictor.set_image(frame)
    candidates = [
        predictor.predict(multimask_output=m, return_logits=True)[0] for m in (True, False)
    ]
    for y in (16.0, 48.0):
        for x in (16.0, 48.0):
            point = dict(point_coords=np.array([[x, y]]), point_labels=np.array([1]))
            candidates.append(predictor.predict(**point, return_logits=True)[0])  # type: ignore[arg-type]

    def iou(logits: np.ndarray) -> float:
        return ((logits > 0) & truth).sum() / ((logits > 0) | truth).sum()

    best = max((c for many in candidates for c in many), key=iou)
    with torch.inference_mode():
        got = best_mask(model, torch.from_numpy(frame)[None], truth, 2)[0, 0].numpy()
    np.testing.assert_allclose(got, best, atol=1e-4 * np.abs(best).max())
    assert iou(got) >= max(iou(c[0]) for c in candidates)


@pytest.mark.slow
def test_checkpoint_of_another_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from save_deploy.checkpoints import load_model

    path = tmp_path / "gavs.safetensors"
    save_checkpoint(path, tiny("gavs"))
    with pytest.raises(SaveDeployError, match=r"another system(.|\n)*GAVS(.|\n)*SAVE"):
        initial_model(res=64, init=path, system="save")
    with pytest.raises(SaveDeployError, match=r"another system(.|\n)*GAVS(.|\n)*SAMA-AVS"):
        load_model(path, system="sama_avs")
    assert initial_model(res=64, init=path).config.system == "gavs"


def test_unknown_system_and_backbone() -> None:
    with pytest.raises(SaveDeployError, match="save, save_star"):
        SaveConfig.of_system("savee")
    with pytest.raises(SaveDeployError, match=r"unknown preset(.|\n)*vit_b"):
        SaveConfig.of_system("gavs", "vit_x")
    with pytest.raises(SaveDeployError, match="need each other"):
        SaveConfig(**{**TINY, "post_fusion": "add"})


@pytest.mark.slow
def test_three_layer_audio_mlp() -> None:
    """Table 9's variant is a switch: one more linear per block."""
    two, three = make_tiny(), make_tiny(audio_layers=3)
    extra = sum(p.numel() for p in three.parameters()) - sum(p.numel() for p in two.parameters())
    assert extra == TINY["depth"] * (TINY["audio_hidden"] ** 2 + TINY["audio_hidden"])
    randomise(three)
    assert try_step(three.train(), scene_batch(64, 2)) == "yes"
