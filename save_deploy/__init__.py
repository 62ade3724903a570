"""SAVE, audio-visual segmentation on Segment Anything, from checkpoint to deployed bundle.

save_deploy.load("bundle/") returns a pipeline; pipeline(frame, sound) returns a mask. See
docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from save_deploy.data.pictures import read_frame
    from save_deploy.data.sound import read_sound
    from save_deploy.errors import SaveDeployError
    from save_deploy.export.api import Bundle, export
    from save_deploy.runtime.compare.api import compare
    from save_deploy.runtime.pipeline import Listener, load, stream
    from save_deploy.runtime.result import Result

__version__ = "0.2.0"
# Name -> the module that has it, imported on first use: importing the package stays fast.
_HOME = {
    "Bundle": "export.api",
    "Listener": "runtime.pipeline",
    "Result": "runtime.result",
    "SaveDeployError": "errors",
    "compare": "runtime.compare.api",
    "load": "runtime.pipeline",
    "read_frame": "data.pictures",
    "read_sound": "data.sound",
    "stream": "runtime.pipeline",
}
__all__ = [
    "Bundle",
    "Listener",
    "Result",
    "SaveDeployError",
    "__version__",
    "compare",
    "export",
    "load",
    "read_frame",
    "read_sound",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name == "export":  # a package that can be called
        return import_module("save_deploy.export")
    if name in _HOME:
        return getattr(import_module(f"save_deploy.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
