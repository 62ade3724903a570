"""Optional packages: the extra that installs each, and the error when one is missing.

A failed import becomes a BackendError with the pip command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from save_deploy.errors import BackendError

# Top-level module -> the smallest extra in pyproject.toml that installs it.
EXTRA_OF = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "cuda": "cuda",
    "torch": "export",
    "torchvision": "export",
    "torchaudio": "export",
    "segment_anything": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "ml_dtypes": "export",
    "safetensors": "export",
    "matplotlib": "train",
    "polygraphy": "polygraphy",
    "tritonclient": "triton",
    "pyarrow": "bulk",
    "fsspec": "bulk",
    "pycocotools": "bulk",
    "ray": "ray",
}


def install_line(extra: str) -> str:
    """Return the pip command that installs an extra."""
    return f'pip install "save-deploy[{extra}]"'


@contextmanager
def named_extras() -> Iterator[None]:
    """Convert the failed import of an optional package to a BackendError (exit 3).

    Use it as a context manager or a decorator. Any other missing module is a bug and keeps its
    traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = EXTRA_OF.get(package)
        if extra is None:
            raise
        raise BackendError(
            f"{package} is not installed",
            got=str(error),
            expected=f"the packages of save-deploy[{extra}]",
            hint=install_line(extra),
        ) from error
