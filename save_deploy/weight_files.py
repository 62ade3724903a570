"""What a weight file is, from its first bytes and its table of contents, without torch.

So that a damaged file is refused at once: the import of torch takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError
from save_deploy.fields import Fields, parse_json

FORMAT = "save-deploy"
FORMAT_VERSION = "1"
KINDS = ("full", "adapter")
_HEAD = 512
_MAX_PICKLE = 256 << 20  # bytes of names and shapes; that of vit_h has a ten-thousandth
_PICKLE = b"\x80"  # how every file of torch.save starts that is no zip


def check_given(
    checkpoint: Path | None = None, sam: Path | None = None, vggish: Path | None = None
) -> None:
    """Check the weight files of a command line (check_weights); None for one that is not given.

    Raises CheckpointError for trained parts without their SAM, too.
    """
    files = {"checkpoint": checkpoint, "SAM checkpoint": sam, "VGGish checkpoint": vggish}
    for what, path in files.items():
        if path is not None:
            check_weights(path, what)
    if checkpoint is not None and sam is None and is_safetensors(checkpoint):
        with open_safetensors(checkpoint, "np") as (_, metadata):
            if is_native(metadata) and (found := read_metadata(metadata))[1] == "adapter":
                raise without_sam(checkpoint, found[0])


def without_sam(checkpoint: Path, config: SaveConfig) -> CheckpointError:
    return CheckpointError(
        "this checkpoint has only the trained parts",
        got=f"{checkpoint} without --sam",
        expected=f"the SAM ({config.name}) on which it was trained, too",
        hint="add --sam FILE, the file that save-train was given",
    )


def check_weights(path: Path, what: str = "checkpoint") -> None:
    """Raise CheckpointError for a file that is missing, cut off, damaged, no weight file at all, or a
    checkpoint of ours with a wrong configuration. Tensors are not read.

    what: name of a missing file in the error.
    """
    check_head(path, what)
    if is_safetensors(path):
        with open_safetensors(path, "np") as (_, metadata):
            if is_native(metadata):
                read_metadata(metadata)
    elif is_zip(path):
        check_zip(path)
    elif not _head(path).startswith(_PICKLE):
        raise unreadable(path, f"it starts with {_head(path)[:8]!r}", "it is not a weight file")


def check_head(path: Path, what: str = "checkpoint") -> None:
    """Raise CheckpointError for content that is often found instead of a checkpoint."""
    if not os.path.isfile(path):  # False for a name that no file can have, too
        raise CheckpointError(
            f"{what} not found", got=str(path), expected="a PyTorch or safetensors file"
        )
    head = _head(path)
    text = head.lstrip().lower()
    if not head:
        raise unreadable(path, "an empty file", "nothing was written")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise unreadable(path, "a web page", "the link is to a page, not to the file")
    if text.startswith(b"version https://git-lfs"):
        raise unreadable(path, "a Git LFS pointer", "run git lfs pull")


def check_zip(path: Path) -> None:
    """Raise CheckpointError for what a small file may unpack to: torch.save compresses nothing."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except Exception as error:  # zipfile raises what it likes for a damaged one
        raise unreadable(path, str(error)[:200], "it looks truncated or damaged") from error
    for entry in entries:
        name = entry.filename.rpartition("/")[2]
        if entry.file_size > entry.compress_size:
            raise unreadable(path, f"{name[:80]} is compressed", "torch.save compresses nothing")
        if name == "data.pkl" and entry.file_size > _MAX_PICKLE:
            raise unreadable(path, f"{name} of {entry.file_size} bytes", "it is no list of tensors")


def is_safetensors(path: Path) -> bool:
    """Return True for safetensors content: a length, then a JSON object. The suffix is ignored."""
    return re.match(rb'.{8}\{\s*["}]', _head(path), re.DOTALL) is not None


def is_zip(path: Path) -> bool:
    return _head(path).startswith(b"PK\x03\x04")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise unreadable(path, str(error), "it cannot be opened") from error


def unreadable(path: Path, got: str, why: str) -> CheckpointError:
    return CheckpointError(
        "checkpoint cannot be read",
        got=f"{path}: {got}",
        expected="a complete PyTorch or safetensors file",
        hint=f"download or copy it again: {why}",
    )


@contextlib.contextmanager
def open_safetensors(path: Path, framework: str = "pt") -> Iterator[tuple[Any, Fields]]:
    """Open a safetensors file; yield it and the text entries of its header.

    framework: of the tensors: "pt" imports torch, "np" does not.
    Raises CheckpointError.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise CheckpointError(
            "checkpoint not found",
            got=str(path),
            expected="a PyTorch or safetensors file",
            hint="save-export without a path exports the built-in checkpoint",
        )
    try:
        with safe_open(str(path), framework=framework) as file:
            entries = file.metadata() or {}
            yield file, Fields(entries, f"header of {path}", error=CheckpointError)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            "checkpoint cannot be read",
            got=f"{path}: {error}",
            expected="a complete safetensors file",
            hint="copy it again: it is truncated or damaged",
        ) from error


def is_native(metadata: Fields) -> bool:
    """Return True for the header of a checkpoint that save_checkpoint wrote."""
    return bool(metadata.values.get("format") == FORMAT)


def read_metadata(metadata: Fields) -> tuple[SaveConfig, str]:
    """Return the configuration and the kind.

    Raises CheckpointError for a header that is not ours or has a wrong value.
    """
    if not is_native(metadata):
        raise CheckpointError(
            "not a save-deploy checkpoint",
            got=f"no configuration in the {metadata.origin}",
            expected="a file written by save-train",
        )
    if (version := metadata.string("format_version", default="none")) != FORMAT_VERSION:
        raise CheckpointError(
            "checkpoint of another format version",
            got=f"{version} in the {metadata.origin}",
            expected=FORMAT_VERSION,
            hint="update save-deploy",
        )
    return SaveConfig.from_fields(_json(metadata, "config")), metadata.string("kind", KINDS)


def read_notes(metadata: Fields) -> dict[str, Any]:
    """Return the notes of the training run in the header: data, steps, scores."""
    return _json(metadata, "notes").values if "notes" in metadata else {}


def _json(metadata: Fields, key: str) -> Fields:
    """Parse a header entry that is a JSON object."""
    origin = f"{metadata.origin}: {key}"
    return parse_json(metadata.string(key), origin, error=CheckpointError)
