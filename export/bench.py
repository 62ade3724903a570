"""The benchmark of `save-deploy bench` as a function of its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from save_deploy.bundle import GraphSpec
from save_deploy.checkpoints.random import write_random_checkpoint
from save_deploy.config import SaveConfig
from save_deploy.errors import BackendError, BundleError, SaveDeployError
from save_deploy.export.bench_graphs import (
    example_inputs,
    write_empty_graph,
    write_gemm_graph,
    write_variants,
)
from save_deploy.extras import install_line
from save_deploy.partials import partial_folder
from save_deploy.runtime.bench.entries import Subject, bundle_graphs, parse_entries, split_names
from save_deploy.runtime.bench.options import BenchOptions
from save_deploy.runtime.bench.run import BenchResult, OnStep, run_bench
from save_deploy.runtime.bench.yardsticks import Yardsticks
from save_deploy.runtime.eager import require_device
from save_deploy.runtime.eager_mode import MODES, EagerMode, choose_device, named_mode
from save_deploy.runtime.session import available_backends
from save_deploy.runtime.session.ort import PROVIDERS, require_provider
from save_deploy.runtime.session.ort_cuda import CudaOptions

Progress = Callable[[str, int], AbstractContextManager[OnStep]]


def benchmark(
    options: BenchOptions, *, on_text: Callable[[str], object], progress: Progress
) -> BenchResult:
    """Write the graphs that options.what names, then time all entries.

    Graphs are written to a temporary folder in options.out.
    on_text: called with a line for each step before the timing.
    progress: called as progress(title, number of calls), see save_deploy.progress.
    Raises SaveDeployError for invalid options, before anything is written.
    """
    names = split_names(options.what)
    bundles = bundle_graphs(names)
    backends = _backends(options.backends)
    config = _config(options)
    cuda = CudaOptions.parse(options.cuda)
    mode = EagerMode(choose_device(options.eager_device, backends))
    if any(name in MODES for name in names):
        require_device(mode.device)
        [named_mode(name, mode.device) for name in names if name in MODES]  # TF32 is CUDA's alone
    with partial_folder(options.out / "graphs", what="the benchmark") as work:
        checkpoint = options.checkpoint
        if config is not None:
            on_text(f"writing random weights of {options.preset}")
            checkpoint = write_random_checkpoint(work / "random.safetensors", config)
        graphs = [n for n in names if n.startswith(("naive", "merged", "fp16", "int8"))]
        on_text(f"exporting {', '.join(graphs) or 'nothing'}")
        subject, files = write_variants(
            graphs, work, checkpoint=checkpoint, sam=options.sam, res=options.res,
            batch=options.batch,
        )  # fmt: skip
        source = replace(subject.source, mode=mode)
        subject = replace(subject, threads=options.threads, source=source)
        files |= _same_shape(bundles, subject)
        entries = [
            replace(entry, cuda=cuda)
            for entry in parse_entries(options.what, backends, files, subject)
        ]
        yardsticks = Yardsticks(
            write_empty_graph(subject.spec, work / "empty.onnx"),
            write_gemm_graph(work / "gemm.onnx"),
            write_gemm_graph(work / "gemm-int8.onnx", int8=True),
        )
        calls = len(entries) + len(yardsticks.gemms(entries))
        with progress("benchmarking", options.rounds * calls) as advance:
            return run_bench(
                subject,
                entries,
                example_inputs(subject.spec),
                yardsticks=yardsticks,
                rounds=options.rounds,
                budget_s=options.budget,
                on_step=advance,
            )


def _config(options: BenchOptions) -> SaveConfig | None:
    """Return the config of a model with random weights, or None for a checkpoint."""
    if options.preset is None:
        return None
    if options.checkpoint is not None:
        raise SaveDeployError(
            "two models given", got=f"{options.checkpoint} and --preset", expected="one of them"
        )
    config = SaveConfig.preset(options.preset, res=options.res)
    if options.blocks is None:
        return config
    kept = tuple(i for i in config.global_blocks if i < options.blocks)
    return config.replace(depth=options.blocks, global_blocks=kept)


def _same_shape(bundles: dict[str, tuple[Path, GraphSpec]], subject: Subject) -> dict[str, Path]:
    """Return the graph of each bundle.

    Raises BundleError if its inputs differ from the subject's.
    """
    for name, (_, spec) in bundles.items():
        if spec != subject.spec:
            raise BundleError(
                "bundle with another input shape",
                got=f"{name}: {spec.inputs[0].shape}",
                expected=str(subject.spec.inputs[0].shape),
                hint="use --res and --batch of the bundle",
            )
    return {name: path for name, (path, _) in bundles.items()}


def _backends(text: str | None) -> Sequence[str]:
    """Parse a list such as "onnxruntime,openvino,onnxruntime-cuda"; None is all available backends.

    Raises BackendError for one that is unknown, not installed or cannot run here. Engines are not
    graphs and are timed by save-compare.
    """
    here = available_backends()
    if text is None:
        return here
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        provider = next((p for p, backend in PROVIDERS.items() if backend == name), None)
        if provider is not None:
            require_provider(provider)
        elif name not in here:
            raise BackendError(
                "backend is not available",
                got=name,
                expected=", ".join((*here, *PROVIDERS.values())),
                hint=install_line("openvino"),
            )
    return names
