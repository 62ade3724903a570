"""Live sources through a bundle: camera and microphone, streams, pipes."""

from save_deploy.runtime.live.source import LiveFrame, LiveSource, watch

__all__ = ["LiveFrame", "LiveSource", "watch"]
