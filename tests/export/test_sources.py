"""The hashes in a bundle are those of the checkpoint that was read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from save_deploy.errors import CheckpointError
from save_deploy.export.sources import Sources


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"first weights")
    return path


def test_hash_and_size_of_what_was_read(checkpoint: Path) -> None:
    sources = Sources([checkpoint])
    sources.hash()
    sources.require_same()
    digest = hashlib.sha256(b"first weights").hexdigest()
    wanted = {"name": "a.safetensors", "sha256": digest, "size": 13}
    assert sources.to_dict() == {"files": [wanted]}


def test_a_file_replaced_before_it_is_hashed_is_refused(checkpoint: Path) -> None:
    """Training renames the next checkpoint over it while the model is being loaded."""
    sources = Sources([checkpoint])
    other = checkpoint.with_name("next")
    other.write_bytes(b"other weights")
    os.replace(other, checkpoint)
    with pytest.raises(CheckpointError, match="changed during the export"):
        sources.hash()


def test_a_file_written_to_during_the_export_is_refused(checkpoint: Path) -> None:
    """Weights stay mapped: they would change in the model. Another file in its place does not."""
    sources = Sources([checkpoint])
    sources.hash()
    other = checkpoint.with_name("next")
    other.write_bytes(b"other weights")
    os.replace(other, checkpoint)
    sources.require_same()
    again = Sources([checkpoint])
    again.hash()
    with checkpoint.open("r+b") as file:
        file.write(b"third")
    os.utime(checkpoint, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed during the export"):
        again.require_same()
