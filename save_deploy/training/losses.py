"""Loss L = BCE + IoU on logits at model resolution (SPEC 6, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, max_pool2d

IOU_EPS = 1e-7  # without it an empty mask gives NaN when all p underflow, as in SAMA-AVS (A19)
EDGE_PX = 4


def mask_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Return mean BCE over pixels + mean over images of 1 - I/U, for logits and masks (B,1,S,S).

    masks: float {0,1}.
    Soft I = sum p g, U = sum (p + g) - I.
    """
    bce = binary_cross_entropy_with_logits(mask_logits, masks)
    return bce + iou_loss(mask_logits.sigmoid(), masks)


def bce_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Return mean BCE over pixels, the loss of GAVS."""
    return binary_cross_entropy_with_logits(mask_logits, masks)


def mask_and_edge_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Return mask_loss plus edge_loss."""
    return mask_loss(mask_logits, masks) + edge_loss(mask_logits, masks)


def edge_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Return mean BCE over the pixels within EDGE_PX of an edge of the mask; 0 without edges.

    mask_logits, masks float {0,1}: (B,1,S,S). The distance is counted in rows and in columns.
    """
    near = near_edges(masks)
    bce = binary_cross_entropy_with_logits(mask_logits, masks, reduction="none")
    return (bce * near).sum() / near.sum().clamp(min=1)


def near_edges(masks: Tensor) -> Tensor:
    """Return 1 for the pixels within EDGE_PX of a pixel of the other kind, else 0: (B,1,S,S)."""
    both = torch.cat([masks, 1 - masks], dim=1)  # (B,2,S,S)
    # rows, then columns: the same maximum in a quarter of the time
    for axis in ((1, 0), (0, 1)):
        size, padding = [2 * EDGE_PX * d + 1 for d in axis], [EDGE_PX * d for d in axis]
        both = max_pool2d(both, size, stride=1, padding=padding)
    return both.prod(dim=1, keepdim=True)


def iou_loss(prob: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of 1 - IoU for prob and masks (B,1,S,S) in [0,1].

    An empty mask contributes 1 and no gradient.
    """
    prob, masks = prob.flatten(1), masks.flatten(1)  # (B,S*S)
    inter = (prob * masks).sum(1)
    union = (prob + masks).sum(1) - inter
    return (1 - inter / (union + IOU_EPS)).mean()


def pixel_class_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the auxiliary loss of the object class at each token, sounding or not.

    class_logits: (B,K,s,s).
    labels: int64 (B,S,S), 0 = background.
    The loss is the cross entropy against the share of each token that every class covers.
    """
    batch, _, grid, _ = class_logits.shape
    labels = labels[:, ::4, ::4]  # every 4th pixel is accurate enough, with 1/16 of the work
    # (B,4s,4s) -> (B,s,s,16): the pixels of each token
    inside = labels.reshape(batch, grid, 4, grid, 4).permute(0, 1, 3, 2, 4).flatten(3)
    log_prob = class_logits.permute(0, 2, 3, 1).log_softmax(dim=-1)  # (B,s,s,K)
    return -log_prob.gather(3, inside).mean()


def sound_class_loss(class_logits: Tensor, sounding: Tensor) -> Tensor:
    """Return the auxiliary loss of the sounding objects.

    class_logits, sounding {0,1}: (B,K).
    """
    bce = binary_cross_entropy_with_logits(class_logits, sounding, reduction="none")
    return bce.sum(dim=1).mean()


LOSSES = {"bce+iou": mask_loss, "bce": bce_loss, "bce+iou+edge": mask_and_edge_loss}
