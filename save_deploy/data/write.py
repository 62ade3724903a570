"""Writing of generated scenes as a dataset in the layout of AVSBench (SPEC 4.1, 4.2)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from save_deploy.data.audio import name_of
from save_deploy.data.compose import SPLITS, Staging
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.open import open_dataset
from save_deploy.data.sample import ClipDataset
from save_deploy.errors import DataError
from save_deploy.files import new_folder

FOLDERS = {"s4": "Single-source", "ms3": "Multi-sources"}


def write_avsbench(
    root: Path,
    *,
    name: str,
    subset: str,
    counts: dict[str, int],
    size_px: int = 256,
    seed: int = 0,
    on_clip: Callable[[], object] = lambda: None,
) -> None:
    """Write scenes or stamps as subset s4 (one source) or ms3 (two sources).

    counts: number of clips by split.
    Frames and masks are PNG, the sound is 16 kHz wav. As in AVSBench, S4 training clips have only
    their first frame annotated. The folder appears when it is complete.
    """
    if name not in ("scenes", "stamps") or subset not in FOLDERS:
        raise DataError(
            "unknown data", got=f"{name} {subset}", expected="scenes or stamps, s4 or ms3"
        )
    base = root / FOLDERS[subset]
    if base.exists():
        raise DataError(
            "dataset exists", got=str(base), expected="a new folder", hint="choose another -o DIR"
        )
    n_sources = {"s4": 1, "ms3": 2}[subset]
    staging = Staging(size_px=size_px, n_objects=(n_sources + 1, n_sources + 3))
    rows: list[list[str]] = []
    with new_folder(base, what="the dataset") as made:
        data = made / f"{subset}_data"
        for split in SPLITS:
            if not counts.get(split):
                continue
            scenes = open_dataset(
                name,
                split=split,
                n_clips=counts[split],
                seed=seed,
                n_sources=n_sources,
                staging=staging,
            )
            with ThreadPoolExecutor(2) as pool:
                jobs = [
                    pool.submit(_write_clip, data, subset, split, scenes, i)
                    for i in range(len(scenes))
                ]
                try:
                    for job in jobs:
                        rows.append(job.result())
                        on_clip()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        header = ["name", "start", "category", "split"] if subset == "s4" else ["name", "split"]
        with (made / f"{subset}_meta_data.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def _write_clip(data: Path, subset: str, split: str, scenes: ClipDataset, index: int) -> list[str]:
    """Write the files of one clip and return its metadata row."""
    clip = scenes[index]
    import soundfile

    s4 = subset == "s4"
    place = Path(split) / clip.category if s4 else Path(split)
    frames = data / "visual_frames" / (place / clip.name if s4 else clip.name)
    masks = data / "gt_masks" / place / clip.name
    sound = data / "audio_wav" / place / f"{clip.name}.wav"
    for folder in (frames, masks, sound.parent):
        folder.mkdir(parents=True, exist_ok=True)
    prefix = clip.name if s4 else f"{clip.name}.mp4"
    annotated = 1 if s4 and split == "train" else len(clip.masks)
    for i, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(frames / f"{prefix}_{i + 1}.png", compress_level=1)
    for i, mask in enumerate(clip.masks[:annotated]):
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{clip.name}_{i + 1}.png")
    soundfile.write(name_of(sound), clip.waveform, SAMPLE_RATE_HZ, subtype="PCM_16")
    return [clip.name, "0", clip.category, split] if s4 else [clip.name, split]
