"""save-eval: score of the eager model on a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import (
    Checkpoint,
    Clips,
    Sam,
    SkipBad,
    SoundFrom,
    Vggish,
)
from save_deploy.errors import SaveDeployError


def evaluate(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    vggish: Vggish = None,
    res: Annotated[
        int | None, typer.Option(help="224, 256 or 1024. Default: as trained.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="scenes, stamps, stamps:ms3, or a released dataset: DIR or DIR:SUBSET. "
            "Default: scenes, or the recipe's.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Default: test, or the recipe's.", show_default=False)
    ] = None,
    clips: Clips = None,
    sound: Annotated[
        str, typer.Option(help="right, wrong (another object's) or silent.")
    ] = "right",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="avsbench, sama (F of logits), sama_val or gavs (threshold 0.4, native size).",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Compare with this row of the paper (save-deploy recipes).", show_default=False
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="With --recipe: the dataset of the row.", show_default=False),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="With --recipe: folder that holds the datasets.", show_default=False),
    ] = None,
    sound_from: SoundFrom = "auto",
    skip_bad: SkipBad = False,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="Write the score to this file.", show_default=False),
    ] = None,
) -> None:
    """Score the eager model on a dataset: M_J and M_F as AVSBench computes them, with intervals."""
    from dataclasses import asdict

    from save_deploy.checkpoints import load_model
    from save_deploy.data.open import open_dataset
    from save_deploy.data.skipping import SkippingDataset
    from save_deploy.data.sound_swap import swap_sound
    from save_deploy.metrics.segmentation import protocol
    from save_deploy.progress import progress
    from save_deploy.training.evaluate import evaluate as run_evaluate

    row, dataset_key = None, ""
    if recipe is not None:
        from save_deploy.data.open import find_dataset
        from save_deploy.recipes.recipe import load_recipe

        row = load_recipe(recipe)
        dataset_key = _tested(row.test, test, row.name)
        if data is None and root is None:
            raise SaveDeployError(
                "a recipe needs data", got="neither --root nor --data", expected="one of them"
            )
        data = data or find_dataset(root, dataset_key)  # type: ignore[arg-type]
        split, metrics = split or row.test[dataset_key], metrics or row.metrics
        res = res or row.res
    data, split = data or "scenes", split or "test"
    model = load_model(
        checkpoint, res=res, sam=sam, vggish=vggish, system=row.system if row else None
    )
    opened = open_dataset(data, split=split, n_clips=clips, source=sound_from, skip_bad=skip_bad)
    dataset = swap_sound(opened, sound)
    with progress(f"evaluating on {data}", len(dataset)) as advance:
        score = run_evaluate(
            model, dataset, protocol=protocol(metrics or "avsbench"), on_clip=advance
        )
    j, f = score.m_j_interval, score.m_f_interval
    print(
        f"{data} {split}, {sound} sound, {model.config.res} px: "
        f"M_J {score.m_j:.2f} [{j[0]:.2f}, {j[1]:.2f}]  M_F {score.m_f:.3f} [{f[0]:.3f}, {f[1]:.3f}]  "
        f"({score.n_videos} videos, {score.n_frames} frames; 95 % intervals over videos)"
    )
    print(f"metrics: {score.protocol}")
    if row is not None:
        from save_deploy.recipes.paper import compare as compare_with_paper

        for line in compare_with_paper(row, dataset_key, score.m_j, score.m_f).lines():
            print(line)
    skipped = opened.skipped if isinstance(opened, SkippingDataset) else {}
    for name, why in skipped.items():
        print(f"skipped {name}: {why}")
    if json_out is not None:
        values = {
            "data": data, "split": split, "sound": sound, "res": model.config.res,
            **asdict(score), "skipped": skipped,
        }  # fmt: skip
        json_out.write_text(json.dumps(values, indent=2) + "\n")
        print(f"written: {json_out}")


def _tested(tests: dict[str, str], asked: str | None, name: str) -> str:
    """The dataset of a recipe that is meant."""
    if asked is None and len(tests) == 1:
        return next(iter(tests))
    if asked not in tests:
        raise SaveDeployError(
            f"which dataset of {name}?", got=str(asked or "no --test"), expected=", ".join(tests)
        )
    return asked
