"""Progress of long work (a bar on a terminal, lines in a log), and handling of Ctrl-C.

Python prints and drops a KeyboardInterrupt that is raised in a callback or a destructor, and
libraries have many of both. So the signal handler also stores the request, and long work checks it
between stages and before an output is moved to its target.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from save_deploy.terminal import plain, visible

_interrupted = False
_shields = 0  # count in the main thread, the only one that gets signals


class Resumable(KeyboardInterrupt):
    """Interrupt after finished work was saved: the same command resumes it."""


def listen_for_interrupts() -> None:
    """Handle SIGINT (unless the shell ignores it, as for background jobs), SIGTERM and SIGHUP."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # as under nohup
        signal.signal(hangup, _interrupt)


def stop_listening() -> None:
    """Let signals end the process at once: an exception in the teardown of a library may crash it."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def listens_for_interrupts() -> bool:
    """Whether SIGTERM is handled here."""
    return signal.getsignal(signal.SIGTERM) is _interrupt


def was_interrupted() -> bool:
    """Return True once an interrupt was requested.

    This also holds when C code converted the KeyboardInterrupt to another exception.
    """
    return _interrupted


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if an interrupt was requested."""
    if _interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def resumable(kept: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Convert an interrupt to Resumable when kept() returns True: finished work is on disk."""
    try:
        yield
    except Resumable:
        raise
    except KeyboardInterrupt:
        if kept():
            raise Resumable from None
        raise


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Only store interrupts in this context, for a few steps that must not be separated."""
    global _shields
    mine = int(threading.current_thread() is threading.main_thread())
    _shields += mine
    try:
        yield
    finally:
        _shields -= mine


@contextlib.contextmanager
def ended_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a question: was an interrupt requested? For work that has no end of its own, where it is no
    error: the block asks, and what comes after it goes on as if none had been."""
    global _interrupted
    with shielded():
        yield was_interrupted
        _interrupted = False


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    if not _shields:
        raise KeyboardInterrupt


@contextlib.contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Yield advance(text="", n=1). A log gets a line per tenth, and at most one every 10 s.

    total None: unknown number of steps.
    The remaining time is estimated from the first step on, without preparation and resumed steps.
    """
    if plain(sys.stderr).isatty():
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        from save_deploy.console import new_console

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=new_console(stderr=True),
        )
        with bar:
            task = bar.add_task(visible(label), total=total, text="")
            yield lambda text="", n=1: bar.update(task, advance=n, text=visible(text))
        return
    started = shown = time.monotonic()
    done = first = 0

    def advance(text: str = "", n: int = 1) -> None:
        nonlocal done, shown, first, started
        done += n
        if not done:  # the first step is not finished
            return
        now = time.monotonic()
        if not first:
            first, started = done, now
        tenth = total is not None and done * 10 // total > (done - n) * 10 // total
        if done == total or (tenth and now - shown > 1) or now - shown > 10:
            shown = now
            line = f"{label} {done}"
            if total is not None:
                line += f"/{total}"
                if done > first:
                    line += f", {(now - started) / (done - first) * (total - done):.0f} s left"
            print(f"{line} {text}".rstrip(), file=sys.stderr, flush=True)

    yield advance


def countdown(
    on_stage: Callable[[str, str], None], stage: str, what: str, total: int
) -> Callable[..., None]:
    """Return advance(text="", n=1) for a counted part of a stage: `what 12/64, 30 s left`."""
    started, done, first = time.monotonic(), 0, 0

    def advance(text: str = "", n: int = 1) -> None:
        nonlocal started, done, first
        done += n
        now = time.monotonic()
        if not first:  # resumed steps took no time, so the estimate starts after them
            first, started = done, now
        left = ""
        if first < done < total:
            left = f", {(now - started) / (done - first) * (total - done):.0f} s left"
        on_stage(stage, f"{what} {done}/{total}{left} {text}".rstrip())

    return advance


class Stages:
    """Prints one line per stage of a job, with the seconds since its start.

    In a log, details of a long stage are printed every ten seconds, and the last one at its end.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.current, self.started = names, "", time.monotonic()
        self.shown, self.pending = self.started, ""
        self.rich = plain(sys.stderr).isatty()

    def __call__(self, stage: str, detail: str) -> None:
        raise_if_interrupted()
        seconds = time.monotonic() - self.started
        number = f"{self.names.index(stage) + 1}/{len(self.names)}"
        line = f"[{number} {seconds:5.1f} s] {stage}: {detail}"
        same = stage == self.current
        self.current = stage
        if self.rich:  # details of one stage overwrite each other
            start = "\r" if same else ("" if seconds < 0.05 else "\n")
            print(f"{start}{visible(line):<100}", end="", file=plain(sys.stderr), flush=True)
            return
        if same and time.monotonic() - self.shown <= 10:
            self.pending = line
            return
        if not same and self.pending:
            print(self.pending, file=sys.stderr)
        self.shown, self.pending = time.monotonic(), ""
        print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.rich:
            print(file=sys.stderr)
        elif self.pending:
            print(self.pending, file=sys.stderr, flush=True)
