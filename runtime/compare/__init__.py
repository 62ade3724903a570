"""Comparison of entries (bundles, graphs, eager) with a reference: accuracy, speed, reports."""
