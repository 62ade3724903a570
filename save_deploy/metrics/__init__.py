"""Scores of masks against ground truth, and of backends against the eager model."""
