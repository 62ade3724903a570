"""SAVE, audio-visual segmentation on Segment Anything, from checkpoint to deployed bundle."""

__version__ = "0.1.0"
