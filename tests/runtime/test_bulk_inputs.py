"""Manifests, folders and places of strangers: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from save_deploy.errors import DataError
from save_deploy.runtime.bulk.options import Shard, parse_shard
from save_deploy.runtime.bulk.videos import Video, found_in, in_shard, is_many, read_manifest
from save_deploy.runtime.video.options import Section


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,uri\na,b.mp4\n", "no column id"),
        ("", "no column id and no uri"),
        ("id,uri\n", "no rows"),
        ("id,uri\na,x.mp4\nb,y.mp4\na,z.mp4\n", "two videos with one id"),
        ("id,uri\na,x.mp4\n,y.mp4\n", "row 2: id"),
        ("id,uri\na,\n", "row 1: uri"),
        ("id,uri\na\n", "row 1: uri"),
        ("id,uri\na,../x.mp4\n", "is outside the manifest's folder"),
        ("id,uri\na,b/../../x.mp4\n", "is outside the manifest's folder"),
        ("id,uri\na/../../b,x.mp4\n", "not a valid file name"),
        ("id,uri\n..,x.mp4\n", "not a valid file name"),
        ("id,uri\n.a,x.mp4\n", "not a valid file name"),
        (f"id,uri\n{'a' * 300},x.mp4\n", "not a valid file name"),
        ("id,uri\na\x1b[31m,x.mp4\n", "not a valid file name"),
        ("id,uri,size\na,x.mp4,1e30\n", "row 1: size"),
        ("id,uri,start_s\na,x.mp4,soon\n", "row 1: start_s"),
        ("id,uri,start_s\na,x.mp4,-1\n", "row 1: start_s"),
        ("id,uri,seconds\na,x.mp4,0\n", "row 1: wrong section"),
        ("id,uri,seconds\na,x.mp4,nan\n", "row 1: seconds"),
        ("id,uri,fps\na,x.mp4,often\n", "row 1: wrong frame rate"),
        ("id,uri,fps\na,x.mp4,0\n", "row 1: wrong section"),
    ],
)  # fmt: skip
def test_manifests_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "videos.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as raised:
        read_manifest(str(path), Section())
    assert str(path) in str(raised.value) or "videos with one id" in said


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    (tmp_path / "b.csv").write_bytes(b"id,uri\n\xff\xfe,a.mp4\n")
    (tmp_path / "c.csv").write_text('id,uri\na,"' + "x" * 200_000 + "\n")
    names = pa.array([b"\xff"]).view(pa.string())  # not UTF-8
    dates = pa.array([2**62], pa.int64()).view(pa.timestamp("us"))  # of no year that Python knows
    for name, ids, uris in (("d.parquet", names, ["x"]), ("e.parquet", ["a"], dates)):
        parquet.write_table(pa.table({"id": ids, "uri": uris}), tmp_path / name)
    for name, said in (
        ("a.parquet", "not a parquet"),
        ("b.csv", "not UTF-8"),
        ("c.csv", "not a CSV"),
        ("d.parquet", "not a parquet"),
        ("e.parquet", "not a parquet"),
    ):
        with pytest.raises(DataError, match=said):
            read_manifest(str(tmp_path / name), Section())


@pytest.mark.parametrize(
    "place", ["nowhere://bucket/v.csv", "memory://none/v.csv", "/nowhere/v.csv", "s3://a b/v.csv"]
)
def test_a_store_that_cannot_be_read(place: str) -> None:
    for read in (
        lambda: read_manifest(place, Section()),
        lambda: found_in(place, Section(), without=Path("/nothing")),
    ):
        with pytest.raises(DataError, match="this place cannot be read") as raised:
            read()
        assert place in str(raised.value)


@pytest.mark.slow
def test_rows_of_both_kinds_of_manifest(tmp_path: Path) -> None:
    """Section of a row, else that of the options; uris below the manifest's folder."""
    (tmp_path / "x.mp4").write_bytes(b"12345")
    (tmp_path / "v.csv").write_text(
        "\ufeffid,uri,start_s,seconds,fps\nb,x.mp4,2,,keyframes\na,s3://bucket/y.mp4,,3.5,\n"
    )
    rows = {"id": ["b", "a"], "uri": ["x.mp4", "s3://bucket/y.mp4"], "start_s": [2.0, None],
            "seconds": [None, 3.5], "fps": ["keyframes", None]}  # fmt: skip
    parquet.write_table(pa.table(rows), tmp_path / "v.parquet")
    for name in ("v.csv", "v.parquet"):
        a, b = read_manifest(str(tmp_path / name), Section(fps=4.0))
        assert a == Video("a", "s3://bucket/y.mp4", None, 0.0, 3.5, "4")
        assert b == Video("b", str(tmp_path / "x.mp4"), 5, 2.0, None, "keyframes")
        assert b.section == Section(2.0, None, "keyframes")


def test_videos_of_a_folder_and_of_a_pattern(tmp_path: Path) -> None:
    """Ids are paths, without suffixes where those differ; hidden files and OUT are passed over."""
    for name in (
        "a.mp4",
        "b/c.MKV",
        "b/d.mp4",
        "b/d.mov",
        ".h.mp4",
        ".h/i.mp4",
        "n.txt",
        "out/e.mp4",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = found_in(str(tmp_path), Section(), without=tmp_path / "out")
    assert [v.id for v in found] == ["a", "b__c", "b__d.mov", "b__d.mp4"]
    assert found[0].uri == str(tmp_path / "a.mp4") and found[0].size == 0
    pattern = found_in(f"{tmp_path}/b/*.m*", Section(), without=tmp_path / "out")
    assert [v.id for v in pattern] == ["d.mov", "d.mp4"]
    with pytest.raises(DataError, match="no video in this place"):
        found_in(f"{tmp_path}/*.avi", Section(), without=tmp_path / "out")
    (tmp_path / "b__d.mp4").touch()
    with pytest.raises(DataError, match="two videos with one id"):
        found_in(str(tmp_path), Section(), without=tmp_path / "out")
    assert is_many(str(tmp_path)) and is_many("s3://a/b.mp4") and is_many("a/*.mp4")
    assert not is_many(str(tmp_path / "a.mp4")) and not is_many("missing.mp4")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_links_are_what_they_lead_to(tmp_path: Path, scheme: str) -> None:
    """A link to a file is a video of its size; what lies in OUT is passed over on every way there."""
    films, out = tmp_path / "films", tmp_path / "films" / "out"
    out.mkdir(parents=True)
    (films / "plain.mp4").write_bytes(b"12345")
    (out / "made.mp4").write_bytes(b"1")
    (tmp_path / "store").write_bytes(b"123")
    (films / "linked.mp4").symlink_to(tmp_path / "store")
    (films / "twice.mp4").symlink_to("linked.mp4")
    (films / "gone.mp4").symlink_to("nothing")
    (films / "folder.mp4").symlink_to(tmp_path)
    (films / "own.mp4").symlink_to(out / "made.mp4")
    (tmp_path / "door").symlink_to(films)
    (tmp_path / "exit").symlink_to(out)
    sizes = {"linked": 3, "plain": 5, "twice": 3}
    for place in (films, tmp_path / "door", tmp_path / "door" / "*.mp4", films / "**"):
        for without in (out, tmp_path / "door" / "out", tmp_path / "exit"):
            found = found_in(f"{scheme}{place}", Section(), without=without)
            assert {video.id.split("__")[-1]: video.size for video in found} == sizes, place
    found = found_in(str(films / "linked.mp4"), Section(), without=out)
    more = found_in(
        str(films / "linked.mp4"), Section(), without=out, more=[str(films / "twice.mp4")]
    )
    assert [(v.id, v.size) for v in (*found, *more)] == [("linked", 3), ("linked", 3), ("twice", 3)]


@pytest.mark.parametrize("text", ["3/3", "1/0", "-1/3", "a/3", "3", "1/3/3"])
def test_shards_that_do_not_exist(text: str) -> None:
    with pytest.raises(DataError, match="wrong shard"):
        parse_shard(text)
    assert parse_shard("2/3") == Shard(2, 3)


def test_every_video_is_in_one_shard() -> None:
    videos = [Video(f"clip {n}", "x") for n in range(1000)]
    parts = [in_shard(videos, Shard(i, 8)) for i in range(8)]
    assert sorted(v.id for part in parts for v in part) == sorted(v.id for v in videos)
    assert all(90 < len(part) < 160 for part in parts)
    assert in_shard(videos[::2], Shard(3, 8)) == [v for v in videos[::2] if v in parts[3]]
    assert parse_shard("3/8") == Shard(3, 8) and in_shard(videos, Shard()) == videos
