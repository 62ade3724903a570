"""SAVE, audio-visual segmentation on Segment Anything, from checkpoint to deployed bundle.

`save_deploy.load("bundle/")` returns a pipeline; pipeline(frame, waveform) returns a mask. See
runtime/pipeline.py.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from save_deploy.runtime.pipeline import Listener, load

__all__ = ["Listener", "__version__", "load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import `load` and `Listener` on first use, so that importing the package stays fast."""
    if name in ("Listener", "load"):
        from save_deploy.runtime import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
