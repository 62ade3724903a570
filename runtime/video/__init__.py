"""Video files in, masks out: an overlay video, PNGs, a JSON record. Imports av when it is used."""

from save_deploy.runtime.video.run import RunOptions, RunResult, VideoRun
from save_deploy.runtime.video.source import Section, VideoSource

__all__ = ["RunOptions", "RunResult", "Section", "VideoRun", "VideoSource"]
