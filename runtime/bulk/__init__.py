"""Many videos in one run: one mask file a video, resumed where it ended, on one machine or many.

Needs the extra `bulk` (pyarrow, fsspec, pycocotools), the engine ray also `ray`.
"""
