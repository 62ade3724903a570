"""Several fixed batches of one bundle: which graph runs how many frames."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import GraphSpec, Manifest, batch_file, model_spec
from save_deploy.runtime.session.base import LazySession, Session


def batch_plan(n: int, batches: Collection[int]) -> list[int]:
    """Return the calls for n frames, as frames per call, by filling the largest batches first.

    Frames that fill no batch are one more call of the smallest one.

    >>> batch_plan(45, (1, 8, 32))
    [32, 8, 1, 1, 1, 1, 1]
    """
    sizes, plan = sorted(batches, reverse=True), list[int]()
    for size in sizes:
        calls, n = divmod(n, size)
        plan += [size] * calls
    return plan + sizes[-1:] * bool(n)


def every_slot(n: int, batch: int) -> NDArray[np.intp]:
    """Return indices of n samples, repeated so that they fill whole calls of the batch."""
    return np.arange(-(-n // batch) * batch) % n


def opened_later(
    manifest: Manifest, backend: str, opened: Callable[[str, GraphSpec], Session],
    check: Callable[[str], None],
) -> dict[int, Session]:  # fmt: skip
    """Return the sessions of a bundle's further graphs by batch, each opened by its first call.

    check: raises for a file name whose content is no longer what the manifest says.
    """

    def checked(name: str, spec: GraphSpec) -> Session:
        check(name)
        with ExitStack() as until_checked:
            session = until_checked.enter_context(opened(name, spec))
            check(name)
            until_checked.pop_all()
        return session

    found: dict[int, Session] = {}
    for batch in manifest.batches:
        spec = model_spec(manifest.config, batch)
        found[batch] = LazySession(backend, spec, partial(checked, batch_file(batch), spec))
    return found
