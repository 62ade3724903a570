"""Scores of the eager model on a dataset, and the oracle that selects SAM's best mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from save_deploy.config import AUDIO_DIM
from save_deploy.data.sample import Clip, ClipDataset
from save_deploy.data.skipping import SkippingDataset, iter_clips
from save_deploy.data.transforms import resize_frame, resize_mask
from save_deploy.metrics.segmentation import AVSBENCH, Protocol, Score, ScoreMeter, score_of
from save_deploy.model.save import SaveModel
from save_deploy.training.distributed import Team

ORACLE_POINTS = 8  # a grid of 8 x 8 points
_POINTS_AT_ONCE = 16
_ALONE = Team(0, 1, torch.device("cpu"))

Logits = NDArray[np.float32]
Masks = NDArray[np.bool_]


@torch.inference_mode()
def predict_clip(model: SaveModel, clip: Clip, *, native: bool = False) -> tuple[Logits, Masks]:
    """Return mask_logits float32 (F,S,S) and truth bool (F,S,S) at model resolution (A15).

    native: both at the size of the frames.
    A model of system `sam` gives its best mask.
    """
    res = model.config.res
    frames = torch.from_numpy(np.stack([resize_frame(f, res) for f in clip.frames]))
    frames = frames.to(model.pixel_mean.device)
    truth = np.stack([resize_mask(m, res) for m in clip.masks])
    if model.config.system == "sam":
        found = torch.cat(
            [
                best_mask(model, frames[i : i + 1], truth[i], ORACLE_POINTS)
                for i in range(len(truth))
            ]
        )
    else:
        log_mel = torch.from_numpy(clip.log_mels()).to(frames.device)
        found = model(frames, log_mel)  # (F,1,S,S)
    if native:
        size = clip.masks.shape[1:]
        found = torch.nn.functional.interpolate(found, size, mode="bilinear", align_corners=False)
        truth = clip.masks
    return found[:, 0].float().cpu().numpy(), truth


def best_mask(model: SaveModel, frame: Tensor, truth: Masks, n: int) -> Tensor:
    """Return the logits (1,1,S,S) of SAM's mask with the highest IoU for one frame.

    Candidates: the four masks without a prompt, and the three of every point of an n x n grid (SPEC
        2: the paper scores SAM by "maximum segmentation evaluation").
    """
    config, encoder = model.config, model.prompt_encoder
    embedding, _ = model.encode(
        model.normalize(frame), frame.new_zeros(1, AUDIO_DIM, dtype=torch.float32)
    )
    target = torch.from_numpy(truth).to(frame.device)
    best, best_iou = embedding.new_zeros(1, 1, config.res, config.res), -1.0

    def consider(low_res: Tensor) -> None:
        nonlocal best, best_iou
        logits = model.upsample(low_res).flatten(0, 1)  # (P*M,S,S)
        masks = logits > 0
        inter, union = (masks & target).sum((1, 2)), (masks | target).sum((1, 2))
        iou = inter / union.clamp_min(1)
        if not target.any():  # AVSBench scores an empty mask by its share of correct background
            iou = (~masks).float().mean((1, 2))
        top = int(iou.argmax())
        if float(iou[top]) > best_iou:
            best, best_iou = logits[top][None, None], float(iou[top])

    consider(model.decode(embedding, frame.new_zeros(1, AUDIO_DIM))[0])
    centers = (torch.arange(n, dtype=torch.float32, device=frame.device) + 0.5) * config.res / n
    grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1).reshape(-1, 1, 2)
    for points in grid.split(_POINTS_AT_ONCE):  # (P,1,2)
        labels = torch.ones(points.shape[:2], device=frame.device)
        sparse, dense = encoder(points=(points, labels), boxes=None, masks=None)
        low_res, _ = model.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        consider(low_res[:, 1:])
    return best


class _EveryNth:
    """Clips rank, rank + world, ...; every process reads only the clips it scores."""

    def __init__(self, clips: ClipDataset, rank: int, world: int) -> None:
        self.clips, self.chosen = clips, range(rank, len(clips), world)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[self.chosen[index]]


def _share(clips: ClipDataset, among: Team) -> ClipDataset:
    share = _EveryNth(clips, among.rank, among.world)
    return clips.over(share, is_part=True) if isinstance(clips, SkippingDataset) else share


def evaluate(
    model: SaveModel,
    clips: ClipDataset,
    *,
    protocol: Protocol = AVSBENCH,
    among: Team = _ALONE,
    on_clip: Callable[[], object] = lambda: None,
) -> Score:
    """Return M_J and M_F of the eager model.

    Every process of a team scores every n-th clip, and all get the score over all clips. (SAMA-AVS
    selects its best checkpoint by the score of one process.)
    """
    model.eval()
    meter = ScoreMeter(protocol)
    alone = (
        among.world == 1 or protocol.videos_per_batch > 1
    )  # a batch of several videos must be scored in one process
    mine = clips if alone else _share(clips, among)
    for clip in iter_clips(mine) if len(mine) else ():
        meter.add(*predict_clip(model, clip, native=protocol.resolution == "native"))
        on_clip()
    if alone:
        return meter.score()
    shares = among.gather((meter.j, meter.f, meter.n_videos, meter.n_frames))
    j, f = ([value for share in shares for value in share[k]] for k in (0, 1))
    return score_of(j, f, sum(s[2] for s in shares), sum(s[3] for s in shares), protocol)
