"""save-deploy bench: time eager, torch.compile, naive ONNX and merged graphs in one run."""

from __future__ import annotations

import sys

from save_deploy.cli.takes import takes
from save_deploy.runtime.bench.options import BenchOptions


@takes(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Time eager, torch.compile, naive ONNX and merged graphs against each other in one run."""
    import shlex

    from save_deploy.runtime.bench.entries import bundle_graphs, split_names
    from save_deploy.runtime.session.open import known_backend

    bundle_graphs(split_names(options.what))  # report wrong names before importing torch
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
