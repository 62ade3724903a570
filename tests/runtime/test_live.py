"""Live sources: the newest picture, the sound before it, in step, bounded memory, after a loss too."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from save_deploy.errors import DataError, OutputError
from save_deploy.runtime.live.clock import Clock, Now
from save_deploy.runtime.live.options import LiveOptions
from save_deploy.runtime.live.place import places_of
from save_deploy.runtime.live.run import LiveRun
from save_deploy.runtime.live.sound import KEPT_S, Ears
from save_deploy.runtime.live.source import LiveSource
from save_deploy.runtime.live.stats import Delays, LiveResult
from save_deploy.runtime.video.options import RunOptions, Section
from tests.command import run
from tests.runtime.films import Ears as Pipeline
from tests.runtime.films import tone, write_film

pytestmark = pytest.mark.slow

CAMERA = "lavfi:testsrc2=size=96x64:rate=30,realtime"
MICROPHONE = "lavfi:sine=frequency=440:sample_rate=48000,arealtime"
EVENT_S = 1.5  # where a film of flash_and_beep changes


def live(source: str | Path, pipeline: Any, out: Path | None = None, **more: Any) -> LiveResult:
    """more: options of LiveOptions, and seconds."""
    section = Section(seconds=more.pop("seconds", None))
    options = RunOptions(video=Path(source), out=out, section=section, force=True)
    return LiveRun(options, LiveOptions(live=True, **more))(pipeline)


class Slow(Pipeline):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def mask(self, frame: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        return super().mask(frame, embedding)


def flash_and_beep(path: Path, *, later_s: float = 0.0) -> Path:
    """3 s, 30 fps: from EVENT_S on the picture is bright; a tone begins at the same time, or later."""
    t = np.arange(3 * 48_000) / 48_000
    sound = 0.5 * np.sin(2 * np.pi * 440 * t) * (t >= EVENT_S + later_s)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio: Any = container.add_stream("aac", rate=48_000, layout="mono")
        for k in range(90):
            value = 220 if k / 30 >= EVENT_S else 30
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), value, np.uint8), "rgb24")
            frame.pts = k
            container.mux(video.encode(frame))
            piece = sound[None, 1600 * k : 1600 * (k + 1)].astype(np.float32)
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), "fltp", "mono")
            heard.rate, heard.pts = 48_000, 1600 * k
            container.mux(audio.encode(heard))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def events(path: Path) -> tuple[float, float]:
    """Where a film of flash_and_beep, or its overlay, becomes bright, and where the tone begins."""
    with av.open(str(path)) as film:
        bright = next(
            f.time for f in film.decode(video=0) if f.to_ndarray(format="gray").mean() > 125
        )
    with av.open(str(path)) as film:
        for frame in film.decode(audio=0):
            loud = np.abs(frame.to_ndarray()).max(axis=0) > 0.2
            if loud.any():
                return bright, frame.time + int(loud.argmax()) / frame.rate
    raise AssertionError("silence")


# ---- parts


@pytest.mark.parametrize(
    ("source", "url", "format"),
    [
        ("rtsp://me:secret@host:554/a", "rtsp://me:secret@host:554/a", None),
        (str(Path("rtsp://host/a")), "rtsp://host/a", None),  # a Path joins slashes
        ("HTTP://host/a.ts?b=1", "http://host/a.ts?b=1", None),
        ("lavfi:testsrc,realtime", "testsrc,realtime", "lavfi"),
        ("v4l2:/dev/video1", "/dev/video1", "v4l2"),
        ("-", "pipe:0", None),
        ("/dev/null", "/dev/null", "v4l2"),  # a device
    ],
)
def test_places(source: str, url: str, format: str | None) -> None:
    (place,) = places_of(source)
    assert (place.url, place.format) == (url, format)
    assert "secret" not in place.name
    assert not place.paced


def test_places_of_files_and_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = tmp_path / "12:30.mp4"
    film.touch()
    (place,) = places_of(str(film))
    assert place.url == f"file:{film}" and place.paced and place.ends
    with pytest.raises(DataError, match="live source not found"):
        places_of(str(tmp_path / "missing.mp4"))
    with pytest.raises(DataError, match="is a folder"):
        places_of(str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert [p.url for p in places_of("camera:2")] == ["/dev/video2", "default"]
    assert [p.url for p in places_of("camera", "alsa:hw:1")] == ["/dev/video0", "hw:1"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert [p.url for p in places_of("camera")] == ["0:default"]
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(DataError, match="no common name"):
        places_of("camera")


def test_clock_keeps_the_steps_of_the_input() -> None:
    arrived, wall = 100.0, 1e9
    clock = Clock(started=90.0, now=Now(lambda: arrived, lambda: wall))
    assert clock(5000.0) == (10.0, 100.0)
    arrived = 100.5  # late by 0.4 s: the time does not move, the moment of capture neither
    assert clock(5000.1) == pytest.approx((10.1, 100.1))
    arrived = 100.15  # with less delay than the first
    assert clock(5000.2) == pytest.approx((10.2, 100.15))
    arrived = 103.0  # set anew
    assert clock(7.0) == pytest.approx((13.0, 103.0))
    clock.forget()
    arrived = 110.0
    assert clock(7.1) == pytest.approx((20.0, 110.0))
    wall, arrived = 50_000.0, 111.0  # stamps that are the time of day: 0.25 s old
    assert clock(49_999.75) == pytest.approx((20.75, 110.75))


def test_ears_hear_what_was_said_when() -> None:
    ears, rate = Ears(), 16_000
    silent, end = ears.window(7.0)
    assert end == 7.0 and silent.shape == (rate,) and not silent.any()
    sound = np.arange(1, 3 * rate + 1, dtype=np.float32)
    for start in range(0, sound.size, 1000):  # from 10 s on, each piece a little off
        ears.add(sound[start : start + 1000], 10 + start / rate + 0.01 * (start % 3 - 1))
    window, end = ears.window(12.0)
    assert end == pytest.approx(12.0, abs=0.011)
    assert np.array_equal(np.diff(window), np.ones(rate - 1))  # nothing lost, nothing twice
    window, end = ears.window(99.0)  # the sound lags
    assert window[-1] == sound[-1] and end == pytest.approx(13.0, abs=0.011)
    ears.add(np.full(rate, -1, np.float32), 13.5)  # a gap
    window, _ = ears.window(14.0)
    assert (window[-7000:] == -1).all() and not window[-14_000:-9000].any()
    ears.add(np.full(rate, -2, np.float32), 14.0)  # half of it heard before
    window, _ = ears.window(15.0)
    assert (window[:7000] == -1).all() and (window[-7000:] == -2).all()
    ears.add(np.full(rate, -3, np.float32), 14.5 + 2 * KEPT_S)  # a jump
    window, _ = ears.window(15.5 + 2 * KEPT_S)
    assert (window == -3).all()


def test_delays_are_counted_as_numpy_ranks_them() -> None:
    delays, rng = Delays(), np.random.default_rng(0)
    assert delays.percentile_ms(50) == 0
    seconds = rng.gamma(2, 0.05, 1001)
    for value in seconds:
        delays.add(value)
    for q in (1, 50, 99):
        exact = np.percentile(np.rint(1000 * seconds), q, method="inverted_cdf")
        assert delays.percentile_ms(q) == exact
    delays.add(1e9)
    assert delays.percentile_ms(100) == 60_000


# ---- sources


def test_sound_and_picture_stay_in_step(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "film.mp4")
    out = tmp_path / "out.mp4"
    result = live(film, Pipeline(), out)
    assert result.apart_p99_ms is not None and result.apart_p99_ms <= 100
    bright, loud = events(out)
    assert abs(bright - loud) < 0.1
    assert result.masks + result.skipped >= 85 and result.losses == 0
    flash_and_beep(film, later_s=0.3)  # the twin
    live(film, Pipeline(), out)
    bright, loud = events(out)
    assert loud - bright == pytest.approx(0.3, abs=0.1)


def test_slow_model_masks_the_newest(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", seconds=3, fps=30, sound=tone(3, (0, 1, 2)))
    result = live(film, Slow(0.2), tmp_path / "out.mp4")
    assert 5 <= result.masks <= 16 and result.skipped >= 60
    assert "frames skipped" in "\n".join(result.lines())
    assert result.p50_ms >= 200  # measured from capture, so that the model's own time is in it
    quick = live(film, Pipeline(), tmp_path / "out.mp4")
    assert quick.masks > 3 * result.masks
    with av.open(str(tmp_path / "out.mp4")) as written:
        times = [frame.time for frame in written.decode(video=0)]
    assert len(times) == quick.masks and times == sorted(set(times))


@pytest.mark.thorough
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Five minutes at 30 fps through a pipe, as fast as they are decoded; one of dozens is masked."""
    film = write_film(
        tmp_path / "film.ts", seconds=300, fps=30, sound=tone(300, (1,)), codec="mpeg2video",
        sound_codec="mp2",
    )  # fmt: skip
    sizes, pipe = list[int](), tmp_path / "pipe"
    os.mkfifo(pipe)

    class Watched(Slow):
        def mask(self, frame: np.ndarray, embedding: np.ndarray) -> np.ndarray:
            sizes.append(psutil.Process().memory_info().rss)
            return super().mask(frame, embedding)

    writer = threading.Thread(target=lambda: pipe.write_bytes(film.read_bytes()), daemon=True)
    writer.start()
    result = live(pipe, Watched(0.05), tmp_path / "out.mp4")
    assert result.skipped + result.masks > 8000 and result.skipped > 10 * result.masks
    half = len(sizes) // 2
    assert max(sizes[half:]) - max(sizes[5:half]) < 20 * 2**20


@contextmanager
def served(*answers: bytes, pace_s: float = 0.0, seconds: float = 1.0) -> Iterator[str]:
    """One answer after the other, over `seconds` where a pace is given; none is left: 404."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = left.pop(0) if left else b""
            self.send_response(200 if content else 404)
            self.end_headers()
            n = max(1, round(seconds / pace_s)) if pace_s else 1
            for k in range(n):
                try:
                    self.wfile.write(content[k * len(content) // n : (k + 1) * len(content) // n])
                except OSError:
                    return
                time.sleep(pace_s)

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/live.ts"
    finally:
        server.shutdown()
        server.server_close()


def test_source_that_dies_and_comes_back(tmp_path: Path) -> None:
    """The same seconds twice, as from a sender that starts anew: its clock begins at the same time."""
    film = write_film(
        tmp_path / "film.ts", seconds=3, fps=25, sound=tone(3, (0, 1, 2)), codec="mpeg2video",
        sound_codec="mp2",
    ).read_bytes()  # fmt: skip
    out = tmp_path / "out.mp4"
    with served(film, b"", film, pace_s=0.05, seconds=3) as url:
        with pytest.raises(DataError, match="source is lost"):
            live(url, Pipeline(), out, patience_s=1.0)
    with av.open(str(out)) as written:  # complete all the same
        times = [frame.time for frame in written.decode(video=0)]
    assert len(times) >= 50 and times == sorted(set(times))
    steps = np.diff(times)
    assert (steps > 0.7).sum() == 1  # where it was lost
    assert 5 < times[-1] - times[0] < 8  # on the clock of who watches


def test_source_that_never_was(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with served(b"") as url, pytest.raises(DataError, match="cannot be opened"):
        live(url, Pipeline(), out)
    (tmp_path / "letter.mp4").write_text("Dear reader")
    with pytest.raises(DataError, match="cannot be opened"):
        live(tmp_path / "letter.mp4", Pipeline(), out)
    silent = write_film(tmp_path / "silent.mp4", seconds=0.5)
    with pytest.raises(DataError, match="no sound in the live source"):
        live(silent, Pipeline(), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letter.mp4", "silent.mp4"]


def test_camera_and_microphone_are_two_devices(tmp_path: Path) -> None:
    """FFmpeg's own: a test picture and a tone, at the pace of a clock."""
    heard = Pipeline()
    result = live(CAMERA, heard, tmp_path / "out.mp4", microphone=MICROPHONE, seconds=1.5)
    assert result.masks >= 20 and result.apart_p99_ms is not None
    assert result.apart_p99_ms <= 100
    assert np.abs(heard.heard[-1]).max() > 0.05
    assert places_of(CAMERA, MICROPHONE)[1].format == "lavfi"


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no output given"):
        live(CAMERA, Pipeline())
    with pytest.raises(DataError, match="wrong patience"):
        live(CAMERA, Pipeline(), tmp_path / "out.mp4", patience_s=float("nan"))
    options = RunOptions(video=Path(CAMERA), out=tmp_path / "o.mp4", masks=tmp_path / "masks")
    with pytest.raises(DataError, match="not available for a live source"):
        LiveRun(options, LiveOptions(live=True))
    film = tmp_path / "film.mp4"
    film.write_bytes(b"mine")
    with pytest.raises(OutputError, match="same file"):
        LiveRun(RunOptions(video=film, out=film, force=True), LiveOptions(live=True))
    assert film.read_bytes() == b"mine"
    done = run("run", tmp_path, CAMERA, "--window")  # --show under its older name
    assert done.returncode == 1 and "--live" in done.stderr


def test_a_live_run_without_options(bundle_fp32: Path, tmp_path: Path) -> None:
    """Into runs/NAME, as a film; what gives nothing leaves nothing."""
    write_film(tmp_path / "street.mp4", seconds=1, sound=tone(1, (0, 1)))
    for folder in ("street", "street-2"):
        done = run("run", bundle_fp32, "street.mp4", "--live", "--threads", "1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"runs/{folder}/overlay.mp4: " in done.stdout
        assert [p.name for p in (tmp_path / "runs" / folder).iterdir()] == ["overlay.mp4"]
    failed = run("run", tmp_path / "none", "street.mp4", "--live", cwd=tmp_path)
    assert failed.returncode == 1 and len(list((tmp_path / "runs").iterdir())) == 2


def test_a_reader_ends_with_its_block() -> None:
    with LiveSource(places_of(CAMERA), patience_s=1, hold_sound=False) as source:
        assert source.frame(5) is not None
    before = source.decoded
    time.sleep(0.2)
    assert source.decoded == before
    assert not any(thread.is_alive() for thread in source._threads)


def test_interrupt_is_the_usual_end(bundle_fp32: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "save_deploy", "run", str(bundle_fp32), CAMERA, "--live",
               "--microphone", MICROPHONE, "-o", str(out), "--threads", "1"]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".*/*.mp4")) and child.poll() is None:
        time.sleep(0.1)
    time.sleep(3)
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert "frames/s" in said and "from capture to mask" in said and "interrupted" not in errors
    with av.open(str(out)) as written:
        n = sum(1 for _ in written.decode(video=0))
    assert f"{out}: {n} frames" in said
    assert os.listdir(tmp_path) == ["out.mp4"]
