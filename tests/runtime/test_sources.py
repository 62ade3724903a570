"""One word for input: what it names, where outputs go without -o, and what is printed."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from save_deploy.errors import DataError, OutputError
from save_deploy.runtime.sources import Kind, kind_of, local_film, name_of, run_folder
from save_deploy.runtime.video.options import OutputOptions
from save_deploy.runtime.video.still import StillRun
from tests.command import run
from tests.runtime.films import left_in, masks_in, tone, write_film
from tests.test_files import removed_once


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a film, a picture and a sound in it."""
    monkeypatch.chdir(tmp_path)
    write_film(tmp_path / "cat.mp4", sound=tone(1, (0,)), seconds=1)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "dog.png")
    soundfile.write(tmp_path / "dog.wav", 0.1 * rng.normal(size=16_000), 16_000)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["cat.mp4"], Kind.FILM),
        (["-"], Kind.FILM),
        (["https://x.org/a/cat.mp4"], Kind.FILM),
        (["https://x.org/cat.mp4?key=a*b"], Kind.FILM),
        (["s3://bucket/cat.mkv"], Kind.FILM),
        (["s3://bucket/clips"], Kind.MANY),
        (["s3://bucket/*.mp4"], Kind.MANY),
        (["."], Kind.MANY),
        (["*.mp4"], Kind.MANY),
        (["cat.mp4", "cat.mp4"], Kind.MANY),
        (["dog.png", "dog.wav"], Kind.STILL),
        (["dog.png", "cat.mp4"], Kind.STILL),
        (["nothing.png", "dog.wav"], Kind.STILL),
        (["dog.heic", "dog.wav"], Kind.STILL),
        (["nothing.jpeg", "cat.mp4"], Kind.STILL),
        (["camera"], Kind.LIVE),
        (["rtsp://x/1"], Kind.LIVE),
        (["v4l2:/dev/video0"], Kind.LIVE),
    ],
)
def test_kinds(place: Path, words: list[str], kind: Kind) -> None:
    assert kind_of(words) is kind


def test_a_url_into_a_folder_is_a_run_of_many(place: Path) -> None:
    assert kind_of(["s3://bucket/cat.mkv"], folder=True) is Kind.MANY
    (place / "camera").write_bytes(b"")  # a file of this name is a file
    assert kind_of(["camera"]) is Kind.FILM


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which video"),
        (["dog.png"], "a picture without a sound"),
        (["dog.wav", "dog.png"], "do not go together"),
        (["cat.mp4", "-"], "do not go together"),
        (["cat.mp4", "."], "do not go together"),
    ],
)
def test_words_that_name_nothing(place: Path, words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kind_of(words)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/a/b/cat.v2.mp4", "cat.v2"),
        ("-", "stdin"),
        ("/data/clips/**/*.mp4", "clips"),
        ("https://x.org/films/my cat.mp4?key=1", "my-cat"),
        ("s3://bucket", "run"),
        ("..\x1b[31m/\u202e.mp4", "run"),
        ("/a/.mp4", "mp4"),
        ("/a/" + "x" * 200 + ".mp4", "x" * 80),
        ("camera", "camera"),
        ("v4l2:/dev/video0", "video0"),
        ("rtsp://me:secret@cam.local:554/stream1?password=x", "stream1"),
        ("rtsp://me:secret@10.0.0.5", "run"),
    ],
)
def test_names(source: str, name: str) -> None:
    assert name_of(source) == name


def test_run_folders_are_new(place: Path) -> None:
    with run_folder("cat") as first, run_folder("cat") as second:
        (first / "a").touch()
        (second / "b").touch()
    assert (str(first), str(second)) == ("runs/cat", "runs/cat-2")
    with pytest.raises(ZeroDivisionError), run_folder("cat") as third:
        raise ZeroDivisionError
    assert str(third) == "runs/cat-3" and left_in(place / "runs") == {"cat", "cat-2"}


def test_a_run_folder_beside_one_that_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run that wrote nothing removes runs/ while this one begins."""
    gone = removed_once(monkeypatch, Path("runs"), "made")
    with run_folder("cat") as folder:
        assert gone and (place / folder).is_dir()


def test_a_run_folder_that_cannot_be_made(place: Path) -> None:
    (place / "runs").write_text("a file")
    with pytest.raises(OutputError, match=r"no folder(.|\n)*-o FILE"), run_folder("cat"):
        pass


def test_a_film_without_options(bundle_fp32: Path, place: Path) -> None:
    for folder in ("cat", "cat-2"):
        done = run("run", bundle_fp32, "cat.mp4")
        assert done.returncode == 0, done.stderr
        out = place / "runs" / folder
        assert left_in(out) == {"overlay.mp4", "record.json"}
        lines = done.stdout.splitlines()
        assert lines[-3].startswith(f"runs/{folder}/overlay.mp4, runs/{folder}/record.json: 10 ")
        assert " frames/s; 1 frame at a time" in lines[-2]
        assert "decode" in lines[-1] and "model" in lines[-1]
        about = json.loads((out / "record.json").read_text())["run"]
        assert about["video"] == "cat.mp4" and lines[-2].startswith(about["backend"])
    failed = run("run", place / "none", "cat.mp4")
    assert failed.returncode == 1 and left_in(place / "runs") == {"cat", "cat-2"}


def test_a_picture_and_a_sound(bundle_fp32: Path, place: Path) -> None:
    """The mask that save-deploy mask writes; an overlay and a record beside it."""
    asked = ("mask", bundle_fp32, "dog.png", "dog.wav", "-o", "m.png")
    assert run(*asked).returncode == 0
    refused = run(*asked)
    assert refused.returncode == 1 and "output exists" in refused.stderr
    assert "add --force" in refused.stderr and run(*asked, "--force").returncode == 0
    done = run("run", bundle_fp32, "dog.png", "dog.wav")
    assert done.returncode == 0, done.stderr
    out = place / "runs" / "dog"
    assert left_in(out) == {"mask.png", "overlay.png", "record.json"}
    mask = np.asarray(Image.open(out / "mask.png")) > 0
    np.testing.assert_array_equal(mask, np.asarray(Image.open("m.png")) > 0)
    record = json.loads((out / "record.json").read_text())
    assert record["mask_share"] == pytest.approx(mask.mean(), abs=1e-6) and "rle" not in record
    assert (record["width"], record["height"]) == (60, 40)
    done = run("run", bundle_fp32, "dog.png", "dog.wav", "--json", "d.json", "--json-masks", "rle")
    assert sum(json.loads((place / "d.json").read_text())["rle"]["counts"]) == 2400
    for words, said in (
        (("-o", "m.png"), "add --force"),
        (("--masks", "d"), "options of a video"),
        (("--start", "1"), "options of a video"),
        (("-o", "m.jpg"), "a .png path"),
        (("--shard", "0/2"), "--shard"),
    ):
        refused = run("run", bundle_fp32, "dog.png", "dog.wav", *words)
        assert refused.returncode == 1 and said in refused.stderr, words


@pytest.mark.parametrize("record", ["m.png", "./m.png", "link.json", "m.png/r.json", "dog.json"])
def test_outputs_of_a_picture_are_files_of_their_own(place: Path, record: str) -> None:
    """As those of a film; what is there stays."""
    (place / "m.png").write_text("mine")
    (place / "link.json").symlink_to("m.png")
    words = ("dog.png", "dog.wav", "-o", "m.png", "--json", record, "--force")
    refused = run("run", "none", *words)
    twin = record == "dog.json"  # refused for its bundle alone
    assert refused.returncode == 1 and (place / "m.png").read_text() == "mine"
    assert ("two outputs" in refused.stderr or "inside another" in refused.stderr) != twin
    outputs = OutputOptions(out=Path("m.png"), record=Path("o.json"), force=True)
    for overlay in ("m.png", "o.json"):
        with pytest.raises(DataError, match="two outputs have the same name"):
            StillRun(Path("dog.png"), Path("dog.wav"), outputs, overlay=Path(overlay))


def test_several_films(bundle_fp32: Path, place: Path) -> None:
    """As a shell expands a pattern; the same command goes on in the same folder."""
    (
        pytest.importorskip("pyarrow"),
        pytest.importorskip("pycocotools"),
        pytest.importorskip("fsspec"),
    )
    (place / "b").mkdir()
    write_film(place / "b" / "cat.mp4", sound=tone(1, (0,)), seconds=1)
    words = ("cat.mp4", "b/cat.mp4", "--actors", "1")
    assert "2 videos done, 0 failed" in run("run", bundle_fp32, *words).stdout
    again = run("run", bundle_fp32, *words)
    assert "2 videos done (2 before)" in again.stdout, again.stderr
    found = {path.name for path in (place / "runs").rglob("*.parquet")}
    assert found >= {"cat.parquet", "b__cat.parquet"}
    assert run("run", bundle_fp32, "cat.mp4", "none.mp4").returncode == 1


def test_standard_input(bundle_fp32: Path, place: Path) -> None:
    """Through a real pipe: the masks of the file. Nothing is no film."""
    command = [sys.executable, "-P", "-m", "save_deploy", "run", str(bundle_fp32), "-"]
    with open("cat.mp4", "rb") as film:
        pipe = subprocess.Popen(["cat"], stdin=film, stdout=subprocess.PIPE)
        done = subprocess.run(
            [*command, "--masks", "piped"], stdin=pipe.stdout, capture_output=True, timeout=60
        )
        pipe.wait()
    assert done.returncode == 0, done.stderr
    run("run", bundle_fp32, "cat.mp4", "--masks", "plain")
    np.testing.assert_array_equal(masks_in(place / "piped"), masks_in(place / "plain"))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 1 and b"standard input is empty" in done.stderr
    assert not (place / "runs").exists()


def test_a_terminal_is_no_film(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(DataError, match="is a terminal"), local_film("-"):
        pass


@pytest.fixture
def web(place: Path) -> Iterator[str]:
    """The folder over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    handler = functools.partial(Quiet, directory=os.fspath(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_film_of_the_web(place: Path, web: str) -> None:
    pytest.importorskip("aiohttp"), pytest.importorskip("fsspec")
    with local_film(f"{web}/cat.mp4?key=1") as path:
        assert path.read_bytes() == (place / "cat.mp4").read_bytes()
    assert not path.exists()
    with pytest.raises(DataError, match="cannot be read"), local_film(f"{web}/none.mp4"):
        pass


def test_live_sources_say_so(bundle_fp32: Path, place: Path) -> None:
    done = run("run", bundle_fp32, "camera")
    assert done.returncode == 1 and "--live --show" in done.stderr
