"""Paired batches (a frame and its second of sound) that ranges and golden samples are taken from."""
