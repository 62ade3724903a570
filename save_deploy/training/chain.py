"""Run of a recipe as in the paper: its stages in order, each from the best previous weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from save_deploy.data.open import find_dataset, open_dataset
from save_deploy.data.sample import FrameDataset
from save_deploy.errors import DataError, SaveDeployError
from save_deploy.recipes.recipe import Recipe, Stage
from save_deploy.training.distributed import world_size
from save_deploy.training.options import TrainConfig

NO_VAL = ("v3_1_shot", "v3_3_shot", "v3_5_shot")  # few-shot sets have no validation split


@dataclass(frozen=True)
class PlannedStage:
    """One stage with its dataset and number of steps."""

    stage: Stage
    data: str
    n_items: int
    config: TrainConfig
    folder: Path

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def finished(self) -> bool:
        """True when the curve has the last step and the best weights exist."""
        curve = self.folder / "curve.jsonl"
        if not (curve.is_file() and self.best.is_file()):
            return False
        return bool(json.loads(curve.read_text().splitlines()[-1])["step"] >= self.config.steps)


def plan_chain(
    recipe: Recipe, dataset: str, root: Path, out: Path, *, base: TrainConfig | None = None,
    batch_per_device: int | None = None, steps: int | None = None,
) -> list[PlannedStage]:  # fmt: skip
    """Return every stage before the test on `dataset`, with the datasets found under root.

    base: settings that a recipe does not fix: seed, device, memory savings. By default SAM is
        frozen, and only the trained parts are stored.
    batch_per_device: maximum of frames per part on one device. The batch of a step is that of the
        recipe over all its GPUs; with fewer devices, or a smaller batch_per_device, it is processed
        in more parts, with the gradients of the paper's batch.
    steps: maximum number of steps of each stage, for a trial.
    Raises DataError and SaveDeployError.
    """
    base = base or TrainConfig(data={}, freeze_sam=True, adapter_only=True)
    stages = recipe.chain(dataset)
    if not stages:
        raise SaveDeployError(
            "this recipe has no training stages",
            got=f"{recipe.name}: {recipe.title}",
            expected="a recipe with stages",
            hint=f"save-eval --recipe {recipe.name} --test {dataset} --root {root}",
        )
    planned = []
    for k, stage in enumerate(stages, start=1):
        name = find_dataset(root, stage.dataset)
        n_items, frames_per_item = _items(name, stage, base.sound_from, base.skip_bad)
        config = _stage_config(recipe, stage, base, name, n_items, frames_per_item)
        per_device = batch_per_device or stage.batch * frames_per_item
        config = replace(
            config,
            steps=steps or config.steps,
            accumulate=_parts(config.batch_size, per_device),
        )
        per_epoch = min(config.steps, max(1, recipe.steps(stage, n_items) // stage.epochs))
        config = replace(config, eval_every=per_epoch, save_every=per_epoch)
        planned.append(PlannedStage(stage, name, n_items, config, out / f"{k}_{stage.dataset}"))
    return planned


def _stage_config(
    recipe: Recipe, stage: Stage, base: TrainConfig, data: str, n_items: int, frames_per_item: int
) -> TrainConfig:
    """Return the settings of a stage: those of the recipe, the others from base."""
    return replace(
        base,
        data={data: 1.0},
        val_data=None if stage.dataset in NO_VAL else data,
        n_val_clips=None,
        steps=recipe.steps(stage, n_items),
        batch_size=stage.batch * stage.gpus * frames_per_item,
        by_video=stage.item == "video",
        loss=stage.loss,
        metrics=recipe.metrics,
        lr=stage.lr,
        weight_decay=stage.weight_decay,
        warmup_steps=stage.warmup_steps,
        final_lr_ratio=stage.final_lr / stage.lr,
    )


def run_chain(
    planned: list[PlannedStage],
    train_stage: Callable[[PlannedStage, Path | None], None],
    *,
    resume: bool,
) -> Path:
    """Run the unfinished stages and return the best checkpoint of the last one.

    train_stage: called as train_stage(stage, initial checkpoint or None).
    The best weights of a stage without a validation split are its last ones.
    """
    before: Path | None = None
    for stage in planned:
        if not (resume and stage.finished):
            train_stage(stage, before)
        before = stage.best
    assert before is not None
    return before


def _items(name: str, stage: Stage, sound_from: str, skip_bad: bool) -> tuple[int, int]:
    """Return the number of items per epoch, and frames per item (1, or those of a video)."""
    clips = open_dataset(name, split="train", source=sound_from, skip_bad=skip_bad)
    if not isinstance(clips, FrameDataset):
        raise DataError("not a stored dataset", got=name, expected="a released dataset")
    pairs = clips.pairs()
    if stage.item == "frame":
        return len(pairs), 1
    n_videos = len({clip for clip, _ in pairs})
    return n_videos, max(1, round(len(pairs) / n_videos))


def _parts(batch: int, per_device: int) -> int:
    """Return the number of accumulated parts per device, each of at most per_device frames."""
    share = batch // world_size()  # TrainConfig.share raises for a remainder
    parts = max(1, -(-share // per_device))
    while share % parts:
        parts += 1
    return parts


def describe(planned: list[PlannedStage]) -> list[str]:
    """Return one line per stage: data, items, steps, batch."""
    lines = []
    for plan in planned:
        c = plan.config
        lines.append(
            f"{plan.folder.name}: {plan.n_items} {plan.stage.item}s of {plan.data}, {c.steps} steps "
            f"of {c.batch_size} frames ({c.accumulate} parts per device), lr {c.lr:g}"
        )
    return lines
