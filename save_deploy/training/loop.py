"""Resumable training loop (SPEC 6) that keeps the best checkpoint by validation M_J.

Writes to one folder: last.pt (to resume), best.safetensors, curve.jsonl; during the sound warm-up
hearing.pt (to resume that).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from save_deploy.checkpoints.native import sam_fingerprint, save_checkpoint
from save_deploy.data.compose import Staging
from save_deploy.data.open import open_dataset
from save_deploy.data.sample import ClipDataset
from save_deploy.data.skipping import SkippingDataset
from save_deploy.errors import OutputError, SaveDeployError
from save_deploy.files import remove, write_text
from save_deploy.metrics.segmentation import Score, protocol
from save_deploy.model.save import SaveModel
from save_deploy.partials import filled_folder
from save_deploy.training.batches import Batch, MixedSamples, batches
from save_deploy.training.distributed import Team, team
from save_deploy.training.evaluate import evaluate
from save_deploy.training.options import TrainConfig
from save_deploy.training.parameters import (
    averaged,
    build_optimizer,
    cast_frozen,
    nothing_to_train,
    trainable_parameters,
)
from save_deploy.training.scores import ScoreLimit
from save_deploy.training.sound import heard_actors, sound_batch, warm_up_sound
from save_deploy.training.state import RunState, read_state, write_state
from save_deploy.training.step import N_CLASSES, AuxHeads, Mixtures, TrainStep

RUN_FILES = ("best.safetensors", "last.pt", "curve.jsonl", "hearing.pt")


@dataclass
class Progress:
    """Report of the loop after every step."""

    step: int
    steps: int
    loss: float
    lr: float
    best_m_j: float
    n: int = 1  # steps since the last report, more than 1 after a resume
    score: Score | None = None
    extra: dict[str, float] = field(default_factory=dict)


def train(
    model: SaveModel,
    config: TrainConfig,
    out_dir: Path,
    *,
    resume: bool = False,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_sound: Callable[[int, float], None] = lambda _step, _loss: None,
    on_skip: Callable[[str, str], None] = lambda _name, _why: None,
    force: bool = False,
) -> Path:
    """Train the model in place and return the path of the best checkpoint.

    Under torchrun this process trains as one of a team. resume=True continues an interrupted run;
    force=True starts again in a folder that has a run.
    Raises SaveDeployError when the loss is not finite, DataError for a bad clip (unless skip_bad),
    and OutputError for a folder that has a run, without resume and force.
    """
    with (
        filled_folder(out_dir, what="the run"),
        team(config.device) as here,
        _determinism(config.deterministic),
    ):
        if not resume:
            _check_new(out_dir, force=force)
        return _Run(model, config, out_dir, here, on_sound, resume).steps(on_step, on_skip)


def _check_new(out_dir: Path, *, force: bool) -> None:
    """Raise OutputError for a folder that has a run; with force, delete its curve and state."""
    found = [name for name in RUN_FILES if (out_dir / name).exists()]
    if found and not force:
        raise OutputError(
            "the folder has a run",
            got=f"{', '.join(found)} in {out_dir}",
            expected="a new folder",
            hint="--resume continues it, --force starts again; or choose another -o DIR",
        )
    for name in RUN_FILES[1:]:  # keep the best weights until there are new ones
        remove(out_dir / name)


class _Run:
    """State of a run: model, optimizer, data and step."""

    def __init__(
        self,
        model: SaveModel,
        config: TrainConfig,
        out_dir: Path,
        here: Team,
        on_sound: Callable[[int, float], None],
        resume: bool,
    ) -> None:
        torch.manual_seed(config.seed)  # every process must initialize the same heads
        self.model, self.config, self.here = model.to(here.device), config, here
        self.shard = config.share(here.world)
        paths = (out_dir / name for name in RUN_FILES)
        self.best_path, self.state_path, self.curve, self.hearing_path = paths
        parameters = trainable_parameters(model, freeze_sam=config.freeze_sam)
        if not parameters:
            raise nothing_to_train(model.config)
        if config.savings.amp and config.freeze_sam:
            cast_frozen(model)
        self.aux = AuxHeads(model.config.audio_fc).to(here.device) if config.aux_weight else None
        self.learned = [*parameters.values(), *(self.aux.parameters() if self.aux else [])]
        self.optimizer = build_optimizer(self.learned, config)
        self.average = averaged(model, config.ema) if config.ema else None
        self.first_step, self.best = 0, -1.0
        if resume and self.state_path.is_file():
            self._load()
            self._forget_later_rows()
        elif config.sound_steps:
            self._listen(on_sound, resume)
        self.actors = heard_actors(config.data) if config.sound_batch else []
        # after the average, so that it is not a copy with hooks
        limit = config.score_limit
        self.score_limit = ScoreLimit(model.mask_decoder, limit) if limit else None
        self.step = here.wrap(
            TrainStep(
                model,
                self.aux,
                aux_weight=config.aux_weight,
                loss=config.loss,
                savings=config.savings,
            )
        )
        self.samples = MixedSamples(
            config.data,
            res=model.config.res,
            staging=Staging(
                size_px=model.config.res,
                n_objects=config.n_objects,
                scale=config.scale,
                n_frames=1,
                source_odds=config.source_odds,
                out_of_view=config.out_of_view,
                varied=True,
            ),
            seed=config.seed,
            n_classes=N_CLASSES,
            skip_bad=config.skip_bad,
            sound_from=config.sound_from,
            by_video=config.by_video,
        )
        self.val_clips = self._val_clips()

    def steps(
        self, on_step: Callable[[Progress], None], on_skip: Callable[[str, str], None]
    ) -> Path:
        """Run the remaining steps and return the path of the best checkpoint."""
        config, here = self.config, self.here
        stream = batches(
            self.samples,
            batch_size=config.batch_size,
            first_step=self.first_step,
            last_step=config.steps,
            part=(here.rank, here.world),
            # a model on the CPU needs the cores itself
            **({} if here.device.type == "cpu" else {"threads": here.cores, "ahead": 2}),
        )
        started = time.time()
        for step, batch in enumerate(stream, start=self.first_step):
            self.model.train()
            lr = learning_rate(config, step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            loss, parts = self._update(batch.to(here.device), step)
            n = step + 1 if step == self.first_step else 1
            report = Progress(step + 1, config.steps, loss, lr, self.best, n=n, extra=parts)
            last = step + 1 == config.steps
            if self.val_clips is None:
                if last and here.leads:
                    self._keep(report, {})
                    self._log(report, time.time() - started)
            elif (step + 1) % config.eval_every == 0 or last:
                self._validate(report, time.time() - started)
            if here.leads and ((step + 1) % config.save_every == 0 or last):
                self._save(step + 1)
            on_step(report)
        for skipped in here.gather(self.samples.skipped | self._skipped_in_validation()):
            for name, why in skipped.items():
                on_skip(name, why)
        return self.best_path

    def _skipped_in_validation(self) -> dict[str, str]:
        return self.val_clips.skipped if isinstance(self.val_clips, SkippingDataset) else {}

    def _update(self, batch: Batch, step: int) -> tuple[float, dict[str, float]]:
        """Run one optimizer step on the part of this process, in `accumulate` parts."""
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        total, sums = 0.0, dict[str, float]()
        for k, micro in enumerate(batch.split(self.shard)):
            with self._synced(k == config.accumulate - 1):
                loss, parts = self.step(micro, self._mixtures(step, k))
                (loss / config.accumulate).backward()
            total += loss.item() / config.accumulate
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.item() / config.accumulate
        if not all(map(math.isfinite, self.here.gather(total))):
            raise SaveDeployError(
                "training diverged",
                got=f"loss {total} at step {step}",
                expected="a finite loss",
                hint="lower --lr, or check the last batch of data",
            )
        nn.utils.clip_grad_norm_(self.learned, config.clip_norm)
        # bf16 moments: a resumed run rounds as a whole one
        torch.manual_seed(config.seed + 1 + step)
        self.optimizer.step()
        if self.score_limit is not None:
            scores = self.here.gather(self.score_limit.scores())
            highest = [max(of_one) for of_one in zip(*scores, strict=True)]
            self.score_limit.apply(highest)
            sums["score"] = max(highest)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total, {name: round(value, 4) for name, value in sums.items()}

    def _synced(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context that averages gradients over the team only in the last part."""
        if isinstance(self.step, DistributedDataParallel) and not last:
            return self.step.no_sync()
        return contextlib.nullcontext()

    def _mixtures(self, step: int, part: int) -> Mixtures | None:
        """Return the sound mixtures of a step and part, or None without them."""
        config, here = self.config, self.here
        if not self.actors:
            return None
        index = (step * here.world + here.rank) * config.accumulate + part
        log_mel, sounding = sound_batch(
            self.actors, config.seed + 1, index, config.sound_batch, N_CLASSES
        )
        return Mixtures(log_mel.to(here.device), sounding.to(here.device))

    def _validate(self, report: Progress, seconds: float) -> None:
        """Score on the validation clips. Rank 0 keeps the best checkpoint and the curve."""
        config = self.config
        assert self.val_clips is not None
        with torch.autocast(
            self.here.device.type, dtype=torch.bfloat16, enabled=config.savings.amp
        ):
            score = evaluate(
                self.kept, self.val_clips, protocol=protocol(config.metrics), among=self.here
            )
        report.score = score
        better = score.m_j > self.best
        self.best = report.best_m_j = max(self.best, score.m_j)
        if self.here.leads:
            if better:
                self._keep(report, {"val": config.val_data, "val_m_j": round(score.m_j, 3)})
            self._log(report, seconds)

    @property
    def kept(self) -> SaveModel:
        """Model that is validated and saved: the averaged one, if there is one."""
        return self.model if self.average is None else cast(SaveModel, self.average.module)

    def _keep(self, report: Progress, notes: dict[str, Any]) -> None:
        """Save the current weights as the best checkpoint."""
        config = self.config
        if config.adapter_only:
            notes = {**notes, "sam": self._sam}
        save_checkpoint(
            self.best_path,
            self.kept,
            kind="adapter" if config.adapter_only else "full",
            dtype=torch.float16 if config.half else None,
            notes={"data": config.data, "step": report.step, **notes},
        )

    @cached_property
    def _sam(self) -> str:
        """Which SAM the weights fit; it is frozen, so hashed once."""
        return sam_fingerprint(self.model.state_dict(), self.model.config)

    def _log(self, report: Progress, seconds: float) -> None:
        """Append a line to the curve."""
        row = {
            "step": report.step,
            "loss": round(report.loss, 4),
            "lr": report.lr,
            "m_j": report.score.m_j if report.score else None,
            "m_f": report.score.m_f if report.score else None,
            "seconds": round(seconds, 1),
            **report.extra,
        }
        before = self.curve.read_text() if self.curve.is_file() else ""
        write_text(self.curve, f"{before}{json.dumps(row)}\n", what="the learning curve")

    def _forget_later_rows(self) -> None:
        """Drop the rows of the curve after the state, whose steps are done again."""
        if self.here.leads and self.curve.is_file():
            rows = self.curve.read_text().splitlines(keepends=True)
            kept = [row for row in rows if json.loads(row)["step"] <= self.first_step]
            write_text(self.curve, "".join(kept), what="the learning curve")

    def _val_clips(self) -> ClipDataset | None:
        config = self.config
        if config.val_data is None:
            return None
        return open_dataset(
            config.val_data,
            split="val",
            n_clips=config.n_val_clips,
            staging=dataclasses.replace(
                self.samples.staging, n_frames=2, out_of_view=0.0, varied=False
            ),
            source=config.sound_from,
            skip_bad=config.skip_bad,
        )

    def _listen(self, on_step: Callable[[int, float], None], resume: bool) -> None:
        """Run the sound warm-up on the objects of the generated data, the same in every process."""
        config = self.config
        assert self.aux is not None
        warm_up_sound(
            self.model.audio_encoder,
            self.aux.sound,
            heard_actors(config.data),
            steps=config.sound_steps,
            seed=config.seed,
            amp=config.savings.amp,
            state=self.hearing_path,
            writes=self.here.leads,
            resume=resume,
            on_step=on_step,
        )

    def _save(self, step: int) -> None:
        write_state(
            self.state_path, self._state(), config=self.config, step=step, best=self.best,
        )  # fmt: skip
        remove(self.hearing_path)  # contained in the state now

    def _load(self) -> None:
        self.first_step, self.best = read_state(self.state_path, self._state(), config=self.config)

    def _state(self) -> RunState:
        sam = self._sam if self.config.adapter_only else ""
        return RunState(self.model, self.aux, self.optimizer, self.average, sam)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up from lr / warmup_steps to lr, then a cosine.

    The cosine ends at lr * final_lr_ratio.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.final_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@contextlib.contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Context with deterministic kernels of torch if wanted; some are slower on GPUs."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
