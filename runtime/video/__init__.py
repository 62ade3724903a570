"""Masking of video files: an overlay video, PNGs, a JSON record. Imports av when it is used."""
