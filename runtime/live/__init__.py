"""Masking of live sources: camera and microphone, streams, pipes."""
