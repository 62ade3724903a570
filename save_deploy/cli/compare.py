"""The verb compare: any bundles on any backends and datasets against the eager model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import Clips, NoSelfTest, SkipBad, SoundFrom, Split, Threads


def compare(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Folders written by save-export.")
    ],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="Of every bundle; may be repeated. onnxruntime, openvino, onnxruntime-cuda, "
            "onnxruntime-tensorrt, tensorrt, tensorrt_rtx: exit 3 where one cannot run a bundle. all: "
            "those that can. auto: the best of them.",
            show_default="auto",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated: scenes, scenes:ms3, stamps, stamps:ms3, or a released dataset: DIR "
            "or DIR:SUBSET.",
            show_default="scenes",
        ),
    ] = None,
    split: Split = "test",
    clips: Clips = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="What a bundle was made of, found by its hash; may be repeated. Default: the "
            "built-in one.",
            show_default=False,
        ),
    ] = None,
    sam: Annotated[
        list[Path] | None,
        typer.Option(
            help="SAM's official .pth, for a checkpoint that holds only the trained parts; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    eager: Annotated[
        bool,
        typer.Option(
            "--eager/--no-eager",
            help="--no-eager needs neither checkpoint nor torch: the first bundle on its first backend "
            "is then the reference.",
        ),
    ] = True,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Exit 2 if M_J of a row falls by more points than this.", show_default=False
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Exit 2 if mask agreement (IoU) of a row is below this.", show_default=False
        ),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            help="Exit 2 if the fastest backend of a bundle is below this speed-up over eager.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write report.html, report.md, report.json and worst_*.png into this folder; an "
            "earlier report there is replaced.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option(min=0, help="Worst frames of each dataset kept for the report.")
    ] = 8,
    rounds: Annotated[
        int,
        typer.Option(min=3, help="Timing rounds; up to three times as many while not steady."),
    ] = 20,
    memory: Annotated[
        bool | None,
        typer.Option(
            "--memory/--no-memory",
            help="Measure peak memory of each row in a separate process.",
            show_default="with --report",
        ),
    ] = None,
    no_self_test: NoSelfTest = False,
    threads: Threads = None,
    sound_from: SoundFrom = "auto",
    skip_bad: SkipBad = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json instead of tables.")
    ] = False,
) -> None:
    """Compare bundles with the eager model: M_J, M_F, agreement, speed, memory, worst frames."""
    import json

    from save_deploy.progress import Stages
    from save_deploy.runtime.compare.budget import Budget, require
    from save_deploy.runtime.compare.options import CompareOptions
    from save_deploy.runtime.compare.report import (
        check_folder,
        print_comparison,
        values_of,
        write_comparison,
    )
    from save_deploy.runtime.compare.run import STAGES, run_comparison

    options = CompareOptions(
        bundles=tuple(bundles),
        backends=tuple(backend or ["auto"]),
        data=tuple(data or ["scenes"]),
        split=split,
        clips=clips,
        checkpoints=tuple(checkpoint or ()),
        sams=tuple(sam or ()),
        eager=eager,
        rounds=rounds,
        frames=frames if report is not None or as_json else 0,
        memory=report is not None if memory is None else memory,
        threads=threads,
        self_test=not no_self_test,
        sound_from=sound_from,
        skip_bad=skip_bad,
        budget=Budget(max_drop, min_agreement, min_speedup),
    )
    if report is not None:
        check_folder(report)
    stages = Stages(STAGES)
    try:
        found = run_comparison(options, on_stage=stages)
    finally:
        stages.finish()
    if as_json:
        print(json.dumps(values_of(found), indent=2, allow_nan=False))
    else:
        print_comparison(found)
    if report is not None:
        write_comparison(report, found)
        if not as_json:
            print(f"report: {report}/report.html")
    require(found.checks)
