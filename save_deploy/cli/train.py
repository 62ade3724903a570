"""save-train: train from scratch, on a frozen SAM, or as a row of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from save_deploy.cli.takes import takes
from save_deploy.errors import CheckpointError, SaveDeployError
from save_deploy.options import option
from save_deploy.training.options import FIXED_BY_RECIPE, MEMORY, Savings, TrainConfig

if TYPE_CHECKING:
    from save_deploy.model.save import SaveModel
    from save_deploy.recipes.recipe import Recipe
    from save_deploy.training.chain import PlannedStage

PAPER, MODEL = "A row of the paper", "Model"


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A training request: output folder, initial model, and a recipe or the settings of one run."""

    out: Path = option(
        "--out", "-o", default=Path("runs/save"),
        help="Folder of the run: last.pt, best.safetensors, curve.jsonl.",
    )  # fmt: skip
    resume: bool = option("--resume", default=False, help="Continue the run in --out.")
    force: bool = option(
        "--force", default=False, help="Start over where --out holds a run: its files are replaced."
    )
    steps: int | None = option(
        "--steps", default=None, low=1, help="Default: 10000, or the recipe's epochs."
    )
    preset: str | None = option(
        "--preset", default=None,
        help="vit_t, vit_b, vit_l or vit_h. Default: vit_t, or the recipe's.",
    )  # fmt: skip
    sam: Path | None = option(
        "--sam", default=None, help="Freeze this SAM .pth and train the rest on it."
    )
    system: str | None = option(
        "--system", panel=MODEL, default=None, excludes=FIXED_BY_RECIPE,
        help="save, sama_avs, gavs, ... (save-deploy systems). Default: save, or --init's.",
    )  # fmt: skip
    res: int = option(
        "--res",
        panel=MODEL,
        default=256,
        excludes=FIXED_BY_RECIPE,
        help="Training side in px, a multiple of 32.",
    )
    init: Path | None = option(
        "--init", panel=MODEL, default=None,
        help="Start from this checkpoint (positions resized).",
    )  # fmt: skip
    vggish: Path | None = option(
        "--vggish", panel=MODEL, default=None, help="VGGish weights, with --sam."
    )
    recipe: str | None = option(
        "--recipe", panel=PAPER, default=None,
        help="A row of the paper's tables (save-deploy recipes) or a .toml file; needs --root.",
    )  # fmt: skip
    test: str | None = option(
        "--test",
        panel=PAPER,
        needs=("--recipe",),
        default=None,
        help="With --recipe: train towards this dataset.",
    )
    root: Path | None = option(
        "--root", panel=PAPER, needs=("--recipe",), default=None,
        help="With --recipe: folder that holds the datasets.",
    )  # fmt: skip
    per_device: int | None = option(
        "--per-device", panel=PAPER, needs=("--recipe",), default=None, low=1,
        help="With --recipe: frames at once on a device; the step's batch stays.",
    )  # fmt: skip
    estimate: bool = option(
        "--estimate", panel=MEMORY, default=False,
        help="Print the memory a step needs (SAM frozen, but for vit_t), and stop.",
    )  # fmt: skip
    config: TrainConfig = field(default_factory=lambda: TrainConfig(data={"scenes": 1.0}))


@takes(TrainRequest)
def train(request: TrainRequest) -> None:
    """Train SAVE or a system it is compared with: from scratch, on a frozen SAM (--sam), or as a row
    of the paper (--recipe). Several GPUs: torchrun --nproc-per-node N -m save_deploy train ..."""
    if request.recipe is not None:
        from save_deploy.recipes.recipe import load_recipe

        recipe = load_recipe(request.recipe)
        if request.estimate:
            _estimate_recipe(recipe, request)
        else:
            _train_recipe(recipe, request)
        return
    sam = request.sam is not None
    config = replace(
        request.config,
        freeze_sam=request.config.freeze_sam or sam,
        adapter_only=sam,
        steps=request.steps or request.config.steps,
    )
    preset = request.preset or "vit_t"
    if request.estimate:
        from save_deploy.config import SaveConfig

        size = SaveConfig.of_system(request.system or "save", preset, res=request.res)
        frames = config.batch_size // config.accumulate
        print_estimate(size, config.savings, frames, freeze_sam=preset != "vit_t")
        return
    _check_inputs(request, config)
    # late import: option errors must not wait for torch
    from save_deploy.training.start import initial_model

    model = initial_model(
        preset, system=request.system, res=request.res, init=request.init, sam=request.sam,
        vggish=request.vggish, seed=config.seed,
    )  # fmt: skip
    _require_size(model, request.preset, request.init or request.sam)
    best = _train(model, config, request.out, request)
    if best is not None:
        print(f"best checkpoint: {best}")


def _require_size(model: SaveModel, preset: str | None, source: Path | None) -> None:
    """Raise CheckpointError for weights of another size than the one asked for."""
    if preset is not None and source is not None and model.config.name != preset:
        raise CheckpointError(
            "weights of another size", got=f"{model.config.name} in {source}", expected=preset
        )


def _check_inputs(request: TrainRequest, config: TrainConfig) -> None:
    """Raise CheckpointError and DataError for files and datasets that cannot be opened."""
    from save_deploy.data.open import open_dataset
    from save_deploy.weight_files import check_given

    check_given(request.init, request.sam, request.vggish)
    asked = [(name, "train") for name in config.data]
    if config.val_data is not None:
        asked.append((config.val_data, "val"))
    for name, split in asked:
        open_dataset(name, split=split, source=config.sound_from, skip_bad=config.skip_bad)


def _estimate_recipe(recipe: Recipe, request: TrainRequest) -> None:
    backbone = {"backbone": request.preset} if request.preset else {}
    if not recipe.stages:
        print_estimate(
            recipe.config(**backbone),
            request.config.savings,
            request.per_device or 1,
            freeze_sam=True,
        )
        return
    largest = max(recipe.stages, key=lambda stage: (stage.res, stage.frames))
    size = recipe.config(**backbone, res=largest.res)
    frames = request.per_device or largest.frames
    print_estimate(size, request.config.savings, frames, freeze_sam=True)


def _train(model: SaveModel, config: TrainConfig, out: Path, request: TrainRequest) -> Path | None:
    """Train with a progress bar and return the best checkpoint, None in a process of rank > 0."""
    from save_deploy.progress import progress
    from save_deploy.training.curve import plot_curve
    from save_deploy.training.distributed import leads
    from save_deploy.training.loop import Progress
    from save_deploy.training.loop import train as run_train

    skipped: list[str] = []
    if not leads():
        run_train(model, config, out, resume=request.resume, force=request.force)
        return None
    with progress("training", config.steps) as advance:

        def on_step(step: Progress) -> None:
            best = f", best M_J {step.best_m_j:.2f}" if step.best_m_j >= 0 else ""  # none so far
            advance(f"loss {step.loss:.3f}{best}", n=step.n)

        def on_sound(step: int, loss: float) -> None:
            if (step + 1) % 50 == 0:
                total = config.sound_steps
                print(f"hearing: step {step + 1} of {total}, loss {loss:.3f}", flush=True)

        best = run_train(
            model, config, out, resume=request.resume, force=request.force, on_step=on_step,
            on_sound=on_sound,
            on_skip=lambda name, why: skipped.append(f"{name}: {why}"),
        )  # fmt: skip
    for line in skipped:
        print(f"skipped {line}")
    if (picture := plot_curve(out)) is not None:
        print(f"learning curve: {picture}")
    return best


def _train_recipe(recipe: Recipe, request: TrainRequest) -> None:
    """Train the stages of a recipe in order, each from the best weights of the previous one."""
    from save_deploy.training.chain import describe, plan_chain, run_chain
    from save_deploy.training.distributed import leads, team
    from save_deploy.training.start import initial_model

    root, sam, init = request.root, request.sam, request.init
    if root is None:
        raise SaveDeployError(
            "a recipe needs data", got="no --root",
            expected="--root DIR, the folder that holds the datasets",
        )  # fmt: skip
    if request.test is None and len(recipe.test) > 1:
        raise SaveDeployError(
            "this row is tested on several datasets", got="no --test",
            expected=f"--test {' or --test '.join(recipe.test)}",
        )  # fmt: skip
    if init is not None and request.vggish is not None:
        raise SaveDeployError(
            "two sources of VGGish", got="--init and --vggish", expected="the checkpoint's own"
        )
    dataset = request.test or next(iter(recipe.test))
    base = replace(
        request.config, freeze_sam=sam is not None or init is not None, adapter_only=sam is not None
    )
    planned = plan_chain(
        recipe, dataset, root, request.out, base=base, batch_per_device=request.per_device,
        steps=request.steps,
    )  # fmt: skip
    if leads():
        print("\n".join(describe(planned)), flush=True)

    def train_stage(plan: PlannedStage, before: Path | None) -> None:
        model = initial_model(
            request.preset or recipe.backbone,
            system=recipe.system,
            res=plan.stage.res,
            switches=recipe.switches,
            init=before or init,
            sam=sam,
            vggish=None if before or init else request.vggish,
            seed=plan.config.seed,
        )
        _require_size(model, request.preset or recipe.backbone, before or init or sam)
        _train(model, plan.config, plan.folder, request)

    with team(base.device):  # one group of processes for all stages
        best = run_chain(planned, train_stage, resume=request.resume)
    if leads():
        print(f"best checkpoint: {best}")
        sam_option = f" --sam {sam}" if sam else ""
        print(
            f"score it: save-eval {best}{sam_option} --recipe {recipe.name} "
            f"--test {dataset} --root {root}"
        )


def print_estimate(config: Any, savings: Savings, micro_batch: int, *, freeze_sam: bool) -> None:
    """Print the memory of a step with no savings, with all, and with all except one each."""
    from rich.table import Table

    from save_deploy.console import new_console
    from save_deploy.training.estimate import CARD_BYTES, GIB, with_and_without

    rows = with_and_without(config, savings, micro_batch=micro_batch, freeze_sam=freeze_sam)
    console = new_console()
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
