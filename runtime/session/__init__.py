"""Sessions: a loaded graph on any backend, with one checked interface."""

from save_deploy.runtime.session.base import Session, as_batch, default_threads, twin_of
from save_deploy.runtime.session.open import (
    BACKENDS,
    CPU_BACKENDS,
    GPU_BACKENDS,
    available_backends,
    open_session,
)
from save_deploy.runtime.session.ort import OrtSession
from save_deploy.runtime.session.ort_cuda import CudaOptions

__all__ = [
    "BACKENDS",
    "CPU_BACKENDS",
    "GPU_BACKENDS",
    "CudaOptions",
    "OrtSession",
    "Session",
    "as_batch",
    "available_backends",
    "default_threads",
    "open_session",
    "twin_of",
]
