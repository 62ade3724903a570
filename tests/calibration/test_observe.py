"""Ranges of a model's tensors: independent maxima, resume, NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from save_deploy.calibration.observe import Observer, observe
from save_deploy.errors import DataError
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import Forms
from save_deploy.export.quantize import find_sites
from tests.conftest import make_tiny


@pytest.fixture(scope="module")
def deploy() -> DeployModel:
    return DeployModel(make_tiny(), Forms().quantizable()).eval()


@pytest.fixture(scope="module")
def pairs() -> list[tuple[torch.Tensor, ...]]:
    torch.manual_seed(5)
    shape = (1, 64, 64, 3)
    return [(torch.randint(0, 256, shape, dtype=torch.uint8), torch.rand(1, 128)) for _ in range(5)]


def names(deploy: DeployModel) -> list[str]:
    return [p.name for p in find_sites(deploy)]


def test_maxima_equal_the_blocks_own_values(deploy, pairs) -> None:  # type: ignore[no-untyped-def]
    """norm1's output is qkv's input: recorded by a hook on another module."""
    observer = Observer(deploy, names(deploy))
    observe(deploy, observer, pairs)
    seen: list[torch.Tensor] = []
    handle = deploy.blocks[1].norm1.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.inference_mode():
        for args in pairs:
            deploy(*args)
    handle.remove()
    values = torch.stack(seen).abs()
    histogram = observer.histograms["blocks.1.attn.qkv"]
    assert histogram.amax("minmax") == pytest.approx(values.max().item(), rel=1e-6)
    assert histogram.count == values.numel() and observer.seen == len(pairs)
    assert not deploy.blocks[0].attn.qkv._forward_pre_hooks


def test_resumed_equals_uninterrupted(deploy, pairs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whole = Observer(deploy, names(deploy))
    observe(deploy, whole, pairs)

    def until_the_third():  # type: ignore[no-untyped-def]
        yield from pairs[:3]
        raise KeyboardInterrupt

    first = Observer(deploy, names(deploy))
    with pytest.raises(KeyboardInterrupt):
        observe(deploy, first, until_the_third())
    first.save(tmp_path / "state.npz", "model+data")
    second = Observer(deploy, names(deploy))
    assert not second.resume(tmp_path / "state.npz", "other data")
    assert second.seen == 0
    assert second.resume(tmp_path / "state.npz", "model+data")
    observe(deploy, second, pairs[second.seen :])
    for name, histogram in whole.histograms.items():
        assert second.histograms[name].summary() == histogram.summary()
        assert second.histograms[name].amax("mse") == histogram.amax("mse")


def test_a_damaged_state_is_not_taken_up(deploy, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    observer = Observer(deploy, names(deploy))
    for content in (b"", b"PK\x03\x04 not a zip", b"no archive"):
        (tmp_path / "state.npz").write_bytes(content)
        assert not observer.resume(tmp_path / "state.npz", "key")
    with (tmp_path / "state.npz").open("wb") as file:
        np.save(file, np.zeros(3))  # one array, no archive
    assert not observer.resume(tmp_path / "state.npz", "key")
    assert not observer.resume(tmp_path / "nothing.npz", "key")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("seen", np.array(-1)),
        ("seen", np.array([1, 2])),
        ("seen", np.array("two")),
        ("{last}/counts", np.zeros(3, np.int64)),
        ("{last}/channel_top", np.zeros(3, np.float32)),
        ("{last}/channel_rows", np.array(["x"])),
        ("{last}/channel_sum", None),
        ("{last}/channel_counts", np.array([-1, 2])),
        ("{last}/channel_counts", np.array([0.5, 2])),
    ],
)
def test_a_refused_state_changes_nothing(  # type: ignore[no-untyped-def]
    deploy, pairs, tmp_path: Path, entry: str, value: np.ndarray | None
) -> None:
    """Wrong in its last part, so that all others are read before it is refused."""
    chosen = names(deploy)
    first = Observer(deploy, chosen, channels=chosen)
    observe(deploy, first, pairs[:1])
    path = tmp_path / "state.npz"
    first.save(path, "key")
    fresh = lambda: Observer(deploy, chosen, channels=chosen)
    taken = fresh()
    assert taken.resume(path, "key") and taken.seen == 1
    assert np.array_equal(taken.channels[chosen[-1]].rows, first.channels[chosen[-1]].rows)
    arrays = dict(np.load(path))
    key = entry.format(last=chosen[-1])
    arrays = {k: v for k, v in arrays.items() if k != key} | ({} if value is None else {key: value})
    np.savez(path, **arrays)
    observer = fresh()
    assert not observer.resume(path, "key")
    assert observer.seen == 0
    for name in chosen:
        assert observer.histograms[name].count == observer.channels[name].amax.size == 0


def test_nan_names_its_tensor(deploy, pairs) -> None:  # type: ignore[no-untyped-def]
    observer = Observer(deploy, names(deploy))
    image, sound = pairs[0]
    with pytest.raises(DataError, match=r"blocks\.\d"):
        observe(deploy, observer, [(image, torch.full_like(sound, float("nan")))])
