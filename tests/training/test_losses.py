"""SPEC 6's worked numbers, and the traps it names."""

from __future__ import annotations

import math

import pytest
import torch

from save_deploy.training.losses import iou_loss, mask_loss, pixel_class_loss, sound_class_loss

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
