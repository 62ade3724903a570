"""Fuzz the readers of strangers' files: python -m tests.fuzz [--seconds 600] [--corpus DIR] [KIND...].

Kinds: files read in Python (atheris), and c++:KIND of the C++ runtime (libFuzzer, needs clang++). Each
starts from small files of our own; the corpus folder keeps what it finds. Exit 1 names the input that
broke a reader.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.readers import reader, readers
from tests.runtime.cpp import ROOT, SOURCE, cmake, openvino_dir

CPP_KINDS = ("manifest", "json", "npy", "png", "jpeg", "sound")
FUZZ_BUILD = ROOT / "build" / "cpp-fuzz"
LIMITS = ("-rss_limit_mb=4096", "-timeout=20", "-print_final_stats=1", "-verbosity=0")


def fuzz_python(kind: str, seconds: int, corpus: Path) -> subprocess.CompletedProcess[str]:
    folder = corpus / kind
    folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(reader(kind).seeds):
        (folder / f"seed-{i}").write_bytes(seed)
    return _run([sys.executable, "-m", "tests.fuzz.python", kind], folder, seconds)


def build_cpp() -> Path:
    """The C++ fuzzer. Raises RuntimeError with the compiler's words."""
    FUZZ_BUILD.mkdir(parents=True, exist_ok=True)
    with (FUZZ_BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may want it
        for args in (
            ("-S", SOURCE, "--preset", "fuzz", openvino_dir()),
            ("--build", FUZZ_BUILD, "-j", "2", "--target", "fuzz"),
        ):
            done = cmake(*args)
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
    return FUZZ_BUILD / "tests" / "fuzz"


def fuzz_cpp(
    program: Path, kind: str, seconds: int, corpus: Path
) -> subprocess.CompletedProcess[str]:
    folder = corpus / f"c++-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    suppressions = SOURCE / "tests" / "fuzz.supp"
    environment = {
        "SAVE_FUZZ": kind,
        "LSAN_OPTIONS": f"suppressions={suppressions}:print_suppressions=0",
        "ASAN_OPTIONS": "allocator_may_return_null=0:detect_odr_violation=0",
    }
    subprocess.run(
        [program], env={**os.environ, **environment, "SAVE_FUZZ_SEEDS": str(folder)}, check=True
    )
    if kind == "sound":
        for i, seed in enumerate(reader("x.wav").seeds):
            (folder / f"python-{i}").write_bytes(seed)
    return _run([str(program)], folder, seconds, environment)


def _run(
    command: list[str], folder: Path, seconds: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={folder.parent}/", *LIMITS]
    return subprocess.run(
        [*command, str(folder), *options], cwd=ROOT, env={**os.environ, **(environment or {})},
        capture_output=True, text=True, errors="replace", check=False, timeout=seconds + 300,
    )  # fmt: skip


def executions(done: subprocess.CompletedProcess[str]) -> int:
    found = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    return int(found[1]) if found else 0


def why(done: subprocess.CompletedProcess[str]) -> str:
    """The part of libFuzzer's output that says what happened."""
    text = done.stdout + done.stderr
    start = max(text.find("=== Uncaught Python exception"), text.find("==ERROR"), 0)
    return text[start:][:3000] + "\n...\n" + text[-600:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, default=ROOT / "build" / "fuzz")
    args = parser.parse_args()
    kinds = args.kinds or [*readers(), *(f"c++:{kind}" for kind in CPP_KINDS)]
    failed = 0
    for kind in kinds:
        language, _, of_cpp = kind.partition(":")
        if language == "c++":
            done = fuzz_cpp(build_cpp(), of_cpp, args.seconds, args.corpus)
        else:
            done = fuzz_python(kind, args.seconds, args.corpus)
        print(f"{kind:20} {executions(done):>10} inputs, exit {done.returncode}", flush=True)
        if done.returncode:
            failed += 1
            print(why(done))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
