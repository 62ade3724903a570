"""Peak memory of one entry: opened and called once in a process that does nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from save_deploy.data.audio import Waveform
from save_deploy.data.transforms import Frame
from save_deploy.machine import peak_memory_mib
from save_deploy.runtime.compare.entries import Entry


def measure_memory(entry: Entry, frame: Frame, waveform: Waveform) -> float | None:
    """Largest resident size in MiB, libraries included, the GPU's memory not; None when it failed."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(other, entry, frame, waveform), daemon=True)
    process.start()
    other.close()
    try:
        return pipe.recv()
    except EOFError:  # it ended without an answer, such as for want of memory
        return None
    finally:
        process.kill()
        process.join()


def _work(pipe: Connection, entry: Entry, frame: Frame, waveform: Waveform) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    answer: float | None = None
    try:
        pipeline = entry.open()
        for _ in range(2):
            pipeline(frame, waveform)
        answer = peak_memory_mib()
    except Exception:  # the comparison itself ran: memory is then simply not known
        pass
    pipe.send(answer)
    pipe.close()
    os._exit(0)  # gigabytes of a framework need no orderly teardown
