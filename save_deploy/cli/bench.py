"""save-deploy bench: time eager, torch.compile, naive ONNX and merged graphs in one run."""

from __future__ import annotations

import sys

from save_deploy.cli.takes import takes
from save_deploy.runtime.bench.options import RESULTS, BenchOptions


@takes(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Time eager, torch.compile, naive ONNX and merged graphs against each other in one run."""
    import shlex

    from save_deploy.bundle import Manifest
    from save_deploy.files import check_results_target
    from save_deploy.runtime.bench.entries import bundle_graphs, split_names
    from save_deploy.runtime.session.open import known_backend
    from save_deploy.weight_files import check_given

    # wrong names and damaged files are reported before torch is imported
    for graph, _ in bundle_graphs(split_names(options.what)).values():
        Manifest.read(graph.parent).verify(graph.parent)
    check_given(options.checkpoint, options.sam)
    check_results_target(options.out, RESULTS, force=options.force)
    for name in (options.backends or "").split(","):
        known_backend(name.strip(), also=("",))
    from save_deploy.export.bench import benchmark
    from save_deploy.progress import progress
    from save_deploy.runtime.bench.report import print_result, write_result

    result = benchmark(
        options, on_text=lambda line: print(line, file=sys.stderr), progress=progress
    )
    print_result(result)
    written = write_result(result, options.out, shlex.join(["save-deploy", *sys.argv[1:]]))
    print("written: " + ", ".join(map(str, written)))
