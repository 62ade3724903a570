"""Export the masks of a run as COCO JSON, SA-V JSON or PNG.

Masks are copied from the mask files at their stored size; nothing is computed again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from PIL import Image

from save_deploy.errors import DataError, OutputError
from save_deploy.extras import named_extras
from save_deploy.files import check_file_target, check_folder_target, new_file, new_folder
from save_deploy.progress import progress, raise_if_interrupted
from save_deploy.runtime.bulk.masks import Row, frames_done, read_rows
from save_deploy.runtime.bulk.place import Place
from save_deploy.runtime.bulk.videos import Video

KINDS = ("coco", "sav", "png")
_CATEGORY = {"id": 1, "name": "sounding"}
_WHAT = "the export"
# SA-V's limits of masklet sizes in pixels
_SMALL, _MEDIUM = 32**2, 96**2


@dataclass(frozen=True)
class Exported:
    """Number of exported videos and frames. missing: videos of the run without masks."""

    videos: int
    frames: int
    missing: int


@named_extras()
def export_masks(out: Path, kind: str, target: Path, *, force: bool = False) -> Exported:
    """Export the masks of the run in folder `out`.

    kind: coco writes one file; sav a folder with one JSON per video; png a folder with one folder of
    PNGs per video.
    Raises DataError for a folder without a run and for files in it that no run writes, OutputError for
    the target.
    """
    if kind not in KINDS:
        raise DataError("wrong --export", got=kind, expected=", ".join(KINDS))
    place = Place(out)
    run, done, missing = _done_in(place)
    if kind == "coco":
        check_file_target(target, force=force)
        with new_file(target, what=_WHAT, replace=force) as partial, partial.open("w") as file:
            frames = _write_coco(file, done, run)
    else:
        check_folder_target(target, force=force, is_ours=_no_folder_is_ours)
        with new_folder(target, what=_WHAT) as folder:
            write = _write_sav if kind == "sav" else _write_pngs
            frames = sum(write(folder, video, path) for video, path in _each(done))
    return Exported(len(done), frames, missing)


Done = list[tuple[Video, Path]]


def _done_in(place: Place) -> tuple[str, Done, int]:
    """Return the hash of the run, its videos with mask files, and the number of videos without."""
    if not place.run.is_file():
        raise DataError(
            "no run in this folder", got=str(place.root), expected="a folder OUT of save-run -o OUT"
        )
    run = place.hash
    videos = place.videos()
    found = [(video, place.mask_file(video.id)) for video in videos]
    done = [(v, p) for v, p in found if frames_done(p, run=run, video=v.hash) is not None]
    if not done:
        raise DataError(
            "no masks in this run", got=str(place.root), expected="at least one finished video"
        )
    return run, done, len(videos) - len(done)


def _each(done: Done) -> Iterator[tuple[Video, Path]]:
    with progress("videos", len(done)) as advance:
        for video, path in done:
            yield video, path
            advance()
            raise_if_interrupted()


def _write_coco(file: TextIO, done: Done, run: str) -> int:
    """Write one image per frame and one annotation per non-empty mask; return the number of frames.

    Annotations come first and are streamed. Image entries, which are small, are collected for the
    end, so memory grows with frames but not with masks.
    """
    info = {"description": "masks of sounding pixels, made by save-deploy", "run": run}
    file.write(f'{{"info": {json.dumps(info)}, "categories": [{json.dumps(_CATEGORY)}],')
    file.write('\n"annotations": [')
    images, n = list[str](), 0
    for video, path in _each(done):
        for number, row in enumerate(read_rows(path)):
            image = {
                "id": len(images) + 1, "file_name": f"{video.id}/{number:06d}.png",
                "height": row.height, "width": row.width, "video_id": video.id, "t_s": row.t_s,
            }  # fmt: skip
            images.append(json.dumps(image))
            if row.share > 0:
                n += 1
                file.write(",\n" if n > 1 else "\n")
                file.write(json.dumps(_annotation(n, len(images), row)))
    file.write('\n],\n"images": [\n' + ",\n".join(images) + "\n]}\n")
    return len(images)


def _annotation(number: int, image: int, row: Row) -> dict[str, object]:
    from pycocotools import mask as coco

    return {
        "id": number,
        "image_id": image,
        "category_id": _CATEGORY["id"],
        "segmentation": row.rle,
        "area": int(coco.area(row.rle)),
        "bbox": [float(v) for v in coco.toBbox(row.rle)],
        "iscrowd": 0,
    }


def _write_sav(folder: Path, video: Video, path: Path) -> int:
    """Write ID_auto.json with one masklet, with the keys of SA-V; unmeasured values are empty."""
    if not (rows := list(read_rows(path))):
        return 0  # a section without frames has no masklet
    areas = [round(row.share * row.height * row.width) for row in rows]
    seen = [bool(area) for area in areas]
    shown = [area for area in areas if area]
    mean = sum(shown) / len(shown) if shown else 0.0
    pixels = rows[0].height * rows[0].width
    changes = sum(a != b for a, b in itertools.pairwise(seen))
    bucket = "small" if mean < _SMALL else "medium" if mean < _MEDIUM else "large"
    about = {
        "video_id": video.id,
        "video_duration": rows[-1].t_s,
        "video_frame_count": float(len(rows)),
        "video_height": float(rows[0].height),
        "video_width": float(rows[0].width),
        "video_resolution": float(pixels),
        "video_environment": "",
        "video_split": "",
        "masklet": [[row.rle] for row in rows],
        "masklet_id": [0],
        "masklet_size_rel": [mean / pixels],
        "masklet_size_abs": [mean],
        "masklet_size_bucket": [bucket],
        "masklet_visibility_changes": [changes],
        "masklet_first_appeared_frame": [float(seen.index(True)) if shown else 0.0],
        "masklet_frame_count": [len(rows)],
        "masklet_edited_frame_count": [0],
        "masklet_type": ["auto"],
        "masklet_stability_score": [[]],
        "masklet_num": 1,
        "t_s": [row.t_s for row in rows],
    }
    (folder / f"{video.id}_auto.json").write_text(json.dumps(about))
    return len(rows)


def _write_pngs(folder: Path, video: Video, path: Path) -> int:
    """Write ID/000000.png, ... as 1-bit PNG, white = sounding."""
    (folder / video.id).mkdir()
    n = 0
    for n, row in enumerate(read_rows(path), 1):
        Image.fromarray(row.mask()).save(folder / video.id / f"{n - 1:06d}.png")
    return n


def _no_folder_is_ours(folder: Path) -> None:
    raise OutputError("the folder is not empty")
