"""SAVE, audio-visual segmentation on Segment Anything, from checkpoint to deployed bundle.

save_deploy.load("bundle/")(frame, waveform) -> mask, see runtime/pipeline.py.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from save_deploy.runtime.pipeline import load

__all__ = ["__version__", "load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`load` on first use: importing the package alone stays instant."""
    if name == "load":
        from save_deploy.runtime.pipeline import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
