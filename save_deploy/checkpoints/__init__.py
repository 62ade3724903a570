"""Weight files -> SaveModel. Nothing here ever unpickles code."""

from save_deploy.checkpoints.load import builtin_path, load_model
from save_deploy.checkpoints.native import read_header, save_checkpoint

__all__ = ["builtin_path", "load_model", "read_header", "save_checkpoint"]
