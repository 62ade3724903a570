"""python -m tests.gpu [-o gpu_report.md] [-k EXPRESSION]: every GPU test, and a report of it.

Exit 0 when what ran passed, 1 when something failed, 3 when nothing could run (no GPU).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from tests.gpu.report import Collector, write_report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu_report.md"))
    parser.add_argument("-k", default="", help="only tests whose name matches, as in pytest")
    options = parser.parse_args()
    collector = Collector()
    here = str(Path(__file__).parent)
    arguments = [here, "-m", "gpu", "-q", "-p", "no:cacheprovider", "-k", options.k]
    code = pytest.main(arguments, plugins=[collector])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return 1  # pytest has said why: a usage error, nothing collected, interrupted
    write_report(collector, options.out)
    print(f"{collector.summary()}; written: {options.out}")
    return collector.exit_code()


if __name__ == "__main__":
    sys.exit(main())
