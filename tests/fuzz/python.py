"""Fuzz one Python reader with atheris: python -m tests.fuzz.python FILE CORPUS [libFuzzer options]."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["save_deploy", "tests.fuzz"]):
    from save_deploy.errors import SaveDeployError
    from tests.fuzz.readers import reader as reader_of


def main() -> None:
    """Any exception but SaveDeployError is a finding; libFuzzer writes the input to crash-*."""
    reader = reader_of(sys.argv[1])
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory)) / reader.name

    def one_input(data: bytes) -> None:
        path.write_bytes(data)
        try:
            reader.read(path)
        except SaveDeployError:
            pass

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
