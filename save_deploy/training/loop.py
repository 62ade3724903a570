"""The training loop: SPEC 6 with its traps fixed; resumable; the best checkpoint by validation M_J.

Writes into one folder: last.pt (to resume), best.safetensors, curve.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from save_deploy.checkpoints.native import save_checkpoint
from save_deploy.config import PROMPT_DIM
from save_deploy.data.compose import Actor, Staging
from save_deploy.data.log_mel import log_mel_examples
from save_deploy.data.open import generated_actors, open_dataset
from save_deploy.data.sample import Clip, ClipDataset
from save_deploy.data.transforms import resize_frame, resize_mask
from save_deploy.errors import SaveDeployError
from save_deploy.metrics.segmentation import Score, score_videos
from save_deploy.model.save import SaveModel
from save_deploy.systems import SYSTEMS, group_of, is_unused
from save_deploy.training.batches import Batch, MixedSamples, batches
from save_deploy.training.losses import mask_loss, pixel_class_loss, sound_class_loss
from save_deploy.training.sound import hear, sound_batch, warm_up_sound

N_CLASSES = 160  # labels of generated data, 0 = background


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. `freeze_sam` trains the adapters, prompt MLP, decoder and no_mask_embed (A12)."""

    data: dict[str, float]  # source -> weight, e.g. {"scenes": 0.2, "stamps": 0.8}
    val_data: str = "scenes"
    n_val_clips: int = 24
    steps: int = 10_000
    batch_size: int = 16
    lr: float = 2e-4  # A11
    weight_decay: float = 0.01
    warmup_steps: int = 200
    final_lr_ratio: float = 0.01
    clip_norm: float = 1.0
    freeze_sam: bool = False
    aux_weight: float = 0.0  # pixel and sound classes of generated data
    eval_every: int = 500
    save_every: int = 250
    seed: int = 0
    half: bool = False  # best.safetensors in float16: half the size
    n_objects: tuple[int, int] = (2, 4)
    scale: tuple[float, float] = (0.28, 0.5)
    source_odds: tuple[float, ...] = (0.08, 0.78, 0.14)  # see Staging
    sound_steps: int = 0  # of the sound warm-up before the first step
    sound_batch: int = 0  # mixtures heard beside every batch, so that hearing is not forgotten


@dataclass
class Progress:
    """What the loop reports after every step."""

    step: int
    steps: int
    loss: float
    lr: float
    best_m_j: float
    n: int = 1  # steps since the last report: more than one after a resume
    score: Score | None = None
    extra: dict[str, float] = field(default_factory=dict)


class AuxHeads(nn.Module):
    """Training-only classifiers: object at each token, and objects heard. Not part of a checkpoint."""

    def __init__(self, audio_dim: int, n_classes: int = N_CLASSES) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(PROMPT_DIM, n_classes, 1)
        self.sound = nn.Linear(audio_dim, n_classes)
        nn.init.constant_(self.sound.bias, -4.0)  # few of the classes are heard at a time


def trainable_parameters(model: SaveModel, *, freeze_sam: bool) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name; sets requires_grad accordingly.

    freeze_sam leaves only the groups that the model's system trains. Hypernetworks and prompts that
    the single mask does not use get no gradient and are left out, so weight decay cannot touch them.
    """
    chosen = {}
    trains = SYSTEMS[model.config.system].trains
    for name, parameter in model.named_parameters():
        frozen = freeze_sam and group_of(name, model.config.depth) not in trains
        parameter.requires_grad_(not (is_unused(name) or frozen))
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine to final_lr_ratio."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.final_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(
    model: SaveModel,
    config: TrainConfig,
    out_dir: Path,
    *,
    resume: bool = False,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_sound: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Path:
    """Train in place and return the path of the best checkpoint.

    Raises SaveDeployError when the loss is not finite. Interrupted runs continue with resume=True.
    """
    torch.manual_seed(config.seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    parameters = trainable_parameters(model, freeze_sam=config.freeze_sam)
    aux = AuxHeads(model.config.audio_fc)
    learned = list(parameters.values()) + (list(aux.parameters()) if config.aux_weight else [])
    decayed = [p for p in learned if p.ndim > 1]
    rest = [p for p in learned if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=config.lr,
        fused=True,
    )
    state_path, best_path = out_dir / "last.pt", out_dir / "best.safetensors"
    first_step, best = 0, -1.0
    if resume and state_path.is_file():
        first_step, best = _load_state(state_path, model, aux, optimizer)
    elif config.sound_steps:
        _listen(model, aux, config, on_sound)
    actors = _heard(config) if config.sound_batch else []
    samples = MixedSamples(
        config.data,
        res=model.config.res,
        staging=Staging(
            size_px=model.config.res,
            n_objects=config.n_objects,
            scale=config.scale,
            n_frames=1,
            source_odds=config.source_odds,
        ),
        seed=config.seed,
        n_classes=N_CLASSES,
    )
    stream = batches(
        samples, batch_size=config.batch_size, first_step=first_step, last_step=config.steps
    )
    kind = "adapter" if config.freeze_sam else "full"
    started = time.time()
    for step, batch in enumerate(stream, start=first_step):
        model.train()
        lr = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, parts = _loss(model, aux, batch, config.aux_weight)
        if actors:
            heard = sound_batch(actors, config.seed + 1, step, config.sound_batch, N_CLASSES)
            sounds = sound_class_loss(aux.sound(hear(model.audio_encoder, heard[0])), heard[1])
            loss = loss + config.aux_weight * sounds
            parts["mixtures"] = round(sounds.item(), 4)
        if not torch.isfinite(loss):
            raise SaveDeployError(
                "training diverged",
                got=f"loss {loss.item()} at step {step}",
                expected="a finite loss",
                hint="lower --lr, or look at the last batch of data",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, config.clip_norm)
        optimizer.step()
        n = step + 1 if step == first_step else 1
        progress = Progress(step + 1, config.steps, loss.item(), lr, best, n=n, extra=parts)
        last = step + 1 == config.steps
        if (step + 1) % config.eval_every == 0 or last:
            score = evaluate(
                model,
                open_dataset(
                    config.val_data,
                    split="val",
                    n_clips=config.n_val_clips,
                    staging=_val_staging(samples),
                ),
            )
            progress.score = score
            notes = {
                "data": config.data,
                "step": step + 1,
                "val": config.val_data,
                "val_m_j": round(score.m_j, 3),
            }
            if score.m_j > best:
                best = progress.best_m_j = score.m_j
                dtype = torch.float16 if config.half else None
                save_checkpoint(best_path, model, kind=kind, dtype=dtype, notes=notes)
            _append(
                out_dir / "curve.jsonl",
                {
                    "step": step + 1,
                    "loss": round(loss.item(), 4),
                    "lr": lr,
                    "m_j": score.m_j,
                    "m_f": score.m_f,
                    "seconds": round(time.time() - started, 1),
                    **parts,
                },
            )
        if (step + 1) % config.save_every == 0 or last:
            _save_state(state_path, model, aux, optimizer, config, step + 1, best)
        on_step(progress)
    return best_path


def _listen(
    model: SaveModel, aux: AuxHeads, config: TrainConfig, on_step: Callable[[int, float], None]
) -> None:
    """Sound warm-up on the objects of the generated data."""
    warm_up_sound(
        model.audio_encoder,
        aux.sound,
        _heard(config),
        steps=config.sound_steps,
        seed=config.seed,
        on_step=on_step,
    )


def _heard(config: TrainConfig) -> list[Actor]:
    """The objects whose sounds are mixed for hearing alone."""
    actors = [a for name in config.data for a in generated_actors(name)]
    if not actors:
        raise SaveDeployError(
            "the sound warm-up needs generated data",
            got=", ".join(config.data),
            expected="scenes or stamps in --data",
        )
    return actors


def _val_staging(samples: MixedSamples) -> Staging:
    return dataclasses.replace(samples.staging, n_frames=2)


def _loss(
    model: SaveModel, aux: AuxHeads, batch: Batch, aux_weight: float
) -> tuple[Tensor, dict[str, float]]:
    hidden: list[Tensor] = []
    # the sound classifier reads the layer before VGGish's last linear
    hook = model.audio_encoder.embeddings[3].register_forward_hook(
        lambda _m, _i, out: hidden.append(out)
    )
    audio_embedding = model.audio_encoder(batch.log_mel)
    hook.remove()
    image_embeddings, prompt_source = model.encode(model.normalise(batch.frames), audio_embedding)
    low_res_masks, _ = model.decode(image_embeddings, prompt_source)
    loss = masks = mask_loss(model.upsample(low_res_masks[:, :1]), batch.masks)
    parts = {"mask": masks.item()}
    if aux_weight:
        pixels = pixel_class_loss(aux.pixels(image_embeddings), batch.labels)
        sound = sound_class_loss(aux.sound(hidden[0]), batch.sounding)
        loss = loss + aux_weight * (pixels + sound)
        parts |= {"pixels": pixels.item(), "sound": sound.item()}
    return loss, {k: round(v, 4) for k, v in parts.items()}


@torch.inference_mode()
def predict_clip(model: SaveModel, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """-> mask_logits float32 (F,S,S) and truth bool (F,S,S) at network size (A15)."""
    res = model.config.res
    frames = torch.from_numpy(np.stack([resize_frame(f, res) for f in clip.frames]))
    log_mel = torch.from_numpy(np.stack([log_mel_examples(s.waveform)[0] for s in clip.samples()]))
    logits = model(frames, log_mel)[:, 0].float().numpy()
    return logits, np.stack([resize_mask(m, res) for m in clip.masks])


def evaluate(
    model: SaveModel, clips: ClipDataset, *, on_clip: Callable[[], object] = lambda: None
) -> Score:
    """M_J and M_F of the eager model over clips, one clip per batch."""
    model.eval()

    def predicted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in range(len(clips)):
            yield predict_clip(model, clips[i])
            on_clip()

    return score_videos(predicted())


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _save_state(
    path: Path,
    model: SaveModel,
    aux: AuxHeads,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
    best: float,
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "model": model.state_dict(),
            "aux": aux.state_dict(),
            "optimizer": optimizer.state_dict(),
            "train_config": json.dumps(dataclasses.asdict(config)),
            "step": step,
            "best": best,
        },
        partial,
    )
    os.replace(partial, path)


def _load_state(
    path: Path,
    model: SaveModel,
    aux: AuxHeads,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, float]:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    aux.load_state_dict(state["aux"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["best"])
