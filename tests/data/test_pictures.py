"""The reader of pictures against Pillow's own functions, and what it refuses before it decodes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from save_deploy.data.pictures import open_picture, read_frame, read_gray, read_mask
from save_deploy.errors import DataError
from tests.data.picture_files import POSTSCRIPT, READ, REFUSED, png, values_16
from tests.test_layout import ROOT, modules


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("error")
def test_pixels(tmp_path: Path, name: str) -> None:
    """The same decoder: no difference. The name says nothing about the kind."""
    content, expected, _ = READ[name]
    found = read_frame(written(tmp_path / "picture.txt", content))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("error")
def test_refusals(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are too large are refused before they are decoded."""
    content, word = REFUSED[name]
    if "larger" in name or "wider" in name or "fill" in name:
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    path = written(tmp_path / "picture.png", content)
    with pytest.raises(DataError, match=re.escape(word)) as refused:
        read_frame(path)
    assert str(path) in str(refused.value)
    with pytest.raises(DataError):
        read_mask(path)


def test_no_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to ghostscript, whatever the name of the file."""
    program = written(tmp_path / "gs", f"#!/bin/sh\ntouch {tmp_path}/ran\n".encode())
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(DataError):
        read_frame(written(tmp_path / "a.png", POSTSCRIPT))
    assert not (tmp_path / "ran").exists()


def test_no_other_place_opens_pictures() -> None:
    """Formats, bounds and orientation are decided once."""
    others = [
        path.relative_to(ROOT).as_posix()
        for path in modules().values()
        if re.search(r"\bImage\.open\b|ImageFile\b|imread\b|read_image\b", path.read_text())
    ]
    assert others == ["save_deploy/data/pictures.py"]


def test_masks_of_16_bits(tmp_path: Path) -> None:
    """A label of 1 in 16 bits is foreground, though its upper byte is 0."""
    values = values_16(1) % 2
    path = written(tmp_path / "m.png", png(values, 0, 16))
    np.testing.assert_array_equal(read_mask(path), values[..., 0] == 1)
    assert not read_gray(path).any()


def test_transparency_is_kept_when_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "p.png", READ["palette with transparent colors"][0])
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGBA"))
    found = np.asarray(open_picture(path, transparency=True).convert("RGBA"))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found[..., 3])) > 4


@pytest.mark.parametrize("name", ["missing.png", "", "a" * 5000, "\0"])
def test_no_such_picture(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="image not found"):
        read_frame(tmp_path / name)


@pytest.mark.parametrize("start", ["PNG", "JPEG"])
def test_a_file_of_a_terabyte_is_not_read(tmp_path: Path, start: str) -> None:
    """Sparse: it takes no room on the disk."""
    content = next(c for name, (c, *_) in READ.items() if name.startswith(start))
    path = written(tmp_path / "p", content)
    os.truncate(path, 1 << 40)
    with pytest.raises(DataError, match="of a size that cannot be used"):
        read_frame(path)
