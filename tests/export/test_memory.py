"""Memory of large models: paged-out weights keep their values, freed ones are gone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from save_deploy.checkpoints import load_model
from save_deploy.export.memory import free_weights, page_out


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
