"""Opening of a dataset by name: scenes, scenes:ms3, stamps, stamps:ms3, or a folder as released.

stamps:seen and stamps:unseen, and with two sources stamps:seen_ms3 and stamps:unseen_ms3, have
different objects.
A folder is DIR or DIR:subset with s4, ms3, v2, v1s, v1m, avss, v3_seen, v3_unseen, v3_1_shot,
v3_3_shot, v3_5_shot or syn. Without a subset it is detected from the metadata file.
"""

from __future__ import annotations

from save_deploy.data.compose import Actor, Staging
from save_deploy.data.find import Place, resolve
from save_deploy.data.find import find_dataset as find_dataset
from save_deploy.data.released import ReleasedClips
from save_deploy.data.sample import ClipDataset
from save_deploy.data.skipping import SkippingDataset
from save_deploy.errors import DataError

_ONE_SOURCE, _TWO_SOURCES = ("", "s4"), ("ms3",)
_HELD_OUT = ("seen", "unseen", "seen_ms3", "unseen_ms3")  # of stamps


def open_dataset(
    name: str,
    *,
    split: str = "test",
    n_clips: int | None = None,
    seed: int = 0,
    n_sources: int | None = 1,
    staging: Staging | None = None,
    source: str = "auto",
    skip_bad: bool = False,
) -> ClipDataset:
    """Return a dataset of indexed clips.

    n_clips: maximum number of clips.
    n_sources, staging: for generated data only; n_sources None is a training mixture. Subsets that
        end with ms3 have two sources.
    source: for S4 and MS3: auto (wav, else log-mel, else the video's sound), wav, log_mel, or video
        (frames and sound).
    skip_bad: return a SkippingDataset, which skips unreadable clips.
    """
    base, _, subset = name.partition(":")
    if base in ("scenes", "stamps"):
        subsets = (*_ONE_SOURCE, *_TWO_SOURCES, *(_HELD_OUT if base == "stamps" else ()))
        if subset not in subsets:
            names = ", ".join(f"{base}:{one}" if one else base for one in subsets)
            raise DataError("unknown subset", got=name, expected=f"one of {names}")
        two = subset.endswith("ms3")
        clips = _generated(
            base,
            split,
            among=_among(subset),
            n_clips=n_clips,
            seed=seed,
            n_sources=2 if two else n_sources,
            staging=staging or (Staging(n_objects=(3, 5)) if two else None),
        )
        return SkippingDataset(clips) if skip_bad else clips
    released = list_released(resolve(name), split, n_clips=n_clips, seed=seed, source=source)
    if released.bad_rows and not skip_bad:
        raise next(iter(released.bad_rows.values()))
    if not released.items:
        raise DataError(
            "the split has no clips",
            got=f"{split} of {name}",
            expected="rows of this split in the metadata file",
        )
    return SkippingDataset(released, bad_rows=released.bad_rows) if skip_bad else released


def list_released(
    place: Place,
    split: str,
    *,
    n_clips: int | None = None,
    seed: int = 0,
    source: str = "auto",
) -> ReleasedClips:
    """Return the clips of one split of a subset; its bad_rows are the unusable rows.

    Raises DataError for an unknown split and an unusable metadata file.
    """
    if place.subset == "syn" and split == "validate":
        split = "val"
    if split not in place.splits:
        raise DataError(
            "unknown split", got=f"{split} of {place.subset}", expected=", ".join(place.splits)
        )
    meta = place.metadata(split)
    if meta is None:
        raise DataError(
            "no metadata of this split",
            got=f"{split} of {place.name}",
            expected=f"one of {', '.join(s for s in place.splits if place.metadata(s))}",
        )
    found = place.family.listing(
        place.folder, meta, place.subset, split, source=source, seed=seed, limit=n_clips
    )
    return ReleasedClips(found)


def _generated(
    base: str,
    split: str,
    *,
    among: str,
    n_clips: int | None,
    seed: int,
    n_sources: int | None,
    staging: Staging | None,
) -> ClipDataset:
    kwargs = dict(n_clips=n_clips or 200, seed=seed, n_sources=n_sources, staging=staging)
    if base == "scenes":
        from save_deploy.data.scenes import Scenes

        return Scenes(split, **kwargs)  # type: ignore[arg-type]
    from save_deploy.data.stamps import StampScenes

    return StampScenes(split, among=among, **kwargs)  # type: ignore[arg-type]


def _among(subset: str) -> str:
    """Return the objects of a subset: "seen", "unseen", or "" for all."""
    return subset.partition("_")[0] if subset in _HELD_OUT else ""


def generated_actors(name: str) -> tuple[Actor, ...]:
    """Return the objects of generated data, () for a folder."""
    base, _, subset = name.partition(":")
    match base:
        case "scenes":
            from save_deploy.data import scenes

            return scenes.actors()
        case "stamps":
            from save_deploy.data import stamps

            return stamps.actors(_among(subset))
    return ()
