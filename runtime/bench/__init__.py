"""save-deploy bench: forms of one model, each in a process of its own, timed in turn."""

from save_deploy.runtime.bench.entries import Subject
from save_deploy.runtime.bench.run import BenchResult, Outcome, run_bench

__all__ = ["BenchResult", "Outcome", "Subject", "run_bench"]
