"""Checkpoint -> bundle: merge, trace to ONNX, choose precision, prove parity, write.

save_deploy.export(checkpoint, ...) is export.api.export: the package can be called, as a function of
this name cannot stand beside it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from save_deploy.export.api import Bundle


class _Export(ModuleType):
    def __call__(self, *args: Any, **named: Any) -> Bundle:
        """See save_deploy.export.api.export."""
        from save_deploy.export.api import export

        return export(*args, **named)


sys.modules[__name__].__class__ = _Export
