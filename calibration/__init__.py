"""Calibration pairs, each a frame and one second of audio, and the ranges measured on them."""
