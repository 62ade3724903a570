"""Samples: frames with the sound heard with them and the mask of what sounds."""
