"""Entries (bundles, graphs, the eager model) against a reference: accuracy, speed, rows, reports."""

from save_deploy.runtime.compare.rows import Row, TimeSplit

__all__ = ["Row", "TimeSplit"]
