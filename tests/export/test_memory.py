"""Memory of large models: paged-out weights keep their values, freed ones are gone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from save_deploy.checkpoints import load_model
from save_deploy.config import SaveConfig
from save_deploy.export import memory
from save_deploy.export.memory import frames_at_once, free_weights, is_large, page_out


def mapped_kib() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssFile"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise as on Linux")
def test_page_out(tmp_path: Path) -> None:
    """64 MiB of mapped weights leave memory and come back the same."""
    values = np.random.default_rng(0).random((4096, 4096), dtype=np.float32)
    path = tmp_path / "w.bin"
    path.write_bytes(values.tobytes())
    module = nn.Linear(1, 1, bias=False)
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=values.nbytes)
    mapped = torch.tensor([]).set_(storage).reshape(4096, 4096)  # type: ignore[call-overload]
    module.weight = nn.Parameter(mapped, requires_grad=False)
    assert module.weight.sum() > 0  # read once
    before = mapped_kib()
    page_out(module)
    assert before - mapped_kib() > 60_000
    np.testing.assert_array_equal(module.weight.numpy(), values)


def test_changed_weights_survive() -> None:
    """Ordinary memory is never dropped."""
    module = nn.Linear(512, 512)
    before = module.weight.detach().clone()
    page_out(module)
    assert torch.equal(module.weight, before)


def test_free_weights() -> None:
    model = load_model()
    kept = model.image_encoder.blocks[0].mlp.lin1.weight
    free_weights(model)
    assert kept.numel() == 0
    assert all(tensor.numel() == 0 for tensor in [*model.parameters(), *model.buffers()])


def test_large_is_over_2_gb_with_the_scores_of_a_global_block() -> None:
    """Scores of vit_b at 1024 px: 12 heads x (64 x 64)^2 x 4 bytes."""
    config, scores = SaveConfig.preset("vit_b", res=1024), 12 * 4096**2 * 4
    assert not is_large(config, 2_000_000_000 - scores)
    assert is_large(config, 2_000_000_001 - scores)


@pytest.mark.parametrize(
    ("large", "available", "pages_out"), [(False, 0, 0), (True, 47, 2), (True, 48, 0)]
)
def test_only_large_models_are_paged_out_and_freed(
    monkeypatch: pytest.MonkeyPatch, large: bool, available: int, pages_out: int
) -> None:
    """Once per stage, not once per call; not with twice the 24 bytes of the weights at hand."""
    model, paged = nn.Linear(2, 2), list[nn.Module]()
    monkeypatch.setattr(memory, "page_out", paged.append)
    monkeypatch.setattr(memory, "is_large", lambda config, n_bytes: large)
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    weights = memory.WeightMemory(model, SaveConfig.preset("vit_t"))
    announce = weights.between_stages(lambda stage, detail: None)
    for stage in ("export", "export", "parity"):
        announce(stage, "")
    assert len(paged) == pages_out
    weights.free(model)
    assert model.weight.numel() == (0 if large else 4)


def test_frames_of_one_call_fit_into_2_gb() -> None:
    """Four tensors of the size of the scores a frame, eight frames at most.

    vit_b: 12 heads, 256 tokens at 256 px, 1024 tokens at 512 px (201 MB a frame with 4 bytes each),
    4096 tokens at 1024 px.
    """
    config = SaveConfig.preset("vit_b")
    assert 4 * 4 * 12 * 1024**2 == 201_326_592
    assert [frames_at_once(config.replace(res=res)) for res in (256, 512, 1024)] == [8, 8, 1]
    assert frames_at_once(config.replace(res=640)) == 2_000_000_000 // (4 * 4 * 12 * 1600**2) == 4
