"""Comparison of entries (bundles, graphs, eager) with a reference: accuracy, speed, reports."""

from save_deploy.runtime.compare.rows import Row, TimeSplit

__all__ = ["Row", "TimeSplit"]
