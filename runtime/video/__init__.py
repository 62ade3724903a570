"""Masking of video files: overlay video, PNG masks, JSON record. av is imported on use."""
