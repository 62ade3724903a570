"""Datasets of samples: a frame, its second of audio, and the mask of the sounding objects."""
