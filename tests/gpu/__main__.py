"""python -m tests.gpu [-o gpu_report.md] [-k EXPRESSION] [--bundles DIR]: GPU tests and their report.

The report is written anew after every test and every figure: a run that is killed leaves what it had.
From a copied tree nothing has to be installed but the libraries. Exit 0 when what ran passed, 1 when
something failed, 3 when nothing could run (no GPU).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.gpu.tree import is_dry, use_tree

# -k of each: names of the files; none has run on a GPU yet
GROUPS = {
    "cuda_provider": "ONNX Runtime's CUDA provider: parity, graph, threads, leaks, device arrays",
    "eager_model": "the eager model on CUDA against the CPU, and what autocast and torch.compile give",
    "engines": "TensorRT and TensorRT-RTX: build, parity, graph, threads, leaks",
    "forms": "forms of the graph against each other on TensorRT",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    groups = "\n".join(f"  -k {name:<15} {what}" for name, what in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=__doc__,
        epilog=f"Groups, each for a command of at most five minutes:\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu_report.md"))
    parser.add_argument("-k", default="", help="only tests whose name matches, as in pytest")
    parser.add_argument(
        "--bundles", type=Path, help="folder of bundles exported before: fp16_256, fp32_256, ..."
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, *, tests: Path = Path(__file__).parent) -> int:
    """tests: the folder they are in."""
    options = parse(arguments)
    use_tree()
    from save_deploy.machine import read_nvidia

    nvidia = read_nvidia()
    if not nvidia.gpus and not is_dry():  # before anything that takes seconds is imported
        line = f"no GPU: {nvidia.problem}; nothing verified"
        options.out.write_text(f"# GPU report\n\n{line}\n")
        print(f"{line}; written: {options.out}")
        return 3
    if options.bundles is not None:
        os.environ["SAVE_GPU_BUNDLES"] = str(options.bundles.resolve())
    import pytest

    from tests.gpu.report import Collector

    collector = Collector(options.out)
    flags = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-k", options.k]
    code = pytest.main([str(tests), *flags], plugins=[collector])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return 1  # pytest has said why: a usage error, nothing collected, interrupted
    collector.finish()
    print(f"{collector.summary()}; written: {options.out}")
    return collector.exit_code()


if __name__ == "__main__":
    sys.exit(main())
