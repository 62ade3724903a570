"""Plan a comparison: try every bundle on every backend, and group entries by their reference."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import WINDOW_SAMPLES, Manifest
from save_deploy.config import SaveConfig
from save_deploy.errors import BackendError, SaveDeployError
from save_deploy.runtime.compare.entries import REFERENCE, EagerSource, Entry, bundle_mb
from save_deploy.runtime.compare.options import ALL, CompareOptions
from save_deploy.runtime.eager_mode import EagerMode, choose_device, named_mode
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session.open import BACKENDS, known_backend
from save_deploy.runtime.session.ort_cuda import CudaOptions
from save_deploy.weight_files import check_weights

# optional rows of the eager model on CUDA
FURTHER = ("compile", "eager-fp16", "eager-bf16", "compile-fp16")


@dataclass(frozen=True)
class Group:
    """Entries of one checkpoint at one resolution and batch; the first one is the reference.

    words: text that distinguishes this group from the others; "" for a single group.
    """

    config: SaveConfig
    entries: tuple[Entry, ...]
    words: str = ""


@dataclass(frozen=True)
class Plan:
    """Groups to run.

    bundles: label -> folder and manifest.
    left_out: one text per backend of `all` that cannot run.
    """

    groups: tuple[Group, ...]
    bundles: dict[str, tuple[Path, Manifest]]
    left_out: tuple[str, ...]


def make_plan(options: CompareOptions) -> Plan:
    """Open every bundle once on every backend, and return the plan.

    A backend given by name must run every bundle; `all` uses the backends that run, at least one.
    Raises BackendError, BundleError, CheckpointError, ParityError (self-test of an engine).
    """
    backends = tuple(known_backend(name, also=(ALL,)) for name in options.backends)
    options = replace(options, backends=backends)
    CudaOptions.parse(options.cuda)
    if options.eager and options.eager_device is not None:
        from save_deploy.runtime.eager import require_device

        require_device(EagerMode(options.eager_device).device)  # before any bundle is opened
    bundles = {
        label: (folder, Manifest.read(folder)) for label, folder in labels(options.bundles).items()
    }
    for folder, manifest in bundles.values():  # all files, before torch is imported
        manifest.verify(folder)
    for path in (*options.checkpoints, *options.sams):
        check_weights(path)
    sources = {label: _source(*bundle, options) for label, bundle in bundles.items()}
    left_out: dict[tuple[str, str], list[str]] = {}
    members: dict[tuple[object, ...], list[Entry]] = {}
    for label, (folder, manifest) in bundles.items():
        found = _entries(label, folder, manifest, options, left_out, several=len(bundles) > 1)
        members.setdefault(_key(manifest), []).extend(found)
    device = choose_device(options.eager_device, [e.backend for m in members.values() for e in m])
    groups = []
    for key, entries in members.items():
        label = entries[0].bundle
        manifest, source = bundles[label][1], sources[label]
        eager = [] if source is None else _eager(source, options, device, left_out)
        words = _words(key, list(members), manifest)
        groups.append(Group(manifest.config, (*eager, *entries), words))
    if not options.eager and all(len(group.entries) == 1 for group in groups):
        raise SaveDeployError(
            "nothing to compare with",
            got="one bundle on one backend, --no-eager",
            expected="a second bundle of the same checkpoint and size, or another --backend",
        )
    lines = (
        f"{backend} left out{_for_some(which, len(bundles))}: {why}"
        for (backend, why), which in left_out.items()
    )
    return Plan(tuple(groups), bundles, tuple(lines))


def _for_some(which: Sequence[str], n_bundles: int) -> str:
    return f" for {', '.join(which)}" if 0 < len(which) < n_bundles else ""


def labels(folders: Sequence[Path]) -> dict[str, Path]:
    """Return label -> folder without duplicates; the label is the folder's name, or its path if two
    folders have the same name."""
    first: dict[Path, Path] = {}
    for folder in folders:
        first.setdefault(folder.resolve(), folder)
    unique = list(first.values())
    names = [folder.resolve().name for folder in unique]
    return {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, unique, strict=True)
    }


def _source(folder: Path, manifest: Manifest, options: CompareOptions) -> EagerSource | None:
    if not options.eager:
        return None
    from save_deploy.runtime.compare.source import builtin_path, find_source

    given = options.checkpoints
    if given and len(options.bundles) > 1:  # of other bundles, perhaps
        with contextlib.suppress(BackendError):  # it is a package of its own
            given = (*given, builtin_path())
    return find_source(folder, manifest, checkpoints=given, sams=options.sams)


def _eager(
    source: EagerSource, options: CompareOptions, device: str,
    left_out: dict[tuple[str, str], list[str]],
) -> list[Entry]:  # fmt: skip
    """The reference: float32 without TF32. On CUDA, further rows: what else torch can do there."""
    from save_deploy.runtime.eager import require_device

    require_device(device)
    modes = [EagerMode(device)]
    if device == "cuda":
        modes += [EagerMode(device, tf32=True)] if options.eager_tf32 else []
        modes += [named_mode(n, device) for n in FURTHER] if options.eager_rows else []
    found = []
    for mode in modes:
        name = REFERENCE if mode == modes[0] else mode.name
        entry = Entry(
            name, REFERENCE, mode.precision, source.n_bytes / 1e6,
            eager=replace(source, mode=mode), threads=options.threads,
        )  # fmt: skip
        why = "" if mode == modes[0] else try_eager(entry)
        if why:
            left_out.setdefault((name, why), [])
        else:
            found.append(entry)
    return found


def try_eager(entry: Entry) -> str:
    """Run an optional eager row once and return why it is left out; "" if it runs.

    Reasons are that torch cannot compile it here, or that its logits overflow.
    """
    try:
        with entry.open() as pipeline:
            rng = np.random.default_rng(0)
            shape = pipeline.model.spec.inputs[0].shape
            embedding = pipeline.embed(rng.uniform(-0.5, 0.5, WINDOW_SAMPLES).astype(np.float32))
            logits = pipeline.run(rng.integers(0, 256, shape, dtype=np.uint8), embedding)
    except Exception as error:  # compilers and CUDA raise many types
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "" if np.isfinite(logits).all() else "its logits are not finite"


def _entries(
    label: str, folder: Path, manifest: Manifest, options: CompareOptions,
    left_out: dict[tuple[str, str], list[str]], *, several: bool,
) -> list[Entry]:  # fmt: skip
    found: dict[str, Entry] = {}
    cuda = CudaOptions.parse(options.cuda)
    first: BackendError | None = None
    asked = [b for b in options.backends if b != ALL]
    tried = asked + [b for b in BACKENDS[1:] if ALL in options.backends and b not in asked]
    for backend in dict.fromkeys(tried):
        try:
            with load(
                folder,
                backend=backend,
                threads=options.threads,
                verify=False,
                self_test=None if options.self_test else False,
                trust=options.trust,
                cuda=cuda,
            ) as pipeline:
                runs, precision = pipeline.backend, pipeline.precision
        except BackendError as error:
            if backend in asked:
                raise _named(error, label) from error
            first = first or error
            left_out.setdefault((backend, error.what), []).append(label)
            continue
        name = f"{runs} {precision}"
        if several:
            name = f"{label} {runs}" if precision in label else f"{label} {name}"
        size = bundle_mb(manifest, runs)
        entry = Entry(
            name, runs, precision, size, label, folder, threads=options.threads, cuda=cuda,
            trust=options.trust,
        )  # fmt: skip
        found.setdefault(runs, entry)
    if not found:
        assert first is not None
        raise _named(first, label)
    return list(found.values())


def _named(error: BackendError, label: str) -> BackendError:
    """Return the error with the bundle's label in its text."""
    return BackendError(
        f"{label}: {error.what}", got=error.got, expected=error.expected, hint=error.hint
    )


def _key(manifest: Manifest) -> tuple[Any, ...]:
    """Return what bundles must share to be compared mask by mask."""
    files = manifest.source["files"]
    hashes = tuple(file["sha256"] for file in files)
    return manifest.config.res, manifest.model.inputs[0].shape[0], hashes


def _words(key: tuple[Any, ...], keys: list[tuple[Any, ...]], manifest: Manifest) -> str:
    """Return the parts of a group's key that differ between groups: 256 px, 5 frames a call, ..."""
    res, batch, hashes = key
    names = [Path(file["name"]).stem for file in manifest.source["files"]]
    words = (f"{res} px", f"{batch} frames a call", f"{' + '.join(names)} {hashes[0][:6]}")
    differ = [len({k[i] for k in keys}) > 1 for i in range(3)]
    return ", ".join(word for word, d in zip(words, differ, strict=True) if d)


def with_dataset(group: Group, name: str) -> str:
    """Return the dataset's name for the report, with the group's words."""
    return f"{name}, {group.words}" if group.words else name
