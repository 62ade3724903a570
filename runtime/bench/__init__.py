"""Benchmark of forms of one model, each in a separate process, timed in interleaved rounds."""

from save_deploy.runtime.bench.entries import Subject
from save_deploy.runtime.bench.run import BenchResult, Outcome, run_bench

__all__ = ["BenchResult", "Outcome", "Subject", "run_bench"]
