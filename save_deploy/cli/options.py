"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    str,
    typer.Option(
        help="scenes, scenes:ms3, stamps, stamps:ms3, or a released dataset: DIR or DIR:SUBSET."
    ),
]
Vggish = Annotated[
    Path | None,
    typer.Option(help="VGGish weights, for a file without an audio encoder.", show_default=False),
]
SoundFrom = Annotated[
    str,
    typer.Option(
        "--from",
        help="Sound of S4 and MS3: auto, wav, log_mel (stored), or video (its frames too).",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip unreadable clips and list them.")]
Split = Annotated[str, typer.Option(help="train, val or test.")]
Clips = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many clips. Default: all (200 of generated data).", show_default=False
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="onnxruntime, openvino, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, tensorrt_rtx, "
        "or auto: the fastest that runs here."
    ),
]
NoSelfTest = Annotated[
    bool,
    typer.Option(
        "--no-self-test",
        help="Do not run the golden samples first on a GPU that is new to a bundle.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. Default: all cores.", show_default=False)
]
CalibData = Annotated[
    str | None,
    typer.Option(
        "--calib-data",
        help="Pairs for ranges: scenes, stamps, DIR or DIR:SUBSET as released, or a folder of videos. "
        "Default: --data.",
        show_default=False,
    ),
]
CalibSplit = Annotated[str, typer.Option("--calib-split", help="train or val, never test.")]
CalibPairs = Annotated[int, typer.Option("--calib-pairs", help="Pairs of frame and second.")]
CalibMethod = Annotated[
    str | None,
    typer.Option(
        "--calib-method",
        help="minmax, percentile, entropy or mse. Default: minmax, or the table's.",
        show_default=False,
    ),
]
Smooth = Annotated[
    bool,
    typer.Option(
        "--smooth/--no-smooth", help="Rescale norms so that no single channel sets the range."
    ),
]

Bundle = Annotated[Path, typer.Argument(help="Folder written by save-export.")]
Target = Annotated[
    str,
    typer.Option(
        help="Form of the graph: portable, onnxruntime, openvino or tensorrt. Same weights and masks."
    ),
]
NoMerge = Annotated[
    list[str] | None,
    typer.Option(
        "--no-merge",
        metavar="NAME",
        help="Leave out a rewrite (repeatable); `save-deploy merge` lists their names.",
        show_default=False,
    ),
]
