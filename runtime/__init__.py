"""Bundles run, compared and timed. Imports without torch except in `eager`."""
