"""A pipeline stage in a separate thread that runs a few items ahead of the next stage."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


@contextlib.contextmanager
def ahead(items: Generator[T, None, None], n: int) -> Iterator[Iterator[T]]:
    """Yield an iterator over items that a thread computes, at most n items ahead.

    An error in items is raised at the position of its item. On leaving the block the thread stops
    after its current item and closes items.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=n)
    stopped = threading.Event()

    def work() -> None:
        last: tuple[Any, BaseException | None] = (_END, None)
        try:
            for item in items:
                ready.put((item, None))
                if stopped.is_set():
                    break
        except BaseException as error:  # raised in the reader's thread
            last = (_END, error)
        finally:
            items.close()
        ready.put(last)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield _taken(ready)
    finally:
        stopped.set()
        while thread.is_alive():  # the thread blocks on a full queue
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.05)
        thread.join()


def _taken(ready: queue.Queue[tuple[Any, BaseException | None]]) -> Iterator[Any]:
    while True:
        item, error = ready.get()
        if error is not None:
            raise error
        if item is _END:
            return
        yield item
