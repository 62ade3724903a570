"""L = BCE + IoU loss on logits at network size (SPEC 6, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

IOU_EPS = 1e-7  # SAMA-AVS has none and gives NaN for an empty mask once all p underflow (A19)


def mask_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """mask_logits and masks {0,1} float (B,1,S,S) -> scalar: mean BCE over pixels + mean over images
    of 1 - I/U with soft I = sum p g, U = sum (p + g) - I."""
    bce = binary_cross_entropy_with_logits(mask_logits, masks)
    return bce + iou_loss(mask_logits.sigmoid(), masks)


def iou_loss(prob: Tensor, masks: Tensor) -> Tensor:
    """prob and masks (B,1,S,S) in [0,1] -> scalar. An empty mask contributes 1 and no gradient."""
    prob, masks = prob.flatten(1), masks.flatten(1)  # (B,S*S)
    inter = (prob * masks).sum(1)
    union = (prob + masks).sum(1) - inter
    return (1 - inter / (union + IOU_EPS)).mean()


def pixel_class_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Auxiliary: which object is at each token, sounding or not.

    class_logits (B,K,s,s); labels int64 (B,S,S), 0 = background -> scalar cross entropy against the
    share of each token that every class covers.
    """
    n_classes, grid = class_logits.shape[1], class_logits.shape[-1]
    labels = labels[:, ::4, ::4]  # every 4th pixel: enough for the share, 16 times less work
    one_hot = (
        torch.nn.functional.one_hot(labels, n_classes).permute(0, 3, 1, 2).float()
    )  # (B,K,S/4,S/4)
    target = interpolate(one_hot, (grid, grid), mode="area")
    return -(target * class_logits.log_softmax(dim=1)).sum(dim=1).mean()


def sound_class_loss(class_logits: Tensor, sounding: Tensor) -> Tensor:
    """Auxiliary: which objects are heard. class_logits and sounding {0,1} (B,K) -> scalar."""
    bce = binary_cross_entropy_with_logits(class_logits, sounding, reduction="none")
    return bce.sum(dim=1).mean()
