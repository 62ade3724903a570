"""Memory and start of bundles, in processes of their own; the cases are interleaved.

    python -m tests.benchmarks.memory NAME=BUNDLE[,PYTHON]... [--processes 8]

PYTHON: the interpreter, of another version for example. Each case has its own cache, filled first.
A process loads the bundle and masks three frames. `private`: anonymous memory; `PSS`: shared pages
count in equal parts, so the sum over processes is what they take together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

_CHILD = """
import json, sys, time
began, bundle, backend, threads = json.loads(sys.argv[1])
from save_deploy import load
imported = time.time()
pipeline = load(bundle, backend=backend, threads=threads)
loaded = time.time()
import numpy as np
side = pipeline.config.res
frame, sound = np.zeros((side, side, 3), np.uint8), np.zeros(16000, np.float32)
pipeline(frame, sound)
first = time.time()
for _ in range(2):
    pipeline(frame, sound)
print(json.dumps([loaded - imported, first - began]), flush=True)
sys.stdin.read()
"""


_HEAD = """\
| case | backend | load s | first mask s | private MiB | processes | private each | PSS together |
|---|---|---:|---:|---:|---:|---:|---:|"""


def start(python: str, cache: Path, bundle: Path, backend: str, threads: int) -> Any:
    given = json.dumps([time.time(), str(bundle), backend, threads])
    return subprocess.Popen(
        [python, "-P", "-c", _CHILD, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "SAVE_DEPLOY_CACHE": str(cache)},
    )  # fmt: skip


def memory(pid: int) -> tuple[float, float]:
    """(private, PSS) of a process in MiB."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {row.split(":")[0]: int(row.split()[1]) for row in rows}
    return kib["Anonymous"] / 1024, kib["Pss"] / 1024


def run(
    n: int, python: str, cache: Path, bundle: Path, backend: str, threads: int
) -> list[list[float]]:
    """Of each of n processes at once: load s, first mask s, private MiB, PSS MiB."""
    children = [start(python, cache, bundle, backend, threads) for _ in range(n)]
    times = [json.loads(child.stdout.readline()) for child in children]
    found = [[*t, *memory(child.pid)] for t, child in zip(times, children, strict=True)]
    for child in children:
        child.communicate()
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("cases", nargs="+", metavar="NAME=BUNDLE[,PYTHON]")
    asked.add_argument("--backends", default="onnxruntime,openvino")
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--processes", type=int, default=8)
    options = asked.parse_args()
    print(_HEAD)
    for backend in options.backends.split(","):
        with tempfile.TemporaryDirectory() as folder:
            cases = {}
            for text in options.cases:
                name, _, given = text.partition("=")
                bundle, _, python = given.partition(",")
                place = Path(folder) / name
                cases[name] = (
                    python or sys.executable, place, Path(bundle), backend, options.threads,
                )  # fmt: skip
            measure(cases, rounds=options.rounds, processes=options.processes)


def measure(cases: dict[str, Any], *, rounds: int, processes: int) -> None:
    """Print a row of each case: medians of the rounds, then of all processes at once."""
    rows: dict[str, list[list[float]]] = {name: [] for name in cases}
    for case in cases.values():  # fills the cache
        run(1, *case)
    for _ in range(rounds):
        for name, case in cases.items():
            rows[name] += run(1, *case)
    for name, case in cases.items():
        load, first, private, _ = map(median, zip(*rows[name], strict=True))
        many = run(processes, *case)
        each, together = median(m[2] for m in many), sum(m[3] for m in many)
        print(f"| {name} | {case[3]} | {load:.2f} | {first:.2f} | {private:.0f} | "
              f"{processes} | {each:.0f} | {together:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
