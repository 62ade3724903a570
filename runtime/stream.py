"""Former location of Listener and stream, which are in runtime/pipeline.py."""

from save_deploy.runtime.pipeline import Listener, stream

__all__ = ["Listener", "stream"]
