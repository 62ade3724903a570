"""The verb for training: train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from save_deploy.cli.options import SkipBad, SoundFrom
from save_deploy.errors import SaveDeployError

if TYPE_CHECKING:
    from save_deploy.model.save import SaveModel
    from save_deploy.recipes.recipe import Recipe
    from save_deploy.training.chain import PlannedStage
    from save_deploy.training.options import Savings, TrainConfig


def train(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder of the run: last.pt, best.safetensors, curve.jsonl."
        ),
    ] = Path("runs/save"),
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A row of the paper's tables (save-deploy recipes) or a .toml file; needs --root.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="With --recipe: train towards this dataset.", show_default=False),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="With --recipe: folder that holds the datasets.", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="vit_t, vit_b, vit_l or vit_h. Default: vit_t, or the recipe's.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            help="save, sama_avs, gavs, ... (save-deploy systems). Default: save, or --init's.",
            show_default=False,
        ),
    ] = None,
    res: Annotated[int, typer.Option(help="Training side in px, a multiple of 32.")] = 256,
    data: Annotated[
        str, typer.Option(help="Sources and weights: scenes=0.2,stamps=0.8, or a dataset folder.")
    ] = "scenes",
    val_data: Annotated[str, typer.Option(help="Where validation M_J is measured.")] = "scenes",
    val_clips: Annotated[int, typer.Option(min=1)] = 24,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from this checkpoint (positions resized).", show_default=False),
    ] = None,
    sam: Annotated[
        Path | None,
        typer.Option(help="Freeze this SAM .pth and train the rest on it.", show_default=False),
    ] = None,
    vggish: Annotated[
        Path | None, typer.Option(help="VGGish weights, with --sam.", show_default=False)
    ] = None,
    freeze: Annotated[
        bool,
        typer.Option("--freeze", help="Train only what the system trains (always with --sam)."),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Default: 10000, or the recipe's epochs.", show_default=False),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Frames of a step, over all devices and parts.")
    ] = 16,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts in which a device takes its share of a batch.")
    ] = 1,
    lr: Annotated[float, typer.Option(help="Peak; linear warm-up, then cosine.")] = 2e-4,
    warmup: Annotated[int, typer.Option(min=1, help="Steps of linear warm-up.")] = 200,
    final_lr_ratio: Annotated[float, typer.Option(help="Last learning rate over the peak.")] = 0.01,
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    amp: Annotated[
        bool, typer.Option("--amp", help="bfloat16 products; frozen weights in bfloat16.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute encoder blocks again in backward.")
    ] = False,
    moments: Annotated[
        str, typer.Option(help="AdamW's moments: fp32, or bf16 with stochastic rounding.")
    ] = "fp32",
    per_device: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --recipe: frames at once on a device; the step's batch stays.",
            show_default=False,
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Print the memory a step needs (SAM frozen, but for vit_t), and stop.",
        ),
    ] = False,
    aux: Annotated[
        float, typer.Option(help="Weight of the object and sound classes (generated data).")
    ] = 0.0,
    objects: Annotated[str, typer.Option(help="Objects per generated scene, MIN-MAX.")] = "2-4",
    scale: Annotated[str, typer.Option(help="Object side over frame side, MIN-MAX.")] = "0.28-0.5",
    sources: Annotated[
        str, typer.Option(help="Share of generated clips with 0, 1, 2 sources.")
    ] = "0.08,0.78,0.14",
    sound_steps: Annotated[
        int, typer.Option(min=0, help="Audio-only warm-up steps before training (batch 64).")
    ] = 0,
    sound_batch: Annotated[
        int, typer.Option(min=0, help="Sounds heard beside every batch, weighted by --aux.")
    ] = 0,
    metrics: Annotated[
        str, typer.Option(help="Validation as avsbench, sama, sama_val or gavs computes it.")
    ] = "avsbench",
    eval_every: Annotated[int, typer.Option(min=1)] = 500,
    seed: Annotated[int, typer.Option()] = 0,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same seed, same weights; slower on GPUs.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; several: torchrun.")] = "auto",
    half: Annotated[bool, typer.Option("--half", help="Store the best in float16.")] = False,
    sound_from: SoundFrom = "auto",
    skip_bad: SkipBad = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Train SAVE or a system it is compared with: from scratch, on a frozen SAM (--sam), or as a row
    of the paper (--recipe). Several GPUs: torchrun --nproc-per-node N -m save_deploy train ..."""
    from save_deploy.training.options import Savings, TrainConfig

    savings = Savings(amp=amp, checkpoint_blocks=checkpointing, moments=moments)
    if recipe is not None:
        from save_deploy.recipes.recipe import load_recipe

        row = load_recipe(recipe)
        if estimate:
            size = row.config(**({"backbone": preset} if preset else {}))
            frames = per_device or (row.stages[0].batch if row.stages else 1)
            print_estimate(size, savings, frames, freeze_sam=True)
            return
        _train_recipe(
            row, test, root, out, preset=preset, sam=sam, vggish=vggish, init=init, resume=resume,
            per_device=per_device, savings=savings, steps=steps, seed=seed, device=device,
            skip_bad=skip_bad, sound_from=sound_from, deterministic=deterministic,
        )  # fmt: skip
        return
    config = TrainConfig(
        data=parse_mixture(data),
        val_data=val_data,
        n_val_clips=val_clips,
        steps=steps or 10_000,
        batch_size=batch,
        accumulate=accumulate,
        metrics=metrics,
        lr=lr,
        warmup_steps=warmup,
        final_lr_ratio=final_lr_ratio,
        weight_decay=weight_decay,
        freeze_sam=freeze or sam is not None,
        adapter_only=sam is not None,
        aux_weight=aux,
        eval_every=eval_every,
        seed=seed,
        n_objects=parse_range(objects, int),
        scale=parse_range(scale, float),
        source_odds=parse_odds(sources),
        sound_steps=sound_steps,
        sound_batch=sound_batch,
        half=half,
        savings=savings,
        device=device,
        deterministic=deterministic,
        skip_bad=skip_bad,
        sound_from=sound_from,
    )
    if estimate:
        from save_deploy.config import SaveConfig

        size = SaveConfig.of_system(system or "save", preset or "vit_t", res=res)
        print_estimate(size, savings, batch // accumulate, freeze_sam=preset not in (None, "vit_t"))
        return
    from save_deploy.training.start import (
        initial_model,
    )  # late import: option errors must not wait for torch

    model = initial_model(
        preset or "vit_t", system=system, res=res, init=init, sam=sam, vggish=vggish, seed=seed
    )
    best = _train(model, config, out, resume=resume)
    if best is not None:
        print(f"best checkpoint: {best}")


def _train(model: SaveModel, config: TrainConfig, out: Path, *, resume: bool) -> Path | None:
    """Train with a progress bar -> the best checkpoint; None for a process that does not lead."""
    from save_deploy.progress import progress
    from save_deploy.training.curve import plot_curve
    from save_deploy.training.distributed import leads
    from save_deploy.training.loop import Progress
    from save_deploy.training.loop import train as run_train

    skipped: list[str] = []
    if not leads():
        run_train(model, config, out, resume=resume)
        return None
    with progress("training", config.steps) as advance:

        def on_step(step: Progress) -> None:
            advance(f"loss {step.loss:.3f}, best M_J {step.best_m_j:.2f}", n=step.n)

        def on_sound(step: int, loss: float) -> None:
            if (step + 1) % 50 == 0:
                total = config.sound_steps
                print(f"hearing: step {step + 1} of {total}, loss {loss:.3f}", flush=True)

        best = run_train(
            model, config, out, resume=resume, on_step=on_step, on_sound=on_sound,
            on_skip=lambda name, why: skipped.append(f"{name}: {why}"),
        )  # fmt: skip
    for line in skipped:
        print(f"skipped {line}")
    if (picture := plot_curve(out)) is not None:
        print(f"learning curve: {picture}")
    return best


def _train_recipe(
    recipe: Recipe,
    test: str | None,
    root: Path | None,
    out: Path,
    *,
    preset: str | None,
    sam: Path | None,
    vggish: Path | None,
    init: Path | None,
    resume: bool,
    per_device: int | None,
    savings: Savings,
    **options: Any,
) -> None:
    """The stages of a row one after the other, each from the best weights of the last."""
    from save_deploy.training.chain import describe, plan_chain, run_chain
    from save_deploy.training.distributed import leads
    from save_deploy.training.start import initial_model

    if root is None or (test is None and len(recipe.test) > 1):
        raise SaveDeployError(
            "a recipe needs data" if root is None else "this row is tested on several datasets",
            got="no --root" if root is None else "no --test",
            expected="--root DIR, the folder that holds the datasets"
            if root is None
            else f"--test {' or --test '.join(recipe.test)}",
        )
    dataset = test or next(iter(recipe.test))
    planned = plan_chain(
        recipe, dataset, root, out, batch_per_device=per_device, savings=savings,
        freeze_sam=sam is not None or init is not None, adapter_only=sam is not None, **options,
    )  # fmt: skip
    if leads():
        print("\n".join(describe(planned)), flush=True)

    def train_stage(plan: PlannedStage, before: Path | None) -> None:
        model = initial_model(
            preset or recipe.backbone,
            system=recipe.system,
            res=plan.stage.res,
            switches=recipe.switches,
            init=before or init,
            sam=sam,
            vggish=None if before or init else vggish,
            seed=plan.config.seed,
        )
        _train(model, plan.config, plan.folder, resume=resume)

    best = run_chain(planned, train_stage, resume=resume)
    if leads():
        print(f"best checkpoint: {best}")
        sam_option = f" --sam {sam}" if sam else ""
        print(
            f"score it: save-eval {best}{sam_option} --recipe {recipe.name} "
            f"--test {dataset} --root {root}"
        )


def parse_mixture(text: str) -> dict[str, float]:
    """ "a=0.2,b=0.8" or "a" -> weights by source."""
    mixture = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            mixture[name] = float(weight or 1.0)
        except ValueError:
            raise SaveDeployError(
                "unreadable data mixture", got=text, expected="scenes=0.2,stamps=0.8"
            ) from None
    return mixture


def parse_odds(text: str) -> tuple[float, ...]:
    """ "0.1,0.6,0.3" -> shares of 0, 1, 2 sources."""
    try:
        odds = tuple(float(part) for part in text.split(","))
        if min(odds) < 0 or sum(odds) <= 0:
            raise ValueError
    except ValueError:
        raise SaveDeployError(
            "unreadable shares", got=text, expected="such as 0.08,0.78,0.14"
        ) from None
    return odds


def parse_range(text: str, kind: Callable[[str], Any]) -> tuple[Any, Any]:
    """ "2-4" -> (2, 4)."""
    try:
        low, high = (kind(part) for part in text.split("-"))
    except ValueError:
        raise SaveDeployError(
            "unreadable range", got=text, expected="MIN-MAX, such as 2-4"
        ) from None
    return low, high


def print_estimate(config: Any, savings: Savings, micro_batch: int, *, freeze_sam: bool) -> None:
    """Memory of a step with nothing saved, without one saving each, and with all."""
    from rich.console import Console
    from rich.table import Table

    from save_deploy.training.estimate import CARD_BYTES, GIB, with_and_without

    rows = with_and_without(config, savings, micro_batch=micro_batch, freeze_sam=freeze_sam)
    console = Console(width=None if Console().is_terminal else 132)
    table = Table(
        title=f"{config.system} on {config.name} at {config.res} px, {micro_batch} frames at once: GiB",
        title_justify="left",
    )
    parts = ("frozen", "trained", "gradients", "moments", "activations", "reserve", "total")
    for i, column in enumerate(("", *parts, "24 GB card")):
        table.add_column(column, justify="left" if i == 0 else "right")
    for name, found in rows:
        cells = [f"{getattr(found, part) / GIB:.2f}" for part in parts]
        table.add_row(name, *cells, "fits" if found.total <= CARD_BYTES else "too large")
    console.print(table)
    print(
        "activations: most bytes alive in two forward and backward passes on fake tensors, beyond "
        "weights and gradients;\nmoments: AdamW, 8 or 4 bytes a trained parameter; reserve: CUDA "
        "context 0.6 GiB and 5 % fragmentation. Not run on a GPU."
    )
