"""What a pipeline takes for a frame, a sound, an embedding; what it refuses, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from save_deploy.bundle import TensorSpec
from save_deploy.data.pictures import read_frame
from save_deploy.errors import BackendError, BundleError, DataError, ParityError
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.inputs import as_frame
from save_deploy.runtime.pipeline import Listener, SavePipeline, load
from save_deploy.runtime.stream import stream
from tests.conftest import make_tiny

SIDE = 64
rng = np.random.default_rng(0)
FRAME = rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)
SOUND = (0.2 * np.sin(np.arange(16_000))).astype(np.float32)


@pytest.fixture(scope="module")
def segment() -> SavePipeline:
    return eager_pipeline(make_tiny())


@pytest.fixture(scope="module")
def expected(segment: SavePipeline) -> np.ndarray:
    """A mask that depends on its frame and on its sound."""
    found = segment.logits(FRAME, segment.embed(SOUND))
    assert not np.array_equal(found, segment.logits(FRAME[::-1], segment.embed(SOUND)))
    assert not np.array_equal(found, segment.logits(FRAME, segment.embed(SOUND / 2)))
    return found


def wide(frame: np.ndarray) -> np.ndarray:
    """The same pixels, every second one of a larger array, from right to left."""
    large = np.zeros((frame.shape[0] * 2, frame.shape[1] * 2, 3), np.uint8)
    large[::2, ::2] = frame[:, ::-1]
    return large[::2, ::2][:, ::-1]


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


FRAMES: dict[str, Callable[[], Any]] = {
    "strided": lambda: wide(FRAME),
    "Fortran order": lambda: np.asfortranarray(FRAME),
    "read-only": lambda: read_only(FRAME),
    "tensor": lambda: torch.from_numpy(FRAME),
    "tensor of another layout": lambda: torch.from_numpy(FRAME.transpose(2, 0, 1).copy()).permute(
        1, 2, 0
    ),
    "Pillow": lambda: Image.fromarray(FRAME),
    "Pillow with alpha": lambda: Image.fromarray(FRAME).convert("RGBA"),
    "rows of arrays": lambda: list(FRAME),
}
SOUNDS: dict[str, Callable[[], Any]] = {
    "list": lambda: SOUND.tolist(),
    "tuple": lambda: tuple(SOUND.tolist()),
    "float64": lambda: SOUND.astype(np.float64),
    "big-endian": lambda: SOUND.astype(">f4"),
    "tensor": lambda: torch.from_numpy(SOUND),
    "strided": lambda: np.repeat(SOUND, 2)[::2],
    "one channel first": lambda: torch.from_numpy(SOUND)[None],
    "one channel last": lambda: SOUND[:, None],
    "longer": lambda: np.concatenate([SOUND, SOUND + np.float32(np.nan)]),  # not heard
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_are_taken(segment: SavePipeline, expected: np.ndarray, name: str) -> None:
    frame = FRAMES[name]()
    found = segment.logits(frame, segment.embed(SOUND))
    np.testing.assert_array_equal(found, expected)
    assert segment(frame, SOUND).shape == FRAME.shape[:2]
    np.testing.assert_array_equal(segment.clip_logits([frame], SOUND)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_that_are_taken(segment: SavePipeline, name: str) -> None:
    sound, heard = SOUNDS[name](), segment.embed(SOUND)
    np.testing.assert_array_equal(segment.embed(sound), heard)
    mask = segment.mask(FRAME, heard)
    np.testing.assert_array_equal(segment(FRAME, sound), mask)
    if name != "tuple":
        np.testing.assert_array_equal(Listener(segment, sound)(FRAME, 0.3), mask)


def with_one(value: float) -> np.ndarray:
    sound = SOUND.astype(np.float64)
    sound[500] = value
    return sound


WRONG_SOUNDS: dict[str, tuple[Any, str]] = {
    "NaN": (with_one(np.nan), "NaN or infinite samples"),
    "infinity": (with_one(-np.inf), "NaN or infinite samples"),
    "overflow": (with_one(1e300), "NaN or infinite samples"),
    "overflow in the graph": (with_one(1e38), r"far too loud(.|\n)*1e\+38(.|\n)*\[-1,1\]"),
    "undivided": (np.rint(SOUND * 32767), r"far too loud(.|\n)*divide samples of 16 bits by 32768"),
    "int16": ((SOUND * 32767).astype(np.int16), r"int16 \(16000,\)(.|\n)*sound / 32768"),
    "bytes of 8 bits": (np.full(16_000, 128, np.uint8), r"uint8(.|\n)*float \(n,\)"),
    "bool": (SOUND > 0, "bool"),
    "complex": (SOUND.astype(np.complex64), "complex64"),
    "stereo": (np.stack([SOUND] * 2, axis=1), r"\(16000, 2\)(.|\n)*rate=16000(.|\n)*2 channels"),
    "stereo first": (torch.from_numpy(np.stack([SOUND] * 2)), r"mean\(axis=0\)"),
    "a batch": (SOUND[None, None], r"float32 \(1, 1, 16000\)"),
    "a number": (0.5, r"float64 \(\)"),
    "None": (None, "NoneType"),
    "a path": (Path("sound.wav"), r"not found(.|\n)*sound\.wav"),
    "a whisper of integers": (
        np.rint(SOUND * 12),
        r"whole numbers(.|\n)*divide samples of 16 bits",
    ),
    "bytes": (b"RIFF", "RIFF"),
    "unequal rows": ([[0.1, 0.2], [0.3]], "inhomogeneous"),
    "objects": ([None, 0.1], "list"),
    "a tensor with a gradient": (torch.zeros(9, requires_grad=True), r"detach\(\)"),
    "masked": (np.ma.masked_array(SOUND, SOUND > 0), r"masked array(.|\n)*filled\(0\)"),
    "empty": (SOUND[:0], r"without samples(.|\n)*0 samples"),
    "an empty list": ([], "without samples"),
}


@pytest.mark.parametrize("name", WRONG_SOUNDS)
def test_sounds_that_are_refused(segment: SavePipeline, name: str) -> None:
    """By every entry alike; a listener takes what has no samples for silence."""
    sound, text = WRONG_SOUNDS[name]
    with pytest.raises(DataError, match=text):
        segment.embed(sound)
    with pytest.raises(DataError, match=text):
        segment(FRAME, sound)
    with pytest.raises(DataError, match=text):
        segment.clip_logits([FRAME], sound)
    if "empty" not in name:
        with pytest.raises(DataError, match=text):
            Listener(segment, lambda _: sound)(FRAME, 0.0)
        with pytest.raises(DataError, match=text):
            Listener(segment, iter([sound]))(FRAME, 0.0)
        if name != "unequal rows":  # which are seconds of unequal length
            with pytest.raises(DataError):
                Listener(segment, sound)(FRAME, 0.0)


def test_loud_floats_are_sound(segment: SavePipeline) -> None:
    """Files of floats may go over 1: 12 dB are heard, and not as at 0 dB."""
    loud = segment.embed(SOUND * 20)
    assert np.isfinite(loud).all() and not np.array_equal(loud, segment.embed(SOUND))


WRONG_FRAMES: dict[str, tuple[Any, str]] = {
    "masked": (np.ma.masked_array(FRAME, FRAME > 9), r"masked array(.|\n)*filled\(0\)"),
    "wide": (np.broadcast_to(np.uint8(1), (1, 65_536, 3)), "65536 x 1(.|\n)*65535 pixels a side"),
    # no memory of its own: one value, shown everywhere
    "endless": (np.broadcast_to(np.uint8(1), (60_000, 60_000, 3)), "60000 x 60000"),
    "empty": (FRAME[:0], r"uint8 \(0, 80, 3\)"),
    "no width": (FRAME[:, :0], r"uint8 \(48, 0, 3\)"),
    "floats": ((FRAME / 255).astype(np.float32), r"float32 \(48, 80, 3\)(.|\n)*255 \* frame"),
    "16 bits": (FRAME.astype(np.uint16), "uint16"),
    "integers": (FRAME.tolist(), "int64"),
    "gray": (FRAME[..., 0], r"\(48, 80\)(.|\n)*np.stack"),
    "alpha": (np.dstack([FRAME, FRAME[..., 0]]), r"\(48, 80, 4\)(.|\n)*\[\.\.\., :3\]"),
    "channels first": (torch.from_numpy(FRAME.transpose(2, 0, 1)), r"transpose\(1, 2, 0\)"),
    "a batch": (FRAME[None], r"uint8 \(1, 48, 80, 3\)"),
    "None": (None, "NoneType"),
    "a name": ("frame.png", r"not found(.|\n)*frame\.png"),
    "Pillow, 32 bits": (Image.fromarray(np.zeros((4, 4), np.int32)), "mode I\n"),
    "Pillow, floats": (Image.fromarray(np.zeros((4, 4), np.float32)), "mode F"),
    "Pillow, print colors": (Image.fromarray(FRAME).convert("CMYK"), "mode CMYK"),
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_frames_that_are_refused(segment: SavePipeline, name: str) -> None:
    frame, text = WRONG_FRAMES[name]
    heard = segment.embed(SOUND)
    calls: list[Callable[[], Any]] = [
        lambda: segment(frame, SOUND),
        lambda: segment.logits(frame, heard),
        lambda: segment.mask(frame, heard),
        lambda: segment.clip_logits([FRAME, frame], SOUND),
        lambda: Listener(segment, SOUND)(frame, 0.0),
        lambda: next(stream(segment, [frame], SOUND, frames_per_s=1)),
    ]
    for call in calls:
        with pytest.raises(DataError, match=text):
            call()


@pytest.mark.slow
def test_pictures_of_pillow_are_those_of_files(segment: SavePipeline, tmp_path: Path) -> None:
    """In every mode, and a palette with transparent colors without a warning."""
    palette = Image.fromarray(FRAME).quantize(16)
    palette.info["transparency"] = bytes(range(16))
    deep = Image.fromarray((FRAME[..., 0].astype(np.uint16) << 8) + 77)
    others = [Image.fromarray(FRAME).convert(mode) for mode in ("1", "L", "LA", "RGBA")]
    for i, picture in enumerate([palette, deep, *others]):
        picture.save(tmp_path / f"{i}.png")
        of_file = segment(read_frame(tmp_path / f"{i}.png"), SOUND)
        np.testing.assert_array_equal(segment(picture, SOUND), of_file)  # type: ignore[arg-type]
    np.testing.assert_array_equal(as_frame(deep), np.stack([FRAME[..., 0]] * 3, axis=-1))
    assert "transparency" in palette.info, "the caller's picture stays as it is"


def test_a_picture_that_is_cut_off_is_refused(segment: SavePipeline, tmp_path: Path) -> None:
    """Pillow reads its pixels only now."""
    Image.fromarray(FRAME).save(tmp_path / "frame.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "frame.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(DataError, match="wrong frame"):
        segment(cut, SOUND)


@pytest.mark.parametrize("frames", [[], (), None, 5, np.zeros((0, 48, 80, 3), np.uint8)])
def test_clips_without_frames(segment: SavePipeline, frames: Any) -> None:
    with pytest.raises(DataError, match="no frames"):
        segment.clip_logits(frames, SOUND)


def test_a_clip_is_an_array_or_frames_one_by_one(segment: SavePipeline) -> None:
    frames = [FRAME, FRAME[::-1].copy()]
    expected = segment.clip_logits(frames, SOUND)
    np.testing.assert_array_equal(segment.clip_logits(np.stack(frames), SOUND), expected)
    np.testing.assert_array_equal(segment.clip_logits(iter(frames), SOUND), expected)  # type: ignore[arg-type]


IMAGES = rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
HEARD = np.abs(rng.normal(size=(2, 128))).astype(np.float32)


def test_images_and_embeddings_for_run(segment: SavePipeline) -> None:
    found = segment.run(IMAGES, HEARD)
    assert found.shape == (2, SIDE, SIDE)
    for images, heard in ((torch.from_numpy(IMAGES), HEARD.tolist()), (IMAGES, HEARD.astype("f8"))):
        np.testing.assert_array_equal(segment.run(images, heard), found)  # type: ignore[arg-type]
    spoiled = HEARD.copy()
    spoiled[1, 5] = np.nan
    wrong: list[tuple[Any, Any, str]] = [
        (IMAGES, spoiled, "audio embedding contains NaN"),
        (IMAGES, np.where(HEARD > 1, np.inf, HEARD), "audio embedding contains NaN or infinity"),
        (IMAGES, HEARD.astype("f8") * 1e300, "NaN or infinity"),
        (IMAGES, HEARD[:1], r"float32 \(1, 128\)(.|\n)*\(2,128\)"),
        (IMAGES, HEARD[0], r"float32 \(128,\)"),
        (IMAGES, HEARD.astype(int), "int64"),
        (IMAGES, None, "NoneType"),
        (IMAGES[:0], HEARD[:0], r"uint8 \(0, 64, 64, 3\)"),
        (IMAGES / 255, HEARD, "float64"),
        (IMAGES[:, :32], HEARD, r"\(2, 32, 64, 3\)(.|\n)*\(F,64,64,3\)"),
        (IMAGES[0], HEARD, r"\(64, 64, 3\)"),
        (None, HEARD, "NoneType"),
    ]
    for images, heard, text in wrong:
        with pytest.raises(DataError, match=text):
            segment.run(images, heard)
    for heard in (spoiled[1:], HEARD, None):
        with pytest.raises(DataError, match="embedding"):
            segment.mask(FRAME, heard)


class _Broken:
    """A backend that overflows."""

    backend, spec = "broken", SimpleNamespace(inputs=[TensorSpec("image", "uint8", (1,), "")])

    def infer(self, _: Any) -> Any:
        return {"mask_logits": np.full((1, 1, SIDE, SIDE), np.nan, np.float32)}


def test_no_mask_of_logits_that_are_not_finite(segment: SavePipeline) -> None:
    """NaN is not above 0: it would be a mask in which nothing sounds."""
    broken = SavePipeline(
        config=segment.config, precision="fp16", audio=segment.audio, model=_Broken()  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(ParityError, match="NaN or infinite logits"):
        broken(FRAME, SOUND)


@pytest.mark.slow
def test_listeners_refuse_a_bad_second_until_it_is_over(segment: SavePipeline) -> None:
    """A frame after the error does not hear the second before."""
    seconds = [SOUND, with_one(np.nan), SOUND / 2]
    listener = Listener(segment, np.concatenate(seconds))
    listener(FRAME, 0.9)
    for time_s in (1.0, 1.5):
        with pytest.raises(DataError, match="NaN"):
            listener(FRAME, time_s)
    np.testing.assert_array_equal(listener(FRAME, 2.0), segment(FRAME, SOUND / 2))
    silent = segment(FRAME, np.zeros(9, np.float32))
    for source in (SOUND, [SOUND], [], SOUND[:0], lambda _: SOUND[:0]):
        np.testing.assert_array_equal(Listener(segment, source)(FRAME, 3.0), silent)  # type: ignore[arg-type]
    for wrong in (None, 5, "sound.wav", object(), {}, {0: SOUND}, {1.0}, b"", b"12"):
        with pytest.raises(DataError, match=r"wrong sound|not found"):
            Listener(segment, wrong)(FRAME, 0.0)  # type: ignore[arg-type]
    for time_s in (None, "soon", 10**400, [1.0], complex(1, 0)):
        with pytest.raises(DataError, match="wrong time of a frame"):
            Listener(segment, SOUND)(FRAME, time_s)  # type: ignore[arg-type]


def test_streams_need_times(segment: SavePipeline) -> None:
    for bare in (FRAME, Image.fromarray(FRAME), (FRAME,), None):
        with pytest.raises(DataError, match=r"without a time(.|\n)*frames_per_s"):
            next(stream(segment, [bare], SOUND))
    for rate in (0, -1, float("nan"), float("inf"), "fast"):
        with pytest.raises(DataError, match="wrong frame rate"):
            next(stream(segment, [FRAME], SOUND, frames_per_s=rate))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_answer_alike(bundle_fp32: Path, backend: str) -> None:
    """In sessions of their own NaN gives a mask or none, depending on the library."""
    with load(str(bundle_fp32), backend=backend) as segment:
        heard = segment.embed(SOUND)
        for sound in (with_one(np.nan), with_one(np.inf), with_one(1e38), SOUND * 32767):
            with pytest.raises(DataError, match=r"sound (contains|is far)"):
                segment(FRAME, sound)
        with pytest.raises(DataError, match="embedding contains"):
            segment.mask(FRAME, heard * np.float32(np.nan))
        with pytest.raises(DataError, match=r"wrong input waveform(.|\n)*list"):
            segment.audio.infer({"waveform": SOUND.tolist()})  # type: ignore[dict-item]
        mask = segment(Image.fromarray(FRAME), SOUND.tolist())  # type: ignore[arg-type]
        np.testing.assert_array_equal(mask, segment.mask(wide(FRAME), heard))


@pytest.mark.parametrize(
    "bundle", [None, 5, b"bundle", "", "a\0b", ["bundle"], object(), "x" * 5000, Path("no/such")]
)
def test_load_of_what_is_no_folder(bundle: Any) -> None:
    with pytest.raises(BundleError, match=r"wrong bundle|not a bundle"):
        load(bundle)


def test_load_with_wrong_options(bundle_fp32: Path) -> None:
    for threads in (0, -1, 5000, 1.5, "two"):
        with pytest.raises(DataError, match="wrong number of threads"):
            load(bundle_fp32, threads=threads)  # type: ignore[arg-type]
    for streams in (0, -1, 10**9, 1.5, "two", None, True):
        with pytest.raises(DataError, match="wrong number of streams"):
            load(bundle_fp32, streams=streams)  # type: ignore[arg-type]
    for backend in (None, 5, "cuda"):
        with pytest.raises(BackendError, match="unknown backend"):
            load(bundle_fp32, backend=backend)  # type: ignore[arg-type]
