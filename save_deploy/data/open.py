"""A dataset by the name people type: scenes, scenes:ms3, stamps, stamps:ms3, or an AVSBench folder."""

from __future__ import annotations

from pathlib import Path

from save_deploy.data.compose import Actor, Staging
from save_deploy.data.sample import ClipDataset
from save_deploy.errors import DataError


def open_dataset(
    name: str,
    *,
    split: str = "test",
    n_clips: int | None = None,
    seed: int = 0,
    n_sources: int | None = 1,
    staging: Staging | None = None,
) -> ClipDataset:
    """-> indexed clips. n_clips bounds the size; n_sources and staging apply to generated data, where
    n_sources None means a training mixture. `scenes:ms3` and `stamps:ms3` have two sources."""
    base, _, subset = name.partition(":")
    if base in ("scenes", "stamps"):
        if subset not in ("", "s4", "ms3"):
            raise DataError("unknown subset", got=name, expected=f"{base}, {base}:s4 or {base}:ms3")
        if subset == "ms3":
            n_sources, staging = 2, staging or Staging(n_objects=(3, 5))
        kwargs = dict(n_clips=n_clips or 200, seed=seed, n_sources=n_sources, staging=staging)
        if base == "scenes":
            from save_deploy.data.scenes import Scenes

            return Scenes(split, **kwargs)  # type: ignore[arg-type]
        from save_deploy.data.stamps import StampScenes

        return StampScenes(split, **kwargs)  # type: ignore[arg-type]
    from save_deploy.data.avsbench import open_avsbench

    return open_avsbench(Path(name), split=split, n_clips=n_clips)


def generated_actors(name: str) -> tuple[Actor, ...]:
    """Objects and sounds that generated data is made of; none for a folder."""
    match name.partition(":")[0]:
        case "scenes":
            from save_deploy.data import scenes

            return scenes.actors()
        case "stamps":
            from save_deploy.data import stamps

            return stamps.actors()
    return ()
