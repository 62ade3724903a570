"""save-eval: score the eager model on a dataset."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from save_deploy.cli.takes import takes
from save_deploy.errors import SaveDeployError
from save_deploy.options import (
    checkpoint_option,
    clips_option,
    option,
    sam_option,
    skip_bad_option,
    sound_option,
    vggish_option,
)

if TYPE_CHECKING:
    from save_deploy.recipes.recipe import Recipe

MODEL, DATA, PAPER = "Model", "Data", "A row of the paper"


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """A checkpoint and a dataset to score it on; a recipe sets data, split, metrics and side."""

    checkpoint: Path | None = checkpoint_option()
    data: str | None = option(
        "--data", default=None,
        help="scenes, stamps, stamps:ms3, or a released dataset: DIR or DIR:SUBSET. "
        "Default: scenes, or the recipe's.",
    )  # fmt: skip
    split: str | None = option("--split", default=None, help="Default: test, or the recipe's.")
    clips: int | None = clips_option()
    metrics: str | None = option(
        "--metrics", default=None,
        help="avsbench, sama (F of logits), sama_val or gavs (threshold 0.4, native size).",
    )  # fmt: skip
    json_out: Path | None = option(
        "--json", default=None, help="Write the score to this file; alone: print it."
    )
    sam: Path | None = sam_option(MODEL)
    vggish: Path | None = vggish_option(MODEL)
    res: int | None = option(
        "--res", panel=MODEL, default=None, help="224, 256 or 1024. Default: as trained."
    )
    sound: str = option(
        "--sound", panel=DATA, default="right", help="right, wrong (another object's) or silent."
    )
    sound_from: str = sound_option(DATA)
    skip_bad: bool = skip_bad_option(DATA)
    recipe: str | None = option(
        "--recipe", panel=PAPER, default=None,
        help="Compare with this row of the paper (save-deploy recipes).",
    )  # fmt: skip
    test: str | None = option(
        "--test", panel=PAPER, needs=("--recipe",), default=None,
        help="With --recipe: the dataset of the row.",
    )  # fmt: skip
    root: Path | None = option(
        "--root", panel=PAPER, needs=("--recipe",), default=None,
        help="With --recipe: folder that holds the datasets.",
    )  # fmt: skip


@takes(EvalRequest)
def evaluate(request: EvalRequest) -> None:
    """Score the eager model on a dataset: M_J and M_F as in AVSBench, with confidence intervals."""
    from save_deploy.data.open import open_dataset
    from save_deploy.data.skipping import SkippingDataset
    from save_deploy.data.sound_swap import swap_sound
    from save_deploy.metrics.segmentation import protocol
    from save_deploy.progress import progress
    from save_deploy.weight_files import check_given

    recipe, tested = None, ""
    if request.recipe is not None:
        from save_deploy.recipes.recipe import load_recipe

        recipe = load_recipe(request.recipe)
        tested = _tested(recipe.test, request.test, recipe.name)
        request = _with_recipe(request, recipe, tested)
    data, split = request.data or "scenes", request.split or "test"
    opened = open_dataset(
        data, split=split, n_clips=request.clips, source=request.sound_from,
        skip_bad=request.skip_bad,
    )  # fmt: skip
    check_given(request.checkpoint, request.sam, request.vggish)
    # late import: a wrong file must not wait for torch
    from save_deploy.checkpoints import load_model
    from save_deploy.training.evaluate import evaluate as run_evaluate

    model = load_model(
        request.checkpoint, res=request.res, sam=request.sam, vggish=request.vggish,
        system=recipe.system if recipe else None,
    )  # fmt: skip
    dataset = swap_sound(opened, request.sound)
    rules = protocol(request.metrics or "avsbench")
    with progress(f"evaluating on {data}", len(dataset)) as advance:
        score = run_evaluate(model, dataset, protocol=rules, on_clip=advance)
    j, f = score.m_j_interval, score.m_f_interval
    print(
        f"{data} {split}, {request.sound} sound, {model.config.res} px: "
        f"M_J {score.m_j:.2f} [{j[0]:.2f}, {j[1]:.2f}]  M_F {score.m_f:.3f} [{f[0]:.3f}, {f[1]:.3f}]  "
        f"({score.n_videos} videos, {score.n_frames} frames; 95 % intervals over videos)"
    )
    print(f"metrics: {score.protocol}")
    if recipe is not None:
        from save_deploy.recipes.paper import compare as compare_with_paper

        for line in compare_with_paper(recipe, tested, score.m_j, score.m_f).lines():
            print(line)
    skipped = opened.skipped if isinstance(opened, SkippingDataset) else {}
    for name, why in skipped.items():
        print(f"skipped {name}: {why}")
    if request.json_out is not None:
        values = {
            "data": data, "split": split, "sound": request.sound, "res": model.config.res,
            **asdict(score), "skipped": skipped,
        }  # fmt: skip
        from save_deploy.files import write_text

        write_text(request.json_out, json.dumps(values, indent=2) + "\n", what="the score")
        print(f"written: {request.json_out}")


def _with_recipe(request: EvalRequest, recipe: Recipe, tested: str) -> EvalRequest:
    """Return the request with the recipe's data, split, metrics and side as defaults."""
    from save_deploy.data.open import find_dataset

    data = request.data
    if data is None:
        if request.root is None:
            raise SaveDeployError(
                "a recipe needs data", got="neither --root nor --data", expected="one of them"
            )
        data = find_dataset(request.root, tested)
    return replace(
        request,
        data=data,
        split=request.split or recipe.test[tested],
        metrics=request.metrics or recipe.metrics,
        res=request.res or recipe.res,
    )


def _tested(tests: dict[str, str], asked: str | None, name: str) -> str:
    """Return the requested test dataset of a recipe, or its only one."""
    if asked is None and len(tests) == 1:
        return next(iter(tests))
    if asked not in tests:
        raise SaveDeployError(
            f"which dataset of {name}?", got=str(asked or "no --test"), expected=", ".join(tests)
        )
    return asked
