"""Films as people have them: many channels, lost sound, tracks, covers, odd names and clocks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from PIL import Image

from save_deploy.data import film
from save_deploy.data.audio import Waveform
from save_deploy.data.video import (
    read_video_frames,
    read_video_sound,
    read_video_stretch,
    video_seconds,
)
from save_deploy.errors import DataError
from save_deploy.runtime.video.options import Section
from save_deploy.runtime.video.source import VideoSource
from tests.runtime import films

RATE = 16_000
PACKET = 800  # samples: 50 ms


@dataclass
class Track:
    """samples float32 (n,channels). lost(time) says which packets are left out, shift(time) how many
    seconds later they are said to be."""

    samples: np.ndarray
    codec: str = "pcm_s16le"
    layout: str = "mono"
    default: bool = True
    lost: Callable[[float], bool] = lambda at: False
    shift: Callable[[float], float] = lambda at: 0.0


def write_film(
    path: Path,
    tracks: Sequence[Track] = (),
    *,
    seconds: float = 1,
    fps: int = 10,
    shift: Callable[[float], float] = lambda at: 0.0,
) -> Path:
    """Frame k has grey level 10 k; one key frame, so that a reader who seeks lands at the start."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.gop_size = 600
        video.codec_context.time_base = Fraction(1, 1000)
        streams: list[Any] = []
        for track in tracks:
            streams.append(container.add_stream(track.codec, rate=RATE, layout=track.layout))
            streams[-1].disposition = Disposition.default if track.default else 0
        for k in range(round(seconds * fps)):
            level = np.full((48, 64, 3), min(10 * k, 250), np.uint8)
            frame = av.VideoFrame.from_ndarray(level, "rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round((k / fps + shift(k / fps)) * 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for track, stream in zip(tracks, streams, strict=True):
            for at in range(0, len(track.samples), PACKET):
                if not track.lost(at / RATE):
                    piece = track.samples[at : at + PACKET]
                    sound = av.AudioFrame.from_ndarray(piece.reshape(1, -1), "flt", track.layout)
                    sound.rate, sound.time_base = RATE, Fraction(1, RATE)
                    sound.pts = at + round(track.shift(at / RATE) * RATE)
                    container.mux(stream.encode(sound))
            container.mux(stream.encode(None))
    return path


def tone(seconds: float, loud: tuple[float, float] = (0, 99), level: float = 0.5) -> np.ndarray:
    """float32 (n,1): 1 kHz between two times, silence elsewhere."""
    t = np.arange(round(seconds * RATE)) / RATE
    heard = (t >= loud[0]) & (t < loud[1])
    return (level * np.sin(2 * np.pi * 1000 * t) * heard).astype(np.float32)[:, None]


def begins_s(sound: Waveform) -> float:
    """Where it first is loud."""
    return int(np.argmax(np.abs(sound) > 0.1)) / RATE


def loudness(sound: Waveform) -> float:
    return float(np.sqrt(np.mean(np.square(sound))))


def heard_by_run(path: Path, start_s: float = 0.0) -> Waveform:
    return np.concatenate(list(VideoSource(path, Section(start_s)).sound_seconds()))


# Of the first channel in FFmpeg's mix to mono (test_downmix.py compares all of them); the layout of 16
# channels is lost in this container, so they are averaged.
LEFT = {"5.1": 0.2071, "7.1": 0.1602, "hexadecagonal": 1 / 16}


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac", "flac"])
@pytest.mark.parametrize("layout", LEFT)
def test_many_channels_are_mixed(tmp_path: Path, codec: str, layout: str) -> None:
    """Also where a codec keeps each channel in a plane of its own: with eight or more of them av reads
    one too many."""
    n = av.AudioLayout(layout).nb_channels
    if codec != "pcm_s16le" and n > 8:
        pytest.skip("no such files")
    samples = np.zeros((RATE, n), np.float32)
    samples[:, :1] = tone(1)
    path = write_film(tmp_path / "f.mkv", [Track(samples, codec, layout)])
    for sound in (read_video_sound(path), heard_by_run(path)):
        expected = 0.5 * LEFT[layout] / np.sqrt(2)
        assert loudness(sound[2000:14_000]) == pytest.approx(expected, rel=0.03)
    films.run(path, out=tmp_path / "o.mp4", masks=tmp_path / "m")
    assert len(films.masks_in(tmp_path / "m")) == 10


@pytest.mark.parametrize("n", [9, 33, 65])
def test_channels_without_a_layout(tmp_path: Path, n: int) -> None:
    """As in a WAV file of a microphone array: heard, and written as one channel."""
    samples = np.repeat(tone(1), n, axis=1)
    samples[:, 1:] = 0
    wav = BytesIO()
    soundfile.write(wav, samples, RATE, format="WAV")
    wav.seek(0)
    path = write_film(tmp_path / "f.mkv")
    with (
        av.open(str(path)) as pictures,
        av.open(wav) as sound,
        av.open(str(tmp_path / "g.mkv"), "w") as out,
    ):
        tracks: list[Any] = [pictures.streams.video[0], sound.streams.audio[0]]
        streams = [out.add_stream_from_template(given) for given in tracks]
        for given, stream in zip(tracks, streams, strict=True):
            for packet in given.container.demux(given):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    if n > 64:
        with pytest.raises(DataError, match=r"number of channels(.|\n)*65(.|\n)*1 to 64"):
            read_video_sound(tmp_path / "g.mkv")
        return
    films.run(tmp_path / "g.mkv", out=tmp_path / "o.mp4")
    for name in ("g.mkv", "o.mp4"):
        heard = read_video_sound(tmp_path / name)[2000:14_000]
        assert loudness(heard) == pytest.approx(0.5 / n / np.sqrt(2), rel=0.05)


def test_a_gap_is_silence_for_every_reader(tmp_path: Path) -> None:
    """A burst 3 s after the start is heard there, whether the film is read from the start, from within
    the gap or from behind it."""
    sound = tone(4, (3, 3.1))
    path = write_film(tmp_path / "g.mkv", [Track(sound, lost=lambda t: 1 <= t < 2)], seconds=4)
    assert read_video_sound(path).size == pytest.approx(4 * RATE, abs=16)
    assert begins_s(read_video_sound(path)) == pytest.approx(3, abs=0.002)
    for start_s in (0, 0.5, 1.5, 2.5):
        _, stretch = read_video_stretch(path, start_s, 3.5 - start_s, [0.0])
        for heard in (heard_by_run(path, start_s), stretch):
            assert begins_s(heard) == pytest.approx(3 - start_s, abs=0.002), start_s


@pytest.mark.parametrize(
    ("lost", "shift"),
    [
        (lambda t: round(t * 20) % 4 == 3, lambda t: 0.0),  # one packet of 50 ms in four
        (lambda t: False, lambda t: 0.05 * t),  # stored times run faster than the samples
        (lambda t: False, lambda t: -0.05 * t),  # and slower
    ],
)
def test_small_differences_do_not_add_up(tmp_path: Path, lost: Any, shift: Any) -> None:
    """The burst is where its time says, within a gap that is passed over."""
    sound = tone(4, (3, 3.2))
    path = write_film(tmp_path / "d.mkv", [Track(sound, lost=lost, shift=shift)], seconds=4)
    for heard in (read_video_sound(path), heard_by_run(path)):
        assert begins_s(heard) == pytest.approx(3 + shift(3), abs=0.056)


def test_packets_with_nan_are_left_out(tmp_path: Path) -> None:
    """One of 60: silence in its place and counted; a dataset's clip with it is refused."""
    sound = tone(3, (2, 2.1))
    sound[15 * PACKET + 100] = np.nan
    path = write_film(tmp_path / "f.mkv", [Track(sound, "pcm_f32le")], seconds=3)
    result = films.run(path, masks=tmp_path / "m")
    assert "sound: 1 of 60 packets are corrupt and skipped" in result.notes
    heard = heard_by_run(path)
    assert np.isfinite(heard).all() and begins_s(heard) == pytest.approx(2, abs=0.002)
    assert heard.size == 3 * RATE and not heard[15 * PACKET : 16 * PACKET].any()
    for read in (read_video_sound, lambda p: read_video_stretch(p, 0, 2, [0.0])):
        with pytest.raises(DataError, match="NaN"):
            read(path)


def undecodable(path: Path, which: int) -> None:
    """The sound track gets the name of a codec that does not exist."""
    parts = path.read_bytes().split(b"A_FLAC")
    names = [b"A_FLAC"] * (len(parts) - 1)
    names[which] = b"A_NONE"
    path.write_bytes(b"".join(p + n for p, n in zip(parts, [*names, b""], strict=True)))


def test_the_default_track_is_heard_or_the_first_that_can_be(tmp_path: Path) -> None:
    quiet, loud = tone(1, level=0.1), tone(1, level=0.5)
    for marked in (0, 1):
        tracks = [
            Track(samples, "flac", default=k == marked) for k, samples in enumerate((quiet, loud))
        ]
        path = write_film(tmp_path / f"{marked}.mkv", tracks)
        level = (0.1, 0.5)[marked]
        for sound in (read_video_sound(path), heard_by_run(path)):
            assert loudness(sound) == pytest.approx(level / np.sqrt(2), rel=0.02)
        films.run(path, out=tmp_path / f"o{marked}.mkv")  # and copied
        copied = read_video_sound(tmp_path / f"o{marked}.mkv")
        assert loudness(copied) == pytest.approx(level / np.sqrt(2), rel=0.02)
    undecodable(path, 1)
    assert loudness(read_video_sound(path)) == pytest.approx(0.1 / np.sqrt(2), rel=0.02)
    undecodable(path, 0)
    for read in (read_video_sound, video_seconds):
        with pytest.raises(DataError, match="no decoder for the sound of this video"):
            read(path)
    with pytest.raises(DataError, match=r"no sound(.|\n)*--silent"):
        films.run(path, masks=tmp_path / "m")
    assert films.run(path, masks=tmp_path / "m", silent=True).frames == 10


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def boxes(content: bytes) -> list[bytes]:
    found = []
    while content:
        size = struct.unpack_from(">I", content)[0]
        found.append(content[:size])
        content = content[size:]
    return found


def add_cover(path: Path, *, first: bool) -> None:
    """An mp4 gets a cover as music players store it, before or behind its tracks."""
    picture = BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "JPEG")
    data = box(b"data", struct.pack(">II", 13, 0) + picture.getvalue())
    names = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    cover = box(b"udta", box(b"meta", bytes(4) + names + box(b"ilst", box(b"covr", data))))
    parts = boxes(path.read_bytes())
    assert parts[-1][4:8] == b"moov", "nothing behind it is moved"
    header, *rest = boxes(parts.pop()[8:])
    inner = [header, cover, *rest] if first else [header, *rest, cover]
    path.write_bytes(b"".join(parts) + box(b"moov", b"".join(inner)))


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_is_not_the_film(tmp_path: Path, first: bool) -> None:
    path = write_film(tmp_path / "f.mp4", [Track(tone(1), "aac")])
    add_cover(path, first=first)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    shown = list(VideoSource(path).frames())
    assert [f.time_s for f in shown] == pytest.approx(np.arange(0, 1, 0.1))
    for frame in (shown[5].picture, *read_video_frames(path, [0.5])):
        assert frame.shape == (48, 64, 3) and frame.mean() == pytest.approx(50, abs=2)


def test_a_song_with_a_cover_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=RATE, layout="mono")
        sound = av.AudioFrame.from_ndarray(tone(1).T.copy(), "fltp", "mono")
        sound.rate, sound.pts = RATE, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    add_cover(path, first=True)
    for read in (VideoSource, video_seconds, lambda p: read_video_frames(p, [0.0])):
        with pytest.raises(DataError, match="no video in the file"):
            read(path)


def test_raw_streams_have_the_times_of_their_rate(tmp_path: Path) -> None:
    """Three seconds of .h264, in which no time is stored: the square is where it was drawn."""
    path = films.write_film(tmp_path / "raw.h264", fps=25)
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    assert rate == 25
    times = [f.time_s for f in VideoSource(path).frames()]
    assert times == pytest.approx(np.arange(75) / 25)
    late = list(VideoSource(path, Section(2.0, 0.4)).frames())
    assert [f.time_s for f in late] == pytest.approx(np.arange(10) / 25)
    stored = films.frames_of(films.write_film(tmp_path / "f.mp4", fps=25))[0]
    (frame,) = read_video_frames(path, [2.0])
    for picture in (frame, late[0].picture):
        assert np.abs(picture.astype(int) - stored[50]).mean() < 1
    films.run(path, out=tmp_path / "o.mp4", silent=True)
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.duration == pytest.approx(3e6, rel=0.02)


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.mp4"])
@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:2,\nf.ts\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile f.ts\n"]
)
def test_no_other_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """A playlist names files, which FFmpeg would open and show."""
    monkeypatch.chdir(tmp_path)
    films.write_film(tmp_path / "f.ts", seconds=0.5)
    assert len(read_video_frames(Path("f.ts"), [0.0])) == 1
    Path(name).write_text(text)
    with pytest.raises(DataError, match="video cannot be read") as caught:
        read_video_frames(Path(name), [0.0])
    assert caught.value.got.startswith(f"{name}: ") and "Errno" not in caught.value.got


@pytest.mark.parametrize("name", ["12:30:15.mp4", "http:x.mp4", "file:x.mp4", "a%03d.mp4"])
def test_names_that_look_like_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(tmp_path / "f.mp4", [Track(tone(1), "aac")]).rename(tmp_path / name)
    assert read_video_frames(Path(name), [0.5])[0].mean() == pytest.approx(50, abs=2)
    assert loudness(read_video_sound(Path(name))[2000:14_000]) > 0.3
    films.run(Path(name), out=Path("o" + name))
    assert len(films.frames_of(tmp_path / ("o" + name))[0]) == 10
    assert films.left_in(tmp_path) == {name, "o" + name}


@pytest.mark.slow
def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """An hour is filled with silence; what would take days is refused, but for what lies before it."""
    for jump in (3600.0, 1.7e9):
        path = write_film(
            tmp_path / f"{jump:.0f}.mkv",
            [Track(tone(1), shift=lambda t, jump=jump: jump * (t >= 0.5))],  # type: ignore[misc]
            shift=lambda t, jump=jump: jump * (t >= 0.5),  # type: ignore[misc]
        )
        before = films.run(path, masks=tmp_path / f"{jump}", section=Section(seconds=0.5))
        assert before.frames == 5
        frames, sound = read_video_stretch(path, 0.0, 1.0, [0.2, 0.9])
        assert [f.mean() for f in frames] == pytest.approx([20, 40], abs=4)
        assert loudness(sound[:7000]) > 0.3 and not sound[8500:].any()
        if jump == 3600:
            assert films.run(path, masks=tmp_path / "m").frames == 10
            assert begins_s(read_video_sound(path)[10_000:]) == pytest.approx(
                3600 - 0.125, abs=0.01
            )
            continue
        for read in (heard_by_run, read_video_sound, lambda p: list(VideoSource(p).frames())):
            with pytest.raises(DataError, match="clock of the video jumps"):
                read(path)


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    """Two recordings joined as bytes: what plays at times already past is left out, and said."""
    path = films.write_film(tmp_path / "f.ts", sound=films.tone(3, (1,)))
    path.write_bytes(path.read_bytes() * 2)
    result = films.run(path, masks=tmp_path / "m")
    assert result.frames == 30
    assert "the file's time stamps go back: 30 frames are skipped" in result.notes


@pytest.mark.slow
def test_a_sound_that_is_not_read_whole(tmp_path: Path) -> None:
    """Silence costs memory too: five hours of it in a file of some kilobytes."""
    sound = Track(tone(1), shift=lambda t: 18_000.0 * (t >= 0.5))
    with pytest.raises(DataError, match="sound is too long"):
        read_video_sound(write_film(tmp_path / "f.mkv", [sound]))


@pytest.mark.parametrize("error", [av.error.MemoryError, av.error.BlockingIOError])
def test_lack_of_memory_is_not_a_corrupt_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """For pictures, and for the stack of a thread: neither passed over nor blamed on the file."""

    class Stream:
        def decode(self, packet: Any) -> Any:
            raise error(0, "no room")

    path, damage = write_film(tmp_path / "f.mkv"), film.Damage("video")
    monkeypatch.setattr(film, "packets_of", lambda *_: iter([None]))
    with (
        pytest.raises(DataError, match="not enough memory"),
        film.opened(path) as container,
    ):
        list(film.decoded(container, Stream(), damage))
    assert damage.bad == 0
