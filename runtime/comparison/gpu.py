"""GPUs as nvidia-smi describes them: name, driver, clocks. A machine without it is no error.

Not run on a GPU yet.
"""

from __future__ import annotations

import subprocess

_FIELDS = {
    "name": "",
    "driver_version": "driver ",
    "memory.total": "",
    "clocks.sm": "SM ",
    "clocks.max.sm": "of at most ",
    "clocks.mem": "memory ",
    "persistence_mode": "persistence ",
}


def describe_gpus(command: str = "nvidia-smi") -> list[str]:
    """A line for each GPU; empty without nvidia-smi, or when it does not answer in five seconds."""
    query = [command, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = []
    for line in answer.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(_FIELDS):
            words = zip(_FIELDS.values(), values, strict=True)
            lines.append(", ".join(before + value for before, value in words))
    return lines
