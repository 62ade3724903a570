"""Deploy form of the patch embedding: uint8 NHWC input, normalization folded into the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from save_deploy.config import PATCH
from save_deploy.export.merge.forms import REWRITES
from save_deploy.export.merge.proof import (
    RewriteProof,
    count_macs,
    count_parameters,
    in_double,
    relative_difference,
)
from save_deploy.model.save import SaveModel


class DeployPatchEmbed(nn.Module):
    """Normalization, patch embedding and positions: frames uint8 (B,S,S,3) -> (B,s,s,C).

    conv((x - mean) / std) = conv'(x) with weight' = weight / std and bias' = bias - sum(weight'
    mean). This is exact because the convolution has no padding.
    """

    def __init__(self, conv: nn.Conv2d, pos_embed: nn.Parameter, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        weight = conv.weight.double() / std.double().view(1, 3, 1, 1)
        assert conv.bias is not None
        bias = conv.bias.double() - (weight * mean.double().view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
        self.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        self.pos_embed = pos_embed

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.weight.dtype).permute(0, 3, 1, 2)  # (B,3,S,S)
        x = F.conv2d(x, self.weight, self.bias, stride=PATCH)  # (B,C,s,s)
        return x.permute(0, 2, 3, 1) + self.pos_embed  # (B,s,s,C)


class EagerPatchEmbed(nn.Module):
    """Eager modules with the same input and output: frames uint8 (B,S,S,3) -> (B,s,s,C)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: SaveModel) -> None:
        super().__init__()
        self.patch_embed = model.image_encoder.patch_embed
        self.pos_embed = model.image_encoder.pos_embed
        self.register_buffer("mean", model.pixel_mean)
        self.register_buffer("std", model.pixel_std)

    def forward(self, frames: Tensor) -> Tensor:
        # (B,S,S,3) -> (B,3,S,S)
        image = (frames.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        return self.patch_embed(image) + self.pos_embed


def prove_normalize(model: SaveModel, merged: DeployPatchEmbed) -> RewriteProof:
    """Compare in float64 on a random frame, with weights folded again from a float64 copy."""
    eager = in_double(EagerPatchEmbed(model))
    rewritten = DeployPatchEmbed(
        eager.patch_embed.proj, eager.pos_embed, model.pixel_mean, model.pixel_std
    )
    side = model.config.res
    seeded = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, side, side, 3), generator=seeded, dtype=torch.uint8)
    eager_meta = EagerPatchEmbed(model)
    return RewriteProof(
        name="normalise",
        folded=REWRITES["normalise"],
        kept="conversion from uint8: pixels are integers up to the convolution",
        params_before=count_parameters([eager_meta]),
        params_after=count_parameters([merged]),
        macs_before=count_macs(eager_meta, frames),
        macs_after=count_macs(merged, frames),
        max_rel_diff=relative_difference(eager(frames), rewritten(frames)),
        compared="patch embedding of a random image",
    )
