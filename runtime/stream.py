"""Former place of Listener and stream, which live in runtime/pipeline.py."""

from save_deploy.runtime.pipeline import Listener, stream

__all__ = ["Listener", "stream"]
