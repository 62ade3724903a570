"""Released datasets read in place: which files belong to a clip, and every trap of their layouts."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from save_deploy.data import avss, synthetic
from save_deploy.data.audio import second
from save_deploy.data.log_mel import log_mel_examples
from save_deploy.data.open import open_dataset
from save_deploy.data.released import ReleasedClips
from save_deploy.data.tables import read_table
from save_deploy.data.transforms import read_mask
from save_deploy.errors import DataError
from tests.data import trees


def opened(name: Path | str, **options: object) -> ReleasedClips:
    clips = open_dataset(str(name), **options)  # type: ignore[arg-type]
    assert isinstance(clips, ReleasedClips)
    return clips


def check_clip(clips: ReleasedClips, index: int, name: str, numbers: range, tolerance: int) -> None:
    """Frames of a clip by their gray, masks by their column, as trees.py writes them."""
    clip = clips[index]
    assert clip.name == name
    assert clip.frames.shape == (len(numbers), 12, 16, 3) and clip.frames.dtype == np.uint8
    for frame, mask, i in zip(clip.frames, clip.masks, numbers, strict=True):
        assert np.abs(frame.astype(int) - trees.shade(name, i)).max() <= tolerance
        np.testing.assert_array_equal(mask, trees.mask_array(i) == 1)


@pytest.mark.parametrize(("split", "frames"), [("train", 1), ("val", 5), ("test", 5)])
def test_s4(tmp_path: Path, split: str, frames: int) -> None:
    """Training clips have only mask 1: one frame, though five are there."""
    clips = opened(trees.write_s4(tmp_path), split=split)
    check_clip(clips, 0, f"s4_{split}_0", range(1, 1 + frames), 0)
    assert clips[0].category == trees.CATEGORY
    assert clips.pairs() == [(i, k) for i in range(len(clips)) for k in range(frames)]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_ms3_frames_have_mp4_in_their_name(tmp_path: Path, split: str) -> None:
    clips = opened(trees.write_ms3(tmp_path), split=split)
    check_clip(clips, 0, f"ms3_{split}_0", range(1, 6), 0)
    assert clips.items[0].frames[0].name == f"ms3_{split}_0.mp4_1.png"


@pytest.mark.parametrize(
    ("subset", "split", "frames"),
    [("v2", "train", 10), ("v1m", "train", 5), ("v1s", "train", 1), ("v1s", "test", 5)],
)
def test_avss(tmp_path: Path, subset: str, split: str, frames: int) -> None:
    """JPEG numbered from 0; ten frames in v2; v1s training clips have only mask 0."""
    clips = opened(f"{trees.write_avss(tmp_path)}:{subset}", split=split)
    assert {item.name for item in clips.items} == {
        f"{subset}_{split}_{i}_0_10000" for i in range(len(clips))
    }
    check_clip(clips, 0, f"{subset}_{split}_0_0_10000", range(frames), 3)


def test_avss_all_labels_and_default(tmp_path: Path) -> None:
    """No suffix is v2; avss is everything: 2 x (1 + 5 + 10) annotated training frames."""
    trees.write_avss(tmp_path)
    assert {i.name[:2] for i in opened(tmp_path).items} == {"v2"}
    assert len(opened(f"{tmp_path}:avss", split="train").pairs()) == 2 * (1 + 5 + 10)


def test_category_typo_and_joined_names(tmp_path: Path) -> None:
    trees.write_avss(tmp_path)
    assert opened(f"{tmp_path}:v1s", split="train")[0].category == "horse"
    assert opened(f"{tmp_path}:v2")[0].category.split("_") == ["hair-dryer", "man"]


@pytest.mark.parametrize("folder", ["v3", "."])
def test_v3(tmp_path: Path, folder: str) -> None:
    """The file, not the split column, says the split; few-shot categories come from unseen."""
    trees.write_v3(tmp_path, folder=folder)
    names = lambda subset, split: [
        i.name for i in opened(f"{tmp_path}:{subset}", split=split).items
    ]
    assert names("v3_seen", "train") == ["seen_a", "seen_b"]
    assert names("v3_seen", "val") == ["seen_c"]
    assert names("v3_unseen", "test")[-1] == "unseen_m" and len(names("v3_unseen", "test")) == 5
    for k, n in {1: 1, 3: 2, 5: 3}.items():
        assert len(names(f"v3_{k}_shot", "train")) == n
        assert len(names(f"v3_{k}_shot", "test")) == 5 - n
    clips = opened(f"{tmp_path}:v3_1_shot", split="test")
    assert {item.category for item in clips.items} == {trees.UNSEEN_OBJECT}
    check_clip(clips, 0, "unseen_1", range(10), 3)
    check_clip(clips, 3, "unseen_m", range(5), 3)


def test_v3_folder_itself(tmp_path: Path) -> None:
    """DIR may be v3/: its media are one folder up."""
    trees.write_v3(tmp_path)
    check_clip(opened(f"{tmp_path / 'v3'}:v3_unseen"), 0, "unseen_0", range(10), 3)


def test_few_shot_needs_the_unseen_categories(tmp_path: Path) -> None:
    trees.write_v3(tmp_path)
    unseen = tmp_path / "v3" / "meta_v3_unseen.csv"
    lines = unseen.read_text().splitlines()
    unseen.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(DataError, match=r"empty cell[^$]*row 2 of v3_1_shot/test.csv"):
        opened(f"{tmp_path}:v3_1_shot")
    unseen.unlink()
    with pytest.raises(DataError, match=r"meta_v3_unseen\.csv beside"):
        opened(f"{tmp_path}:v3_1_shot")


def test_synthetic(tmp_path: Path) -> None:
    """One frame per object; test and validation rows name their sound; val is called validate."""
    trees.write_synthetic(tmp_path)
    for split in ("val", "validate"):
        assert [i.name for i in opened(tmp_path, split=split).items] == [
            "cat_validate",
            "piano_validate",
        ]
    clips = opened(tmp_path)
    assert [i.sounds[0].name for i in clips.items] == ["cat_1.wav", "piano_1.wav"]
    clip = clips[1]
    assert clip.category == "piano" and clip.frames.shape == (1, 12, 16, 3)
    assert np.abs(clip.frames.astype(int) - trees.shade("piano", 0)).max() <= 3
    np.testing.assert_array_equal(clip.masks[0], trees.mask_array(11) == 1)


def test_synthetic_hears_the_second_example(tmp_path: Path) -> None:
    clip = opened(trees.write_synthetic(tmp_path))[0]
    expected = log_mel_examples(trees.sound("cat_1", 3))[1]
    np.testing.assert_array_equal(clip.log_mels()[0], expected)
    np.testing.assert_array_equal(log_mel_examples(second(clip.waveform, 0))[0], expected)
    np.testing.assert_array_equal(opened(tmp_path).sample(0, 0).log_mel_example(), expected)


def test_synthetic_training_draws(tmp_path: Path) -> None:
    """A pure function of (seed, index), of the class's list, and not always the same sound."""
    trees.write_synthetic(tmp_path)
    drawn = lambda **options: [
        i.sounds[0].stem for i in opened(tmp_path, split="train", **options).items
    ]
    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1)[:3] == drawn(seed=1, n_clips=3)
    assert len({tuple(drawn(seed=s)) for s in range(8)}) > 4
    for name, item in zip(drawn(), opened(tmp_path, split="train").items, strict=True):
        assert name.startswith(item.category)
    spread = {synthetic.draw_sound(list("abcd"), 0, i) for i in range(50)}
    assert spread == set("abcd")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_mask_modes(tmp_path: Path, mode: str) -> None:
    """The darkest class color, blue 64, is gray 7: foreground too."""
    trees.write_mask(tmp_path / "m.png", 3, mode)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), trees.mask_array(3) == 1)


@pytest.mark.parametrize("mode", ["1", "P", "RGB"])
def test_mask_modes_in_a_dataset(tmp_path: Path, mode: str) -> None:
    base = trees.write_ms3(tmp_path)
    for i in range(1, 6):
        folder = base / "ms3_data" / "gt_masks" / "test" / "ms3_test_0"
        trees.write_mask(folder / f"ms3_test_0_{i}.png", i, mode)
    check_clip(opened(base), 0, "ms3_test_0", range(1, 6), 0)


def test_sample_reads_only_its_frame(tmp_path: Path) -> None:
    """The other frames may be broken."""
    base = trees.write_s4(tmp_path)
    clips = opened(base)
    whole = list(clips[0].samples())
    for i in (1, 2, 3, 5):
        clips.items[0].frames[i - 1].write_bytes(b"broken")
        clips.items[0].masks[i - 1].write_bytes(b"broken")
    sample = clips.sample(0, 3)
    assert sample.name == "s4_test_0_4" == whole[3].name
    np.testing.assert_array_equal(sample.frame, whole[3].frame)
    np.testing.assert_array_equal(sample.mask, whole[3].mask)
    np.testing.assert_array_equal(sample.waveform, whole[3].waveform)
    np.testing.assert_array_equal(sample.log_mel_example(), whole[3].log_mel_example())
    with pytest.raises(DataError, match="image cannot be read"):
        clips.sample(0, 2)


def test_n_clips(tmp_path: Path) -> None:
    base = trees.write_s4(tmp_path, {"test": 4})
    assert [i.name for i in opened(base, n_clips=2).items] == ["s4_test_0", "s4_test_1"]


@pytest.mark.parametrize("subset", ["s4", "ms3", "v2", "syn"])
@pytest.mark.parametrize(("end", "bom"), [("\r\n", True), ("\r\n", False), ("\n", True)])
def test_byte_order_mark_and_line_ends(tmp_path: Path, subset: str, end: str, bom: bool) -> None:
    name, meta = written(tmp_path, subset)
    expected = [(i.name, i.row) for i in opened(name).items]
    with meta.open(newline="") as file:
        rows = list(csv.reader(file))
    trees.write_csv(meta, rows, end=end, bom=bom)
    assert [(i.name, i.row) for i in opened(name).items] == expected
    opened(name)[0]


def written(root: Path, subset: str) -> tuple[str, Path]:
    """A tree of one subset: the name to open and its metadata file."""
    if subset == "s4":
        return str(base := trees.write_s4(root)), base / "s4_meta_data.csv"
    if subset == "ms3":
        return str(base := trees.write_ms3(root)), base / "ms3_meta_data.csv"
    if subset == "syn":
        return str(trees.write_synthetic(root)), root / "annotations.csv"
    if subset == "v2":
        return str(trees.write_avss(root)), root / "metadata.csv"
    trees.write_v3(root)
    return f"{root}:v3_unseen", root / "v3" / "meta_v3_unseen.csv"


# subset, row of its first test clip counting the header as row 1, and how the file is shown
DAMAGED = [
    ("s4", "row 5 of s4_meta_data.csv"),
    ("ms3", "row 5 of ms3_meta_data.csv"),
    ("v2", "row 13 of metadata.csv"),
    ("v3_unseen", "row 2 of meta_v3_unseen.csv"),
    ("syn", "row 7 of annotations.csv"),
]


@pytest.mark.parametrize(("subset", "row"), DAMAGED)
@pytest.mark.parametrize("kind", ["frame", "mask", "sound"])
def test_missing_file_names_file_and_row(tmp_path: Path, subset: str, row: str, kind: str) -> None:
    clips = opened(written(tmp_path, subset)[0])
    item = clips.items[0]
    gone = {"frame": item.frames[-1], "mask": item.masks[-1], "sound": item.sounds[0]}[kind]
    for path in item.sounds if kind == "sound" else [gone]:
        path.unlink(missing_ok=True)
    for read in (clips.__getitem__, lambda i: clips.sample(i, item.n_frames - 1)):
        with pytest.raises(DataError, match="not found") as error:
            read(0)
        assert error.value.got == f"{gone}, {row}"


@pytest.mark.parametrize(("subset", "row"), DAMAGED)
@pytest.mark.parametrize("seconds", [0.0, 0.9])
def test_short_sound_names_file_and_row(
    tmp_path: Path, subset: str, row: str, seconds: float
) -> None:
    clips = opened(written(tmp_path, subset)[0])
    path = clips.items[0].sounds[0]
    trees.write_wav(path, seconds)
    with pytest.raises(DataError, match="too short") as error:
        clips[0]
    assert str(path) in error.value.got and error.value.got.endswith(row)


def test_synthetic_sound_must_hold_two_examples(tmp_path: Path) -> None:
    clips = opened(trees.write_synthetic(tmp_path))
    trees.write_wav(clips.items[0].sounds[0], 1.9)
    with pytest.raises(DataError, match="too short") as error:
        clips[0]
    assert error.value.expected.startswith("1.935 s")
    trees.write_wav(clips.items[0].sounds[0], 1.94)
    assert clips[0].log_mels().shape == (1, 1, 96, 64)


def test_mask_of_another_size(tmp_path: Path) -> None:
    clips = opened(trees.write_s4(tmp_path))
    trees.write_mask(clips.items[0].masks[2], 1, size=(8, 6))
    with pytest.raises(DataError, match="mask and frame differ in size") as error:
        clips[0]
    assert error.value.got == f"(6, 8) in {clips.items[0].masks[2]}, row 5 of s4_meta_data.csv"


def test_frames_of_two_sizes(tmp_path: Path) -> None:
    clips = opened(trees.write_avss(tmp_path))
    trees.write_frame(clips.items[0].frames[2], 9, size=(8, 6))
    trees.write_mask(clips.items[0].masks[2], 1, "RGB", size=(8, 6))
    with pytest.raises(DataError, match=r"frames differ in size[^$]*row 13 of metadata.csv"):
        clips[0]


@pytest.mark.parametrize(
    ("subset", "column"), [("s4", "split"), ("ms3", "split"), ("v2", "label"), ("v3", "uid")]
)
def test_row_with_too_few_columns(tmp_path: Path, subset: str, column: str) -> None:
    name, meta = written(tmp_path, subset)
    lines = meta.read_text().splitlines()
    lines[2] = lines[2].split(",")[0]
    meta.write_text("\n".join(lines))
    with pytest.raises(DataError, match="row with too few columns") as error:
        opened(name)
    assert f"1 columns in {meta}, row 3 of {meta.name}" == error.value.got
    assert error.value.expected.startswith(column)


def test_synthetic_rows(tmp_path: Path) -> None:
    """Training rows may end before audio_name; test rows may not."""
    name, meta = written(tmp_path, "syn")
    lines = meta.read_text().splitlines()
    meta.write_text("\n".join(line.removesuffix(",") for line in lines))
    assert len(opened(name, split="train")) == 8
    meta.write_text("\n".join([*lines, "a,b,0,0,cat,3,x,test"]))
    with pytest.raises(DataError, match=r"row with too few columns[^$]*row 14 of annotations"):
        opened(name)
    meta.write_text("\n".join([*lines, "a,b,0,0,cat,99,x,train,"]))
    with pytest.raises(DataError, match=r"class without sounds[^$]*cls_id 99"):
        opened(name, split="train")


def test_metadata_file_errors(tmp_path: Path) -> None:
    name, meta = written(tmp_path, "v2")
    text = meta.read_text()
    meta.write_text(text.replace("uid", "id", 1))
    with pytest.raises(DataError, match=r"column not in the metadata file[^$]*expected: uid"):
        opened(name)
    meta.write_text("")
    with pytest.raises(DataError, match="metadata file is empty"):
        opened(name)
    meta.write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(DataError, match="metadata file cannot be read"):
        opened(name)
    meta.write_text(text + "\nx,x_0,0,0,man,test,v9")
    with pytest.raises(DataError, match="unknown label") as error:
        opened(name)
    assert "v9" in error.value.got


def test_source_only_where_stored(tmp_path: Path) -> None:
    trees.write_avss(tmp_path)
    with pytest.raises(DataError, match=r"v2 has no such source[^$]*auto, wav"):
        opened(tmp_path, source="log_mel")


def test_category_of() -> None:
    assert avss.category_of("h orse") == "horse"
    assert avss.category_of("piano_emergency-car") == "piano_emergency-car"


def test_native_size_is_kept(tmp_path: Path) -> None:
    clips = opened(trees.write_avss(tmp_path))
    for i, path in enumerate(clips.items[0].frames):
        Image.new("RGB", (64, 36)).save(path)
        trees.write_mask(clips.items[0].masks[i], 0, "RGB", size=(64, 36))
    assert clips[0].frames.shape == (10, 36, 64, 3)


def test_wrong_sound_of_ms3_is_the_next_clip(tmp_path: Path) -> None:
    """MS3 names no categories: any other clip has another sound."""
    from save_deploy.data.sound_swap import swap_sound

    trees.write_ms3(tmp_path)
    clips = open_dataset(str(tmp_path / "Multi-sources"))
    swapped = swap_sound(clips, "wrong")
    assert len(clips) > 1
    np.testing.assert_array_equal(swapped[0].waveform, clips[1].waveform)
    assert not np.array_equal(swapped[0].waveform, clips[0].waveform)


def test_a_table_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    """Sparse: it takes no room on the disk."""
    table = tmp_path / "s4_meta_data.csv"
    table.write_text("name,category,split\n")
    os.truncate(table, 1 << 40)
    with pytest.raises(DataError, match="too large"):
        read_table(table)
