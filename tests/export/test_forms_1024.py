"""Forms of the merge at 1024 px on CPUs: attention in strips, transposed convolution by Winograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from save_deploy.export.graph import save_graph
from save_deploy.export.merge import attention, winograd
from save_deploy.export.merge.adapter import WinogradAdapter
from save_deploy.export.merge.attention import DeployAttention
from save_deploy.export.merge.block import DeployBlock
from save_deploy.export.merge.deploy import merge
from save_deploy.export.merge.forms import Forms, forms_for
from save_deploy.export.merge.proof import count_macs
from save_deploy.export.merge.winograd import WinogradUp
from save_deploy.export.trace import graph_from_module
from tests.export.test_merge import double_block

WIDE = forms_for("onnxruntime", res=1024)


@pytest.mark.parametrize("side", [1, 4, 5, 7, 8])
def test_winograd_is_the_transposed_convolution(side: int) -> None:
    """Against torch in float64, two frames; the twin: with two products exchanged it is not."""
    generator = torch.Generator().manual_seed(side)
    weight = torch.randn(6, 6, 4, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(2, side, side, 6, generator=generator, dtype=torch.float64)
    expected = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, stride=2, padding=1)
    up = WinogradUp(weight)
    with torch.inference_mode():
        torch.testing.assert_close(up(x), expected.permute(0, 2, 3, 1), rtol=0, atol=1e-12)
        up.products[0], up.products[4] = up.products[4], up.products[0]
        assert (up(x) - expected.permute(0, 2, 3, 1)).abs().max() > 1e-2


def test_work_of_winograd() -> None:
    """Counted by hand: 9 products of 17 x 17 tiles with 4 C^2 weights, and not 16 C^2 a token."""
    weight = torch.randn(8, 8, 4, 4)
    up, x = WinogradUp(weight), torch.zeros(1, 32, 32, 8)
    assert count_macs(up, x) == 9 * 17 * 17 * 4 * 8 * 8
    assert sum(p.numel() for p in up.parameters()) == 36 * 8 * 8
    direct = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, bias=False)
    assert count_macs(direct, x.permute(0, 3, 1, 2)) == 16 * 32 * 32 * 8 * 8


def softmax_sizes(block: DeployBlock, folder: Path) -> list[int]:
    """Elements of every softmax of the written block, for one frame on a 16x16 grid."""
    module = block.float().eval().requires_grad_(False)
    graph = graph_from_module(module, (torch.zeros(1, 16, 16, 32),), inputs=["x"], output="y")
    save_graph(graph, folder / "block.onnx")
    found = onnx.shape_inference.infer_shapes(
        onnx.load(folder / "block.onnx"), data_prop=True
    ).graph
    sizes = {
        v.name: math.prod(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in found.value_info
    }
    return [sizes[node.output[0]] for node in found.node if node.op_type == "Softmax"]


def test_scores_of_a_strip(tmp_path: Path) -> None:
    """8 of 16 query rows of one of two heads at a time; the twin: all at once without strips.

    Blocks with windows keep one softmax for each window shape.
    """
    block = double_block(256, 0).float()
    whole = 2 * 256 * 256
    assert softmax_sizes(DeployBlock(block, 16, Forms()), tmp_path) == [whole]
    assert softmax_sizes(DeployBlock(block, 16, WIDE), tmp_path) == [whole // 4] * 4
    windows = DeployBlock(double_block(256, 14), 16, WIDE)
    assert len(softmax_sizes(windows, tmp_path)) == 4


def without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DeployAttention._biased
    lost = lambda self, q, k, v, rows, cols: whole(self, q, k, v, 0 * rows, cols)
    monkeypatch.setattr(DeployAttention, "_biased", lost)


def heads_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DeployAttention._attend
    monkeypatch.setattr(
        DeployAttention, "_attend", lambda self, q, k, v, *size: whole(self, q, k, v.flip(1), *size)
    )


def strips_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    cat = torch.cat
    monkeypatch.setattr(
        attention.torch, "cat", lambda ts, dim=0: cat(list(ts)[::-1] if dim == 2 else list(ts), dim)
    )


def signs_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_outputs", lambda m: (m[0] + m[1], m[1] + m[2]))


BREAKAGES = [without_rows, heads_exchanged, strips_exchanged, signs_exchanged]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda b: b.__name__)
def test_a_wrong_wide_block_is_caught(
    breakage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of test_block_in_float64: each mistake is far above the tolerance."""
    block, x = double_block(256, 0), torch.randn(1, 16, 16, 32, dtype=torch.float64)
    deploy = DeployBlock(block, 16, WIDE)
    assert isinstance(deploy.adapter, WinogradAdapter)
    with torch.inference_mode():
        expected = block(x)
        assert (deploy(x) - expected).abs().max() <= 1e-9
        breakage(monkeypatch)
        assert (deploy(x) - expected).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "breakage", [None, *BREAKAGES], ids=lambda b: getattr(b, "__name__", "none")
)
def test_the_proof_names_the_wrong_form(tiny, breakage, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A mistake in strips is one of rel_pos, a mistake in Winograd one of the adapter."""
    if breakage is not None:
        breakage(monkeypatch)
    _, proof = merge(tiny(res=224), WIDE)
    wrong = {r.name for r in proof.rewrites if not r.exact}
    assert proof.exact == (breakage is None)
    if breakage is None:
        assert not wrong
    else:
        assert ("adapter" if breakage is signs_exchanged else "rel_pos") in wrong
    adapter = next(r for r in proof.rewrites if r.name == "adapter")
    assert adapter.params_after > adapter.params_before
