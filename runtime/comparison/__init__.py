"""save-compare: any bundles on any backends and datasets, against the eager model."""

from save_deploy.runtime.comparison.budget import Budget
from save_deploy.runtime.comparison.options import CompareOptions
from save_deploy.runtime.comparison.row import Row
from save_deploy.runtime.comparison.run import Comparison, run_comparison

__all__ = ["Budget", "CompareOptions", "Comparison", "Row", "run_comparison"]
