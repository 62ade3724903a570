"""Masks in the record of a film, as a film with transparency, and in a window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from save_deploy.errors import BackendError, DataError
from save_deploy.runtime.video import formats, window
from tests.command import run as command
from tests.runtime.films import frames_of, left_in, masks_in, run, tone, write_film

DECODERS = {".mov": "prores", ".webm": "libvpx-vp9"}  # of which FFmpeg's own vp9 drops alpha


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Odd sides, frames at uneven times, a tone in all of it."""
    return write_film(
        tmp_path / "film.mkv", size=(97, 63), sound=tone(2, (0, 1)),
        times_ms=[0, 40, 180, 700, 1100, 1460],
    )  # fmt: skip


def rgba_of(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Every frame uint8 (H,W,4) and its time, by a decoder that reads transparency."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder: Any = av.CodecContext.create(DECODERS[path.suffix], "r")
        decoder.width, decoder.height = stream.width, stream.height
        decoder.extradata = stream.codec_context.extradata
        found = [
            frame
            for p in container.demux(stream)
            for frame in decoder.decode(p if p.size else None)
        ]
        times = [float(frame.pts * stream.time_base) for frame in found]
        return [frame.to_ndarray(format="rgba") for frame in found], times


@pytest.mark.parametrize("suffix", list(DECODERS))
def test_a_matte_lies_over_the_original(film: Path, tmp_path: Path, suffix: str) -> None:
    matte = tmp_path / f"matte{suffix}"
    run(film, matte=matte, masks=tmp_path / "m")
    shown, times = rgba_of(matte)
    masks, (pictures, source_times) = masks_in(tmp_path / "m"), frames_of(film)
    assert len(shown) == len(masks) == 6 and any(mask.any() for mask in masks)
    assert times == pytest.approx([float(t - source_times[0]) for t in source_times], abs=1e-3)
    for rgba, mask, picture in zip(shown, masks, pictures, strict=True):
        assert rgba.shape == (63, 97, 4)
        off = np.abs(rgba[..., 3].astype(int) - 255 * mask).max()
        assert off == 0 if suffix == ".mov" else off < 64
        np.testing.assert_array_equal(rgba[..., 3] > 127, mask)
        assert np.abs(rgba[..., :3].astype(int) - picture)[mask].mean() < 6
    assert not np.array_equal(shown[0][..., 3] > 127, masks[-1])  # twin: masks differ by frame


def test_an_encoder_that_is_missing(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one that works is named; without any, PyAV is."""
    there = formats._opens
    monkeypatch.setattr(
        formats, "_opens", lambda name, kind: name != "prores_ks" and there(name, kind)
    )
    with pytest.raises(
        BackendError, match=r"no prores_ks(.|\n)*\.webm, which works here"
    ) as caught:
        run(film, matte=tmp_path / "m.mov")
    assert caught.value.exit_code == 3
    monkeypatch.setattr(formats, "_opens", lambda name, kind: False)
    with pytest.raises(BackendError, match="pip install --upgrade av"):
        run(film, matte=tmp_path / "m.mov")
    with pytest.raises(DataError, match="can be transparent"):
        run(film, matte=tmp_path / "m.mp4")
    assert left_in(tmp_path) == {"film.mkv"}


def test_masks_in_the_record(film: Path, tmp_path: Path) -> None:
    """Run lengths through pycocotools, outlines through Pillow: both are the PNGs again."""
    coco = pytest.importorskip("pycocotools.mask")
    for form in ("rle", "polygons"):
        run(film, masks=tmp_path / form, record=tmp_path / f"{form}.json", record_masks=form)
        seconds = json.loads((tmp_path / f"{form}.json").read_text())["seconds"]
        frames = [frame for second in seconds for frame in second["frames"]]
        masks = masks_in(tmp_path / form)
        assert len(frames) == len(masks) == 6
        for frame, mask in zip(frames, masks, strict=True):
            if form == "rle":
                found = coco.decode(coco.frPyObjects(frame["rle"], *mask.shape))
            else:
                image = Image.new("1", mask.shape[::-1])
                for ring in frame["polygons"]:
                    left, top = np.min(ring, axis=0)  # a rectangle: right and bottom lie outside
                    right, bottom = np.max(ring, axis=0)
                    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=1)
                found = np.asarray(image)
            if form == "rle" or _is_box(mask):
                np.testing.assert_array_equal(np.asarray(found) > 0, mask)
    run(film, record=tmp_path / "plain.json")
    assert "rle" not in (tmp_path / "plain.json").read_text()


def _is_box(mask: np.ndarray) -> bool:
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    return int(mask.sum()) == int(rows.sum() * columns.sum())


def test_words_of_record_masks(film: Path, tmp_path: Path) -> None:
    done = command("run", tmp_path, film, "--json", tmp_path / "o", "--json-masks", "png")
    assert done.returncode == 1 and "rle or polygons" in done.stderr
    done = command("run", tmp_path, film, "--masks", tmp_path / "o", "--json-masks", "rle")
    assert done.returncode == 1 and "--json as well" in done.stderr


def test_show_without_a_display(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tkinter")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(BackendError, match="no display") as caught:
        run(film, out=tmp_path / "o.mp4", show=True)
    assert caught.value.exit_code == 3 and left_in(tmp_path) == {"film.mkv"}


def test_show(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window gets every frame until it is closed; the film is masked to its end all the same."""
    shown: list[int] = []

    class Screen(window.Window):
        def __init__(self, title: str, color: Any) -> None:
            self._open = True

        def is_open(self) -> bool:
            return self._open

        def _draw(self, picture: np.ndarray) -> None:
            shown.append(picture.shape[1])
            self._open = len(shown) < 4

        def close(self) -> None:
            shown.append(-1)

        color = (255, 60, 170)

    monkeypatch.setattr("save_deploy.runtime.video.run.Window", Screen)
    monkeypatch.setattr("save_deploy.runtime.video.run.check_display", lambda: None)
    result = run(film, show=True)
    assert result.frames == 6 and shown == [97] * 4 + [-1]
