"""Loading, saving and conversion of weight files. No code in a file is executed."""

from save_deploy.checkpoints.convert import Conversion, convert
from save_deploy.checkpoints.inspect import Inspection, inspect_checkpoint
from save_deploy.checkpoints.load import builtin_path, load_model
from save_deploy.checkpoints.native import read_header, save_checkpoint

__all__ = [
    "Conversion",
    "Inspection",
    "builtin_path",
    "convert",
    "inspect_checkpoint",
    "load_model",
    "read_header",
    "save_checkpoint",
]
