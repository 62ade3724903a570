"""save-deploy bench: eager, torch.compile, naive ONNX and merged graphs timed in one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from save_deploy.cli.options import (
    Checkpoint,
    Sam,
    Threads,
)
from save_deploy.errors import BackendError, BundleError, SaveDeployError


def bench(
    checkpoint: Checkpoint = None,
    sam: Sam = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="vit_t, vit_b, vit_l or vit_h with random weights instead of a checkpoint.",
            show_default=False,
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --preset: only the first encoder blocks.", show_default=False
        ),
    ] = None,
    res: Annotated[int, typer.Option(help="Input side in px: 224, 256 or 1024.")] = 256,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Frames per call.")] = 1,
    what: Annotated[
        str,
        typer.Option(
            help="Comma-separated: eager, compile (torch.compile), naive (plain torch.onnx.export), "
            "merged, merged:windows=late_pad+adapter=matmul (other forms), int8 (merged, quantized), "
            "naive-int8 (onnxruntime's quantize_static on naive), bundle:DIR."
        ),
    ] = "eager,compile,naive,merged",
    backends: Annotated[
        str | None,
        typer.Option(help="For graphs. Default: all that are installed.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3)] = 20,
    budget: Annotated[
        float, typer.Option(help="Seconds of timing after which no new round begins (3 at least).")
    ] = 300.0,
    threads: Threads = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for bench.json, bench.md and bench.png.")
    ] = Path("bench"),
) -> None:
    """Time eager, torch.compile, naive ONNX and merged graphs against each other in one run."""
    import shlex
    import tempfile
    from dataclasses import replace

    from save_deploy.runtime.bench.contender import bundle_graphs, parse_contenders, split_names

    names = split_names(what)
    bundles = bundle_graphs(names)
    # late import: option errors must not wait for torch
    from save_deploy.checkpoints.random import write_random_checkpoint
    from save_deploy.config import SaveConfig
    from save_deploy.export.bench_graphs import (
        example_inputs,
        write_empty_graph,
        write_gemm_graph,
        write_variants,
    )
    from save_deploy.progress import progress
    from save_deploy.runtime.bench import run_bench
    from save_deploy.runtime.bench.report import print_result, write_result
    from save_deploy.runtime.bench.run import yardsticks_of
    from save_deploy.runtime.session import available_backends

    chosen = _backends(backends) if backends else available_backends()
    config = None
    if preset is not None:
        if checkpoint is not None:
            raise SaveDeployError(
                "two models at once", got=f"{checkpoint} and --preset", expected="one of them"
            )
        config = SaveConfig.preset(preset, res=res)
        if blocks is not None:
            kept = tuple(i for i in config.global_blocks if i < blocks)
            config = config.replace(depth=blocks, global_blocks=kept)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".graphs-") as folder:
        work = Path(folder)
        if config is not None:
            print(f"writing random weights of {preset}", file=sys.stderr)
            checkpoint = write_random_checkpoint(work / "random.safetensors", config)
        graphs = [n for n in names if n.startswith(("naive", "merged", "int8"))]
        print(f"exporting {', '.join(graphs) or 'nothing'}", file=sys.stderr)
        subject, files = write_variants(
            graphs, work, checkpoint=checkpoint, sam=sam, res=res, batch=batch
        )
        subject = replace(subject, threads=threads)
        for name, (path, spec) in bundles.items():
            if spec != subject.spec:
                raise BundleError(
                    "bundle of another shape", got=f"{name}: {spec.inputs[0].shape}",
                    expected=str(subject.spec.inputs[0].shape), hint="--res and --batch as in it",
                )  # fmt: skip
            files[name] = path
        contenders = parse_contenders(what, chosen, files)
        gemm = write_gemm_graph(work / "gemm.onnx")
        gemm_int8 = write_gemm_graph(work / "gemm-int8.onnx", int8=True)
        calls = len(contenders) + len(yardsticks_of(contenders, gemm, gemm_int8))
        with progress("benchmarking", rounds * calls) as advance:
            result = run_bench(
                subject,
                contenders,
                example_inputs(subject.spec),
                rounds=rounds,
                budget_s=budget,
                overhead=write_empty_graph(subject.spec, work / "empty.onnx"),
                gemm=gemm,
                gemm_int8=gemm_int8,
                on_step=advance,
            )
    print_result(result)
    written = write_result(result, out, shlex.join(["save-deploy", *sys.argv[1:]]))
    print("written: " + ", ".join(map(str, written)))


def _backends(text: str) -> tuple[str, ...]:
    """ "onnxruntime,openvino" -> both, each known and installed."""
    from save_deploy.runtime.session import available_backends

    names = tuple(name.strip() for name in text.split(","))
    here = available_backends()
    for name in names:
        if name not in here:
            raise BackendError(
                "backend is not available", got=name, expected=", ".join(here),
                hint='pip install "save-deploy[openvino]"',
            )  # fmt: skip
    return names
