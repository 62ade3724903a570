"""Sessions: a loaded graph on any backend, called in the same checked way."""

from save_deploy.runtime.session.base import Session, as_batch, default_threads
from save_deploy.runtime.session.open import (
    BACKENDS,
    CPU_BACKENDS,
    GPU_BACKENDS,
    available_backends,
    open_session,
)
from save_deploy.runtime.session.ort import OrtSession

__all__ = [
    "BACKENDS",
    "CPU_BACKENDS",
    "GPU_BACKENDS",
    "OrtSession",
    "Session",
    "as_batch",
    "available_backends",
    "default_threads",
    "open_session",
]
