"""Verbs for training: train, data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from save_deploy.errors import SaveDeployError


def train(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder of the run: last.pt, best.safetensors, curve.jsonl."
        ),
    ] = Path("runs/save"),
    preset: Annotated[str, typer.Option(help="vit_t, vit_b, vit_l or vit_h.")] = "vit_t",
    res: Annotated[int, typer.Option(help="Training side in px, a multiple of 32.")] = 256,
    data: Annotated[
        str, typer.Option(help="Sources and weights: scenes=0.2,stamps=0.8, or an AVSBench folder.")
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
    steps: Annotated[int, typer.Option(min=1)] = 10_000,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    lr: Annotated[float, typer.Option(help="Peak; linear warm-up, then cosine.")] = 2e-4,
    warmup: Annotated[int, typer.Option(min=1, help="Steps of linear warm-up.")] = 200,
    final_lr_ratio: Annotated[float, typer.Option(help="Last learning rate over the peak.")] = 0.01,
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    aux: Annotated[
        float, typer.Option(help="Weight of the object and sound classes (generated data).")
    ] = 0.0,
    objects: Annotated[str, typer.Option(help="Objects per generated scene, MIN-MAX.")] = "2-4",
    scale: Annotated[str, typer.Option(help="Object side over frame side, MIN-MAX.")] = "0.28-0.5",
    sources: Annotated[
        str, typer.Option(help="Share of generated clips with 0, 1, 2 sources.")
    ] = "0.08,0.78,0.14",
    sound_steps: Annotated[
        int, typer.Option(min=0, help="First train hearing alone for so many steps (batch 64).")
    ] = 0,
    sound_batch: Annotated[
        int, typer.Option(min=0, help="Sounds heard beside every batch, weighted by --aux.")
    ] = 0,
    eval_every: Annotated[int, typer.Option(min=1)] = 500,
    seed: Annotated[int, typer.Option()] = 0,
    half: Annotated[bool, typer.Option("--half", help="Store the best in float16.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Train SAVE: from scratch (vit_t), or adapters on a frozen SAM (--sam)."""
    from save_deploy.progress import progress
    from save_deploy.training.curve import plot_curve
    from save_deploy.training.loop import Progress, TrainConfig
    from save_deploy.training.loop import train as run_train
    from save_deploy.training.start import initial_model

    config = TrainConfig(
        data=_mixture(data),
        val_data=val_data,
        n_val_clips=val_clips,
        steps=steps,
        batch_size=batch,
        lr=lr,
        warmup_steps=warmup,
        final_lr_ratio=final_lr_ratio,
        weight_decay=weight_decay,
        freeze_sam=sam is not None,
        aux_weight=aux,
        eval_every=eval_every,
        seed=seed,
        n_objects=_pair(objects, int),
        scale=_pair(scale, float),
        source_odds=_odds(sources),
        sound_steps=sound_steps,
        sound_batch=sound_batch,
        half=half,
    )
    model = initial_model(preset, res=res, init=init, sam=sam, vggish=vggish, seed=seed)
    with progress("training", steps) as advance:

        def on_step(step: Progress) -> None:
            advance(f"loss {step.loss:.3f}, best M_J {step.best_m_j:.2f}", n=step.n)

        def on_sound(step: int, loss: float) -> None:
            if (step + 1) % 50 == 0:
                print(f"hearing: step {step + 1} of {sound_steps}, loss {loss:.3f}", flush=True)

        best = run_train(model, config, out, resume=resume, on_step=on_step, on_sound=on_sound)
    print(f"best checkpoint: {best}")
    if (picture := plot_curve(out)) is not None:
        print(f"learning curve: {picture}")


def write_data(
    name: Annotated[str, typer.Argument(help="scenes or stamps.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write, in AVSBench's layout.")
    ],
    subset: Annotated[str, typer.Option(help="s4 (one source) or ms3 (two).")] = "s4",
    train: Annotated[int, typer.Option(min=0, help="Clips per split.")] = 100,
    val: Annotated[int, typer.Option(min=0)] = 40,
    test: Annotated[int, typer.Option(min=0)] = 200,
    size: Annotated[int, typer.Option(min=64, help="Frame side in px.")] = 256,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write generated scenes as an AVSBench dataset: frames, masks, sounds, metadata."""
    from save_deploy.data.write import write_avsbench
    from save_deploy.progress import progress

    counts = {"train": train, "val": val, "test": test}
    with progress(f"writing {name} {subset}", max(1, sum(counts.values()))) as advance:
        write_avsbench(
            out, name=name, subset=subset, counts=counts, size_px=size, seed=seed, on_clip=advance
        )
    print(f"dataset: {out}/   (save-compare BUNDLE --data {out})")


def _mixture(text: str) -> dict[str, float]:
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


def _odds(text: str) -> tuple[float, ...]:
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


def _pair(text: str, kind: Callable[[str], Any]) -> tuple[Any, Any]:
    """ "2-4" -> (2, 4)."""
    try:
        low, high = (kind(part) for part in text.split("-"))
    except ValueError:
        raise SaveDeployError(
            "unreadable range", got=text, expected="MIN-MAX, such as 2-4"
        ) from None
    return low, high
