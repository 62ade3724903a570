"""save-deploy bench: any set of contenders, each in a process of its own, timed in turn."""

from save_deploy.runtime.bench.contender import Contender, Outcome, Subject
from save_deploy.runtime.bench.run import BenchResult, run_bench

__all__ = ["BenchResult", "Contender", "Outcome", "Subject", "run_bench"]
