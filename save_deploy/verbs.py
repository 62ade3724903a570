"""What every verb does: arguments in, one call into the package, a few lines of output.

Nothing heavy is imported before a verb runs, so --help answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from save_deploy.errors import DataError, ParityError, SaveDeployError

Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        help="SAVE checkpoint (.safetensors). Default: the built-in vit_t.", show_default=False
    ),
]
Sam = Annotated[
    Path | None,
    typer.Option(
        help="SAM's official .pth, for a checkpoint that holds only the trained parts.",
        show_default=False,
    ),
]
Data = Annotated[
    str, typer.Option(help="scenes, scenes:ms3, stamps, stamps:ms3, or an AVSBench folder.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. Default: all cores.", show_default=False)
]


def export(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    fp16: Annotated[
        bool, typer.Option("--fp16/--fp32", help="Weights and activations of the model graph.")
    ] = False,
    data: Annotated[
        str,
        typer.Option(help="Where golden samples come from: scenes, stamps or an AVSBench folder."),
    ] = "scenes",
    golden: Annotated[
        int, typer.Option(min=1, help="Golden samples in the bundle, also used for the table.")
    ] = 8,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Bundle folder. Default: CHECKPOINT_RES_PRECISION.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    rounds: Annotated[int, typer.Option(min=3, help="Timing rounds.")] = 20,
    threads: Threads = None,
    max_logit_error: Annotated[
        float | None,
        typer.Option(
            help="Parity budget. Default: 1e-3 for fp32, none for fp16.", show_default=False
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Parity budget, IoU of masks. Default: 0.9999 for fp32, 0.995 for fp16.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn a SAVE checkpoint into a bundle: merged, traced to ONNX, proven against eager, timed."""
    from save_deploy.export.run import STAGES, ExportOptions, export_bundle
    from save_deploy.progress import Stages
    from save_deploy.runtime.report import print_table

    options = ExportOptions(
        checkpoint=checkpoint,
        sam=sam,
        res=res,
        precision="fp16" if fp16 else "fp32",
        data=data,
        n_golden=golden,
        out=out,
        force=force,
        rounds=rounds,
        threads=threads,
        max_abs_err=max_logit_error,
        min_agreement=min_agreement,
    )
    stages = Stages(STAGES)
    try:
        result = export_bundle(options, on_stage=stages)
    finally:
        stages.finish()
    print_table(result.rows, f"{result.folder}", result.note)
    if fp16:
        print(
            "FP16 is meant for GPUs: on a CPU, onnxruntime computes it in FP32 with casts between."
        )
    worst = max(r.max_rel_diff for r in result.proof.rewrites)
    print(
        f"merge: {len(result.proof.rewrites)} exact rewrites, max difference {worst:.0e} in float64"
    )
    if result.plan is not None:
        kept = ", ".join(i.module for i in result.plan.islands) or "none"
        print(f"kept in FP32: every {', '.join(result.plan.fp32_ops)}; modules: {kept}")
    print(f"bundle: {result.folder}/   (report.md, manifest.json inside)")


def compare(
    bundle: Annotated[Path, typer.Argument(help="Folder written by save-export.")],
    data: Data = "scenes",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    clips: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many clips. Default: all (200 of generated data).", show_default=False
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint the bundle was made of. Default: the built-in one.",
            show_default=False,
        ),
    ] = None,
    sam: Sam = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Exit 2 when M_J falls by more than this.", show_default=False),
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Exit 2 when masks agree less (IoU).", show_default=False)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write report.json and report.md into this folder.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timing rounds.")] = 20,
    threads: Threads = None,
) -> None:
    """Compare a bundle with the eager model on a dataset: M_J, M_F, agreement, FPS."""
    from save_deploy.data.open import open_dataset
    from save_deploy.progress import progress
    from save_deploy.runtime.compare import compare as run_compare
    from save_deploy.runtime.reference import open_with_reference
    from save_deploy.runtime.report import footnote, print_table, write_report

    pipelines, sizes = open_with_reference(bundle, checkpoint=checkpoint, sam=sam, threads=threads)
    dataset = open_dataset(data, split=split, n_clips=clips)
    with progress(f"comparing on {data}", len(dataset)) as advance:
        rows = run_compare(pipelines, sizes, dataset, rounds=rounds, on_clip=advance)
    note = footnote(rows, f"{data} ({split})")
    print_table(rows, f"{bundle} against eager", note)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        write_report(
            report,
            rows,
            title=f"{bundle.name} against eager",
            note=note,
            extra={"data": data, "split": split},
        )
        print(f"report: {report}/report.md")
    drop, parity = rows[0].score.m_j - rows[-1].score.m_j, rows[-1].parity
    if max_drop is not None and drop > max_drop:
        raise ParityError(
            "M_J fell by more than allowed", got=f"{drop:.2f}", expected=f"at most {max_drop}"
        )
    if min_agreement is not None and parity is not None and parity.mask_agreement < min_agreement:
        raise ParityError(
            "masks agree less than asked",
            got=f"{parity.mask_agreement:.5f}",
            expected=f"{min_agreement}",
        )


def evaluate(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    res: Annotated[
        int | None, typer.Option(help="224, 256 or 1024. Default: as trained.", show_default=False)
    ] = None,
    data: Data = "scenes",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    clips: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many clips. Default: all (200 of generated data).", show_default=False
        ),
    ] = None,
    sound: Annotated[
        str, typer.Option(help="right, wrong (another object's) or silent.")
    ] = "right",
) -> None:
    """Score the eager model on a dataset: M_J and M_F as AVSBench computes them."""
    from save_deploy.checkpoints import load_model
    from save_deploy.data.open import open_dataset
    from save_deploy.data.sound_swap import swap_sound
    from save_deploy.metrics.segmentation import BATCH_DEFINITION
    from save_deploy.progress import progress
    from save_deploy.training.loop import evaluate as run_evaluate

    model = load_model(checkpoint, res=res, sam=sam)
    dataset = swap_sound(open_dataset(data, split=split, n_clips=clips), sound)
    with progress(f"evaluating on {data}", len(dataset)) as advance:
        score = run_evaluate(model, dataset, on_clip=advance)
    print(
        f"{data} {split}, {sound} sound, {model.config.res} px: "
        f"M_J {score.m_j:.2f}  M_F {score.m_f:.3f}  "
        f"({score.n_videos} videos, {score.n_frames} frames)"
    )
    print(f"metrics: {BATCH_DEFINITION}")


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
        half=half,
    )
    model = initial_model(preset, res=res, init=init, sam=sam, vggish=vggish, seed=seed)
    with progress("training", steps) as advance:

        def on_step(step: Progress) -> None:
            advance(f"loss {step.loss:.3f}, best M_J {step.best_m_j:.2f}", n=step.n)

        best = run_train(model, config, out, resume=resume, on_step=on_step)
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


def mask(
    bundle: Annotated[Path, typer.Argument(help="Folder written by save-export.")],
    frame: Annotated[Path, typer.Argument(help="PNG or JPEG.")],
    sound: Annotated[Path, typer.Argument(help="wav, flac or ogg; its first second is heard.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write: white = sounding.")],
    any_sound: Annotated[
        bool, typer.Option("--any-sound", help="Accept silence and less than a second.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Mask what sounds in one picture."""
    from save_deploy.data.audio import EXAMPLE_SECONDS, MIN_SECONDS, is_silent, read_waveform
    from save_deploy.data.transforms import read_frame, write_mask
    from save_deploy.runtime.pipeline import load

    picture = read_frame(frame)
    cure = "add --any-sound"
    shortest = MIN_SECONDS if any_sound else EXAMPLE_SECONDS
    waveform = read_waveform(sound, min_seconds=shortest, hint=cure)
    if is_silent(waveform) and not any_sound:
        raise DataError("sound is silent", got=str(sound), expected="something to hear", hint=cure)
    with load(bundle, threads=threads) as pipeline:
        found = pipeline(picture, waveform)
    write_mask(out, found)
    print(f"{out}: {found.mean():.1%} of the picture sounds")


def verify(bundle: Annotated[Path, typer.Argument(help="Folder written by save-export.")]) -> None:
    """Check a bundle's files against their hashes and run its golden samples."""
    from save_deploy.runtime.verify import verify_bundle

    result = verify_bundle(bundle)
    print(
        f"{bundle}: files intact, {result.n_frames} golden samples, "
        f"mask agreement {result.mask_agreement:.5f}, max abs logit error {result.max_abs_err:.1e}"
    )


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


def _pair(text: str, kind: Callable[[str], Any]) -> tuple[Any, Any]:
    """ "2-4" -> (2, 4)."""
    try:
        low, high = (kind(part) for part in text.split("-"))
    except ValueError:
        raise SaveDeployError(
            "unreadable range", got=text, expected="MIN-MAX, such as 2-4"
        ) from None
    return low, high
