"""Marks drawn on planes: those drawn on RGB, for every kind of video."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from save_deploy.data.video import AS_STORED, Orientation
from save_deploy.runtime.video import overlay, planes, writer
from save_deploy.runtime.video.source import TimedFrame
from tests.runtime.films import run, tone, write_film

COLOR = (255, 60, 170)


def scene(size: tuple[int, int]) -> np.ndarray:
    """A smooth colored picture uint8 (H,W,3), size (W,H)."""
    y, x = np.mgrid[: size[1], : size[0]]
    channels = (40 + 150 * x / size[0], 60 + 120 * y / size[1], 180 - 90 * x / size[0])
    return np.stack(channels, -1).astype(np.uint8)


def disc(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return np.hypot(y - size[1] * 0.4, x - size[0] * 0.7) < size[1] / 3


def decoded(
    pixels: str, size: tuple[int, int], space: int = 2, span: int = 1, turn: Orientation = AS_STORED
) -> TimedFrame:
    """The scene as a decoder gives it: in a pixel format, color matrix and range."""
    frame = av.VideoFrame.from_ndarray(scene(size), "rgb24").reformat(
        format=pixels, dst_colorspace="ITU709" if space == 1 else "ITU601",
        dst_color_range="JPEG" if span == 2 else "MPEG",
    )  # fmt: skip
    frame.colorspace, frame.color_range = space, span
    return TimedFrame(frame, 0, 0, 0.0, turn)


def rgb(frame: Any) -> np.ndarray:
    return np.asarray(frame.to_ndarray(format="rgb24")).astype(int)


KINDS = (  # pixel format, color matrix, range
    ("yuv420p", 2, 1), ("yuv420p", 1, 1), ("yuv422p", 1, 1), ("yuv444p", 6, 1), ("nv12", 1, 1),
    ("yuv420p10le", 5, 1), ("p010le", 2, 1), ("yuv420p", 5, 2), ("yuvj420p", 1, 2), ("yuva420p", 2, 1),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [(160, 120), (97, 63)])
def test_planes_against_rgb(kind: tuple[str, int, int], size: tuple[int, int]) -> None:
    """Against drawing on RGB and conversion to 4:2:0, the former way: within 3 of 255 on average, and
    within 8 but along edges, where converters place the samples of color differently."""
    frame, mask = decoded(kind[0], size, *kind[1:]), disc(size)
    even = (size[1] + size[1] % 2, size[0] + size[0] % 2)

    def shown(mask: np.ndarray) -> np.ndarray:
        canvas = planes.canvas_of(frame, even)
        assert canvas is not None and canvas.format.name == "yuv420p"
        planes.Brush(COLOR, bt709=kind[1] == 1).draw(canvas, mask)
        canvas.colorspace, canvas.color_range = 1 if kind[1] == 1 else 6, 1
        return rgb(canvas)[: size[1], : size[0]]

    stream: Any = SimpleNamespace(
        height=even[0], width=even[1], pix_fmt="yuv420p",
        codec_context=SimpleNamespace(colorspace=kind[1]),
    )  # fmt: skip
    former = writer.encodable(overlay.outlined(frame.picture, mask, COLOR), stream)
    expected = rgb(former)[: size[1], : size[0]]
    off = np.abs(shown(mask) - expected)
    inner, far = overlay._Packed(mask).shrunk(4), ~overlay._Packed(mask).grown(4)
    assert off.mean() < 3 and inner.sum() > 300
    assert max(off[inner].max(), off[far].max()) <= 8
    plain = np.abs(shown(np.zeros_like(mask)) - expected)
    assert plain[inner].mean() > 20 and plain[far].max() <= 8, "twin: without marks it differs"


def test_only_the_box_changes() -> None:
    frame = decoded("yuv420p", (160, 120))
    before, after = (planes.canvas_of(frame, (120, 160)) for _ in range(2))
    mask = np.zeros((120, 160), bool)
    mask[41:60, 51:90] = True
    planes.Brush(COLOR, bt709=False).draw(after, mask)
    for k, (one, other) in enumerate(zip(before.planes, after.planes, strict=True)):
        changed = planes._array(one) != planes._array(other)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        scale = 1 if k == 0 else 2
        assert 38 // scale <= rows[0] and rows[-1] <= 63 // scale
        assert 48 // scale <= columns[0] and columns[-1] <= 93 // scale
    source = np.frombuffer(frame.shown.planes[0], np.uint8)
    assert source.size and not np.shares_memory(source, planes._array(after.planes[0]))
    planes.Brush(COLOR, bt709=False).draw(before, np.zeros((120, 160), bool))


def test_frames_that_go_through_rgb() -> None:
    """No planes of their own, another matrix, another size than the film's, turned with odd sizes."""
    size, turned = (160, 120), Orientation(True, False, True)
    for frame in (
        TimedFrame(scene(size), 0, 0, 0.0), decoded("bgr0", size), decoded("gray", size),
        decoded("yuv420p", size, space=9), decoded("yuv420p", (80, 60)),
        decoded("yuv420p", (119, 159), turn=turned),
    ):  # fmt: skip
        assert planes.canvas_of(frame, (120, 160)) is None
    for frame in (decoded("yuv420p", size), decoded("yuv420p", (120, 160), turn=turned)):
        assert planes.canvas_of(frame, (120, 160)) is not None, "twin"


@pytest.mark.parametrize("turn", [Orientation(*map(bool, k)) for k in np.ndindex(2, 2, 2)])
def test_turned_frames(turn: Orientation) -> None:
    """The planes are turned as the picture is."""
    frame = decoded("yuv420p", (160, 120), turn=turn)
    assert frame.size == frame.picture.shape[:2] == ((160, 120) if turn[0] else (120, 160))
    canvas = planes.canvas_of(frame, frame.size)
    assert np.abs(rgb(canvas) - frame.picture).mean() < 2
    assert np.abs(rgb(canvas)[::-1] - frame.picture).mean() > 10, "twin"


def test_films_are_drawn_on_planes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: no frame of an ordinary film goes through RGB, every one of an RGB film does."""
    through: list[int] = []
    plain = writer.encodable
    monkeypatch.setattr(writer, "encodable", lambda *args: through.append(1) or plain(*args))
    film = write_film(tmp_path / "f.mp4", sound=tone(3, (1,)))
    assert run(film, out=tmp_path / "o.mp4").frames == 30 and not through
    other = write_film(tmp_path / "h.mkv", sound=tone(3, (1,)), codec="ffv1", pixels="bgr0")
    assert run(other, out=tmp_path / "p.mp4").frames == len(through) == 30


def test_marks_against_shifts() -> None:
    """Outlines by words of 64 pixels are those of a shift for every pixel within reach."""
    rng = np.random.default_rng(0)
    for size in ((30, 40), (70, 130), (64, 64), (5, 200)):
        mask = np.kron(rng.random((size[0] // 5, size[1] // 5)) > 0.7, np.ones((5, 5))) > 0
        for n in (1, 2, 3, 5, 9):
            wide = np.pad(mask, n)
            views = np.lib.stride_tricks.sliding_window_view(wide, (2 * n + 1, 2 * n + 1))
            packed = overlay._Packed(mask)
            np.testing.assert_array_equal(packed.grown(n), views.any((-1, -2)))
            holes = np.lib.stride_tricks.sliding_window_view(
                np.pad(mask, n, constant_values=True), (2 * n + 1, 2 * n + 1)
            )
            np.testing.assert_array_equal(packed.shrunk(n), holes.all((-1, -2)))
            assert n > 1 or not np.array_equal(packed.grown(1), packed.grown(2)), "twin"
