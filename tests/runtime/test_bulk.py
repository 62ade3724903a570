"""Many videos in one run: every mask the right one, each video once, resumed, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from save_deploy.runtime.bulk.place import Place
from save_deploy.runtime.bulk.videos import Video
from save_deploy.runtime.pipeline import load, stream
from save_deploy.runtime.video.options import Section
from save_deploy.runtime.video.source import VideoSource
from tests.command import run as command
from tests.runtime import bulk
from tests.runtime.films import SIZE, frames_of, masks_in, square, tone, write_film
from tests.runtime.films import run as run_one

pytestmark = pytest.mark.slow
IDS = ("night__three", "one", "two")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bulk.write_films(tmp_path_factory.mktemp("films") / "films")


@pytest.fixture
def empty(tmp_path: Path, bundle_fp32: Path) -> Path:
    return bulk.empty_bundle(tmp_path / "bundle", bundle_fp32)


def test_masks_of_a_folder(films: Path, bundle_fp32: Path, tmp_path: Path) -> None:
    """Pixel for pixel those of stream() on the same frames and sound; a second run makes none anew."""
    out = tmp_path / "out"
    done = bulk.run(bundle_fp32, films, "-o", out)
    assert done.returncode == 2 and "3 videos done, 1 failed" in done.stdout
    assert "failed: broken: video cannot be read" in done.stdout
    assert "decode" in done.stdout and "model" in done.stdout and "frames/s" in done.stdout
    with load(bundle_fp32) as pipeline:
        for name, path in zip(IDS, ("night/three.mp4", "one.mp4", "two.mkv"), strict=True):
            source = VideoSource(films / path)
            pairs = [(f.picture, f.time_s) for f in source.frames()]
            expected = list(stream(pipeline, pairs, source.sound_seconds()))
            found = bulk.masks(out, name)
            assert len(found) == len(expected) == bulk.table(out)[name]["frames"]
            assert all(map(np.array_equal, found, expected)), name
            assert any(mask.any() for mask in found)
    rows = bulk.table(out)
    assert {n: r["status"] for n, r in rows.items()} == dict.fromkeys(IDS, "done") | {
        "broken": "failed"
    }
    assert list(bulk.failed(out)) == ["broken"] and not bulk.left_over(out)
    before = bulk.mask_bytes(out)
    times = {p: p.stat().st_mtime_ns for p in (out / "masks").rglob("*.parquet")}
    again = bulk.run(bundle_fp32, films, "-o", out)
    assert again.returncode == 2 and "3 videos done (3 before), 1 failed" in again.stdout
    assert bulk.mask_bytes(out) == before and {p: p.stat().st_mtime_ns for p in times} == times
    kept = {n: r for n, r in bulk.table(out).items() if n in IDS}
    assert kept == {n: r for n, r in rows.items() if n in IDS}


def test_failed_rows_are_the_next_manifest(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk.see(monkeypatch)
    out, place = tmp_path / "out", tmp_path / "copy"
    bulk.write_films(place)
    assert bulk.run(empty, place, "-o", out).returncode == 2
    write_film(place / "broken.mp4", sound=tone(1, (0,)), seconds=1)
    done = bulk.run(empty, "--manifest", out / "failed.csv", "-o", out)
    assert done.returncode == 0 and "1 videos done, 0 failed" in done.stdout
    assert bulk.failed(out) == {} and len(bulk.table(out)) == 4
    assert {row["status"] for row in bulk.table(out).values()} == {"done"}


def test_masks_follow_picture_and_sound(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the drawing, in a clip bundle: full groups of frames, whatever second they are in."""
    eyes = bulk.see(monkeypatch, batch=4)
    out = tmp_path / "out"
    assert bulk.run(empty, films / "one.mp4", "-o", out, "--format", "rle").returncode == 0
    assert eyes.calls == [4] * 7 + [2], "30 frames, four in a call"
    for k, mask in enumerate(bulk.masks(out, "one")):
        wanted = square(k, SIZE) if 10 <= k < 20 else np.zeros(SIZE[::-1], bool)
        assert (mask ^ wanted).sum() <= 70, k
    rows = list(bulk_rows(out, "one"))
    assert [row.second for row in rows] == [k // 10 for k in range(30)]
    assert [row.t_s for row in rows] == pytest.approx(np.arange(30) / 10)


def bulk_rows(out: Path, name: str) -> Any:
    from save_deploy.runtime.bulk.masks import read_rows

    return read_rows(Place(out).mask_file(name))


def test_one_video_in_a_clip_bundle(films: Path, tmp_path: Path) -> None:
    """As many frames a call as the bundle takes, and the masks of one frame a call."""
    for batch, calls in ((1, [1] * 30), (4, [4] * 7 + [2])):
        eyes = bulk.Eyes(batch)
        result = run_one(films / "one.mp4", eyes, masks=tmp_path / str(batch))
        assert eyes.calls == calls and not result.notes
    one, four = (masks_in(tmp_path / str(batch)) for batch in (1, 4))
    assert all(map(np.array_equal, one, four)) and any(mask.any() for mask in one)
    assert {Image.open(path).mode for path in (tmp_path / "4").iterdir()} == {"1"}


def test_a_run_of_another_kind_is_refused(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name of what differs; with --force its masks are made anew."""
    bulk.see(monkeypatch)
    out, film = tmp_path / "out", films / "two.mkv"
    assert bulk.run(empty, film, "-o", out, "--format", "rle").returncode == 0
    first = bulk.run_json(out)
    other = ["-o", out, "--format", "rle", "--resize", "area", "--fps", "4"]
    refused = bulk.run(empty, film, *other)
    assert refused.returncode == 1 and bulk.run_json(out) == first
    assert 'fps "native", resize "exact"' in refused.stderr and 'resize "area"' in refused.stderr
    assert len(bulk.masks(out, "two")) == 16
    assert bulk.run(empty, film, *other, "--force").returncode == 0
    assert bulk.run_json(out)["run"]["resize"] == "area" and len(bulk.masks(out, "two")) == 8
    monkeypatch.setattr("save_deploy.runtime.bulk.worker.relevant_versions", lambda _: {"av": "1"})
    refused = bulk.run(empty, film, *other)
    assert "version of av" in refused.stderr


def test_a_folder_of_something_else_is_refused(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk.see(monkeypatch)
    (tmp_path / "thesis.tex").touch()
    refused = bulk.run(empty, films, "-o", tmp_path)
    assert refused.returncode == 1 and "with other files" in refused.stderr
    assert (tmp_path / "thesis.tex").exists() and not (tmp_path / "run.json").exists()


@pytest.fixture
def done(films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bulk.see(monkeypatch)
    assert bulk.run(empty, f"{films}/*.m[pk]*", "-o", tmp_path / "out").returncode == 2
    return tmp_path / "out"


def test_coco_loads_in_pycocotools(done: Path, tmp_path: Path) -> None:
    """And gives the same pixels."""
    from pycocotools.coco import COCO

    path = tmp_path / "coco.json"
    exported = command("masks", done, "--export", "coco", "-o", path)
    assert exported.returncode == 0 and "46 frames of 2 videos, 1 without masks" in exported.stdout
    coco = COCO(str(path))
    wanted = {n: bulk.masks(done, n) for n in ("one", "two")}
    assert len(coco.imgs) == sum(map(len, wanted.values()))
    seen = 0
    for image in coco.loadImgs(coco.getImgIds()):
        name, number = image["file_name"].removesuffix(".png").split("/")
        mask = wanted[name][int(number)]
        assert (image["height"], image["width"]) == mask.shape
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(found) == int(mask.any())
        for annotation in found:
            seen += 1
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box and annotation["area"] == mask.sum()
    assert seen > 15
    refused = command("masks", done, "--export", "coco", "-o", path)
    assert refused.returncode == 1 and "output exists" in refused.stderr


def test_sav_and_pictures(done: Path, tmp_path: Path) -> None:
    from pycocotools import mask as coco

    for kind in ("sav", "png"):
        assert command("masks", done, "--export", kind, "-o", tmp_path / kind).returncode == 0
    for name in ("one", "two"):
        wanted = bulk.masks(done, name)
        found = json.loads((tmp_path / "sav" / f"{name}_auto.json").read_text())
        decoded = [coco.decode(frame[0]) for frame in found["masklet"]]
        assert len(decoded) == len(wanted) and all(map(np.array_equal, decoded, wanted))
        first = next(k for k, mask in enumerate(wanted) if mask.any())
        assert found["masklet_first_appeared_frame"] == [first] and found["masklet_num"] == 1
        assert found["video_frame_count"] == len(wanted)
        assert all(map(np.array_equal, masks_in(tmp_path / "png" / name), wanted))
        assert {Image.open(p).mode for p in (tmp_path / "png" / name).iterdir()} == {"1"}
    refused = command("masks", tmp_path / "sav", "--export", "png", "-o", tmp_path / "x")
    assert refused.returncode == 1 and "no run in this folder" in refused.stderr


def test_png_and_video_beside_the_masks(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk.see(monkeypatch)
    for form in ("png", "video"):
        out = tmp_path / form
        assert bulk.run(empty, films / "two.mkv", "-o", out, "--format", form).returncode == 0
        wanted, place = bulk.masks(out, "two"), Place(out).mask_file("two")
        if form == "png":
            assert all(map(np.array_equal, masks_in(place.with_suffix("")), wanted))
        else:
            shown, times = frames_of(place.with_suffix(".mp4"))
            assert len(shown) == 16 and times == frames_of(films / "two.mkv")[1]


def test_sections_and_rates_of_a_manifest(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk.see(monkeypatch)
    rows = ["id,uri,start_s,seconds,fps,note", f"cut,{films}/one.mp4,1.0,1.5,5,hm"]
    rows += [f"key,{films}/one.mp4,,,keyframes,", "whole,one.mp4,,,,"]
    (tmp_path / "m").mkdir()
    manifest = tmp_path / "m" / "videos.csv"
    manifest.write_text("\n".join(rows))
    (tmp_path / "m" / "one.mp4").symlink_to(films / "one.mp4")
    out = tmp_path / "out"
    assert bulk.run(empty, "--manifest", manifest, "-o", out).returncode == 0
    assert [row.t_s for row in bulk_rows(out, "cut")] == pytest.approx(np.arange(8) / 5)
    for k, mask in enumerate(bulk.masks(out, "cut")):
        wanted = square(10 + 2 * k, SIZE) if k < 5 else np.zeros(SIZE[::-1], bool)
        assert (mask ^ wanted).sum() <= 70, k
    assert [row.t_s for row in bulk_rows(out, "key")] == pytest.approx([0, 1, 2])  # gop of 10
    assert len(bulk.masks(out, "whole")) == 30


def test_masks_at_network_size(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk.see(monkeypatch)
    args = ("--format", "rle", "--masks-at", "network")
    assert bulk.run(empty, films / "one.mp4", "-o", tmp_path / "out", *args).returncode == 0
    assert {mask.shape for mask in bulk.masks(tmp_path / "out", "one")} == {(64, 64)}
    refused = bulk.run(empty, films, "-o", tmp_path / "x", "--format", "png", *args[2:])
    assert refused.returncode == 1 and "rle only" in refused.stderr


def test_area_resize_is_close_to_the_exact_one(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned films too: the mask lies where the exact one does."""
    bulk.see(monkeypatch)
    for resize in ("exact", "area"):
        out = tmp_path / resize
        bulk.run(
            empty, films / "night" / "three.mp4", "-o", out, "--format", "rle", "--resize", resize
        )
    exact, area = (bulk.masks(tmp_path / r, "three") for r in ("exact", "area"))
    for one, other in zip(exact, area, strict=True):
        assert (one & other).sum() / (one | other).sum() > 0.9
    assert bulk.run_json(tmp_path / "area")["run"]["resize"] == "area"


def test_videos_of_a_store(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's memory stands for a bucket: its folder, and a manifest in it with relative uris."""
    import fsspec

    bulk.see(monkeypatch)
    store = fsspec.filesystem("memory")
    store.put(str(films / "one.mp4"), "/bucket/day/one.mp4")
    store.pipe("/bucket/v.csv", b"id,uri\na,day/one.mp4\nb,memory://bucket/day/none.mp4\n")
    try:
        assert bulk.run(empty, "memory://bucket", "-o", tmp_path / "a").returncode == 0
        assert len(bulk.masks(tmp_path / "a", "day__one")) == 30
        done = bulk.run(empty, "--manifest", "memory://bucket/v.csv", "-o", tmp_path / "b")
        assert done.returncode == 2 and "this place cannot be read" in done.stdout
        assert bulk.failed(tmp_path / "b")["b"]["attempts"] == "1", (
            "what is not there is not retried"
        )
        assert len(bulk.masks(tmp_path / "b", "a")) == 30
    finally:
        store.rm("/bucket", recursive=True)


def test_shards_share_out_the_videos(
    films: Path, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts, each video in one of them, into one folder: as one run made them."""
    bulk.see(monkeypatch)
    out = tmp_path / "out"
    told = [bulk.run(empty, films, "-o", out, "--shard", f"{i}/3") for i in range(3)]
    assert sorted(done.returncode for done in told) == [0, 0, 2]
    bulk.run(empty, films, "-o", tmp_path / "whole")
    assert bulk.mask_bytes(out) == bulk.mask_bytes(tmp_path / "whole") and len(bulk.table(out)) == 4
    assert list(bulk.failed(out)) == ["broken"] and not bulk.left_over(out)
    for wrong in ("3/3", "1", "a/b", "-1/2"):
        refused = bulk.run(empty, films, "-o", out, f"--shard={wrong}")
        assert refused.returncode == 1 and "wrong shard" in refused.stderr


def test_options_without_effect_are_refused(films: Path, empty: Path, tmp_path: Path) -> None:
    for args, said in (
        ((films, "-o", tmp_path / "o", "--masks", tmp_path / "m"), "options of a single video"),
        ((films, "--show"), "options of a single video"),
        ((films / "one.mp4", "-o", tmp_path / "o.mp4", "--retries", "2"), "--retries"),
        (
            (films, "--manifest", films / "x.csv", "-o", tmp_path / "o"),
            "give either VIDEO",
        ),
        ((films, "-o", films / "notes.txt"), "not a folder"),
        ((films, "-o", tmp_path / "o", "--format", "gif"), "wrong --format"),
    ):
        refused = command("run", empty, *args)
        assert refused.returncode == 1 and said in refused.stderr, said


def test_hash_of_a_video_is_of_all_of_it() -> None:
    video = Video("a", "/a.mp4", 5)
    others = [Video("b", "/a.mp4", 5), Video("a", "/b.mp4", 5), Video("a", "/a.mp4", 6)]
    others += [Video("a", "/a.mp4", 5, start_s=1), Video("a", "/a.mp4", 5, fps="2")]
    assert len({v.hash for v in [video, *others]}) == 6
    assert Video.from_json(video.to_json()) == video and video.section == Section()
