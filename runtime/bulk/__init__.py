"""Masking of many videos in one resumable run, on one machine or a cluster; one mask file per video.

Needs the extra `bulk` (pyarrow, fsspec, pycocotools); engine ray also needs the extra `ray`.
"""
