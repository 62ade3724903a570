"""SPEC 6's worked numbers, and the traps it names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from save_deploy.training.losses import (
    EDGE_PX,
    LOSSES,
    edge_loss,
    iou_loss,
    mask_loss,
    near_edges,
    pixel_class_loss,
    sound_class_loss,
)
from save_deploy.training.options import LOSS_NAMES

P = torch.tensor([[0.9, 0.4], [0.6, 0.1]])[None, None]
G = torch.tensor([[1.0, 1.0], [0.0, 0.0]])[None, None]


def test_worked_example() -> None:
    assert iou_loss(P, G).item() == pytest.approx(0.518519, abs=1e-6)
    assert mask_loss(torch.logit(P), G).item() == pytest.approx(1.029344, abs=1e-5)


def test_images_of_a_batch_are_averaged() -> None:
    """Whatever their masks' sizes: (0.518519 + 1) / 2 with an empty one beside it."""
    both = iou_loss(torch.cat([P, P]), torch.cat([G, 0 * G]))
    assert both.item() == pytest.approx((0.518519 + 1) / 2, abs=1e-6)


def test_empty_mask_is_one_and_has_no_gradient() -> None:
    logits = torch.full((1, 1, 2, 2), -200.0, requires_grad=True)  # every p underflows to 0
    loss = iou_loss(logits.sigmoid(), torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == 1.0
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


def test_pixel_classes_against_cross_entropy() -> None:
    """One class per token: the share form is ordinary cross entropy."""
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, 4)
    tokens = torch.randint(0, 5, (2, 4, 4))
    labels = tokens.repeat_interleave(16, 1).repeat_interleave(16, 2)
    expected = torch.nn.functional.cross_entropy(logits, tokens)
    torch.testing.assert_close(pixel_class_loss(logits, labels), expected)


def test_sound_classes_are_summed_and_images_averaged() -> None:
    logits, sounding = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert sound_class_loss(logits, sounding).item() == pytest.approx(3 * math.log(2))


def test_edge_loss_against_distances() -> None:
    """Pixels whose Chebyshev distance to the other kind is at most 4, by comparing all pairs."""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 24, 24), bool)
    masks[0, 6:18, 3:20], masks[1, :, 21:] = True, True
    logits = rng.normal(size=masks.shape)
    places = np.argwhere(np.ones((24, 24), bool))
    apart = np.abs(places[:, None] - places[None]).max(axis=2)  # (576,576)
    near = []
    for mask in masks.reshape(2, -1):
        near.append((apart + 1000 * (mask[:, None] == mask[None])).min(axis=1) <= EDGE_PX)
    target = torch.from_numpy(masks[:, None].astype(np.float32))
    np.testing.assert_array_equal(near_edges(target).numpy().reshape(2, -1) > 0, near)
    probability = 1 / (1 + np.exp(-logits))
    bce = -np.log(np.where(masks, probability, 1 - probability)).reshape(2, -1)
    found = edge_loss(torch.from_numpy(logits[:, None]).float(), target)
    assert found.item() == pytest.approx(bce[np.array(near)].mean(), rel=1e-5)
    whole = LOSSES["bce+iou+edge"](torch.from_numpy(logits[:, None]).float(), target)
    plain = mask_loss(torch.from_numpy(logits[:, None]).float(), target)
    assert whole.item() == pytest.approx(plain.item() + found.item(), rel=1e-6)


def test_edge_loss_without_edges() -> None:
    logits = torch.randn(1, 1, 8, 8)
    assert edge_loss(logits, torch.zeros(1, 1, 8, 8)).item() == 0
    assert edge_loss(logits, torch.ones(1, 1, 8, 8)).item() == 0


def test_losses_have_the_names_of_the_option() -> None:
    assert set(LOSSES) == set(LOSS_NAMES)
