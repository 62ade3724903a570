"""Small trees in exactly the layout of the released datasets (SPEC 4), for tests to read and damage.

Every frame of a clip has one gray level, `shade(name, i)`, and every mask one white column, column i,
so that a test knows which file a frame or mask came from.
"""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from PIL import Image

RATE = 16_000
SIZE = (16, 12)  # width, height
CATEGORY = "dog_barking"
DARKEST = (0, 0, 64)  # the class color of least gray in AVSS's palette: gray 7
AVSS_HEADER = ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"]
UNSEEN_OBJECT = "guzheng_emergency-car"


def shade(name: str, index: int) -> int:
    return 20 + sum(map(ord, name)) % 100 + 10 * index


def write_csv(
    path: Path, rows: Iterable[list[object]], *, end: str = "\n", bom: bool = False
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        csv.writer(file, lineterminator=end).writerows(rows)


def write_frame(path: Path, level: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path, quality=95)


def mask_array(column: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, column] = 1
    return mask


def write_mask(path: Path, column: int, mode: str = "L", size: tuple[int, int] = SIZE) -> None:
    """Column `column` is foreground: 255 in L, palette entry 1 in P, the darkest class in RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = mask_array(column, size)
    if mode == "RGB":
        image = Image.fromarray((mask[..., None] * np.array(DARKEST)).astype(np.uint8), "RGB")
    elif mode == "P":
        image = Image.fromarray(mask, "P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    else:
        image = Image.fromarray(mask * 255).convert(mode)
    assert image.mode == mode
    image.save(path)


def sound(name: str, seconds: float) -> np.ndarray:
    """Noise that differs by name: no two examples of it are alike."""
    rng = np.random.default_rng(sum(map(ord, name)))
    return (0.1 * rng.normal(size=round(seconds * RATE))).clip(-1, 1).astype(np.float32)


def write_wav(path: Path, seconds: float, name: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(name or path.stem, seconds), RATE, subtype="FLOAT")


def write_log_mel(path: Path, examples: np.ndarray) -> None:
    """As AVSBench: pickle.dump of one tensor that wants a gradient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump(torch.from_numpy(examples).requires_grad_(), file)


def write_video(
    path: Path,
    *,
    seconds: float = 5,
    fps: int = 16,
    size: tuple[int, int] = (64, 48),
    sound: np.ndarray | None = None,
    rate: int = 44_100,
) -> None:
    """Frame k has gray level 2k. sound float32 (channels,n) at `rate`, None for a silent file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.bit_rate = 2_000_000
        if sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream("aac", rate=rate, layout=layout)
        for k in range(round(seconds * fps)):
            level = np.full((size[1], size[0], 3), min(2 * k, 255), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(level, "rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound, np.float32), "fltp", layout
            )
            frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def write_s4(
    root: Path, counts: dict[str, int] | None = None, *, kinds: tuple[str, ...] = ("wav",)
) -> Path:
    """Single-source/: names s4_<split>_<i>; kinds of sound: wav, log_mel, video."""
    base, rows = root / "Single-source", [["name", "start", "category", "split"]]
    data = base / "s4_data"
    for split, n in (counts or {"train": 2, "val": 1, "test": 2}).items():
        for i in range(n):
            name, place = f"s4_{split}_{i}", Path(split) / CATEGORY
            rows.append([name, "3", CATEGORY, split])
            _objects_clip(
                data, place / name / name, place / name / name, 1 if split == "train" else 5
            )
            _objects_sounds(data, place / name, place / name, kinds)
    write_csv(base / "s4_meta_data.csv", rows)
    return base


def write_ms3(
    root: Path, counts: dict[str, int] | None = None, *, kinds: tuple[str, ...] = ("wav",)
) -> Path:
    """Multi-sources/: names ms3_<split>_<i>; frames carry `.mp4` in their name, and no split."""
    base, rows = root / "Multi-sources", [["name", "split"]]
    data = base / "ms3_data"
    for split, n in (counts or {"train": 2, "val": 1, "test": 2}).items():
        for i in range(n):
            name = f"ms3_{split}_{i}"
            rows.append([name, split])
            _objects_clip(data, Path(name) / f"{name}.mp4", Path(split) / name / name, 5)
            _objects_sounds(data, Path(split) / name, Path(name), kinds)
    write_csv(base / "ms3_meta_data.csv", rows)
    return base


def _objects_clip(data: Path, frames: Path, masks: Path, n_masks: int) -> None:
    for i in range(1, 6):
        name = masks.name
        write_frame(data / "visual_frames" / f"{frames}_{i}.png", shade(name, i))
    for i in range(1, n_masks + 1):
        write_mask(data / "gt_masks" / f"{masks}_{i}.png", i)


def _objects_sounds(data: Path, place: Path, video: Path, kinds: tuple[str, ...]) -> None:
    if "wav" in kinds:
        write_wav(data / "audio_wav" / f"{place}.wav", 5)
    if "log_mel" in kinds:
        write_log_mel(data / "audio_log_mel" / f"{place}.pkl", log_mel_of(place.name))
    if "video" in kinds:
        tone = sound(place.name, 5)[None]
        write_video(data / "raw_videos" / f"{video}.mp4", sound=tone, rate=RATE)


def log_mel_of(name: str, n: int = 5) -> np.ndarray:
    """What write_log_mel stores for a clip: float32 (n,1,96,64)."""
    rng = np.random.default_rng(1000 + sum(map(ord, name)))
    return rng.normal(size=(n, 1, 96, 64)).astype(np.float32)


def write_avss_clip(
    root: Path, label: str, uid: str, *, n_masks: int, seconds: float | None = None
) -> None:
    n_frames = 10 if label == "v2" else 5
    place = root / label / uid
    for i in range(n_frames):
        write_frame(place / "frames" / f"{i}.jpg", shade(uid, i))
    for i in range(n_masks):
        write_mask(place / "labels_rgb" / f"{i}.png", i, "RGB")
    write_wav(place / "audio.wav", n_frames if seconds is None else seconds, uid)


def write_avss(root: Path, labels: tuple[str, ...] = ("v1s", "v1m", "v2")) -> Path:
    """metadata.csv and two training, one validation and one test clip of each label."""
    rows: list[list[object]] = [AVSS_HEADER]
    for label in labels:
        for split, n in {"train": 2, "val": 1, "test": 1}.items():
            for i in range(n):
                uid = f"{label}_{split}_{i}_0_10000"
                a_obj = "h orse" if label == "v1s" and split == "train" else "hair-dryer_man"
                rows.append([uid[:-8], uid, 0, 0, a_obj, split, label])
                only_first = label == "v1s" and split == "train"
                n_masks = 1 if only_first else 10 if label == "v2" else 5
                write_avss_clip(root, label, uid, n_masks=n_masks)
    write_csv(root / "metadata.csv", rows)
    return root


def write_v3(root: Path, *, folder: str = "v3") -> Path:
    """Seen and unseen clips in root/v2 and root/v1m, the csv files in root/<folder>."""
    base = root / folder
    seen = [("v2", "seen_a"), ("v1m", "seen_b"), ("v2", "seen_c")]
    unseen = [("v2", f"unseen_{i}") for i in range(4)] + [("v1m", "unseen_m")]
    for label, uid in seen + unseen:
        write_avss_clip(root, label, uid, n_masks=10 if label == "v2" else 5)

    def rows(clips: list[tuple[str, str]], split: str, a_obj: str) -> list[list[object]]:
        times = ["0", "10"] if a_obj else ["", ""]
        return [AVSS_HEADER, *([u, u, *times, a_obj, split, label] for label, u in clips)]

    write_csv(base / "meta_v3_seen.csv", rows(seen, "seen", "piano_cello"))
    write_csv(base / "meta_v3_seen_train.csv", rows(seen[:2], "seen_train", "piano_cello"))
    write_csv(base / "meta_v3_seen_val.csv", rows(seen[2:], "seen_val", "piano_cello"))
    write_csv(base / "meta_v3_unseen.csv", rows(unseen, "unseen", UNSEEN_OBJECT))
    for k, n in {1: 1, 3: 2, 5: 3}.items():  # as released: objects blank, split wrong
        few = base / f"v3_{k}_shot"
        write_csv(few / "train.csv", rows(unseen[:n], "v3_1_shot_train", ""))
        write_csv(few / "test.csv", rows(unseen[n:], "v3_1_shot_train", ""))
    return root


def write_synthetic(root: Path) -> Path:
    """Of each of two classes, four training rows and one each to validate and to test."""
    header = ["inst_id", "img_id", "a", "b", "cls_name", "cls_id", "dataset", "split", "audio_name"]
    sounds = {3: [f"cat_{i}" for i in range(8)], 7: ["piano_0", "piano_1"]}
    rows: list[list[object]] = [header]
    for cls_id, cls_name in {3: "cat", 7: "piano"}.items():
        for i in range(4):
            rows.append([f"{cls_name}_train_{i}", f"img_{cls_name}", 0, 0, cls_name, cls_id, "x"])
            rows[-1] += ["train", ""]
        for split in ("validate", "test"):
            row = [f"{cls_name}_{split}", f"img_{cls_name}", 0, 0, cls_name, cls_id, "x"]
            rows.append([*row, split, sounds[cls_id][1]])
        write_frame(root / "images" / f"img_{cls_name}.jpg", shade(cls_name, 0))
    for k, row in enumerate(rows[1:]):
        write_mask(root / "masks" / f"{row[0]}.png", k, "1")
    for name in sounds[3] + sounds[7]:
        write_wav(root / "audios" / f"{name}.wav", 3)
    with (root / "category_for_vggsound_audios.pkl").open("wb") as file:
        pickle.dump(sounds, file)
    write_csv(root / "annotations.csv", rows)
    return root
