"""Verbs that measure: bench, eval, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from save_deploy.errors import BackendError, BundleError, SaveDeployError
from save_deploy.verbs.options import (
    Backend,
    Checkpoint,
    Clips,
    Sam,
    SkipBad,
    SoundFrom,
    Threads,
    Vggish,
)


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
    import json
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


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder written by save-export.")],
    backend: Backend = "auto",
    threads: Threads = None,
) -> None:
    """Check a bundle's files against their hashes, run its golden samples and conformance pack."""
    from save_deploy.runtime.verify import verify_bundle

    result = verify_bundle(bundle, backend=backend, threads=threads)
    parity = result.parity
    print(
        f"{bundle}: files intact, {parity.n_frames} golden samples on {result.backend}, "
        f"mask agreement {parity.mask_agreement:.5f}, max abs logit error {parity.max_abs_err:.1e}, "
        f"first mask after {result.first_mask_s:.2f} s"
    )
    if (pack := result.conformed) is None:
        print("conformance pack: not run (none in the bundle)")
    else:
        print(
            f"conformance pack: {pack.n_cases} files as prepared by the exporter, logits within "
            f"{pack.logits_err:.1e}, mask agreement {pack.mask_agreement:.5f}"
        )


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
    import sys
    import tempfile
    from dataclasses import replace

    from save_deploy.runtime.bench.contender import bundle_graphs, parse_contenders, split_names

    names = split_names(what)
    bundles = bundle_graphs(names)
    # behind what can be said at once: importing torch takes seconds
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
