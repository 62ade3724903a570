"""Graphs with packed weights in the cache: the same masks to the byte, and never of another file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from save_deploy.bundle import Manifest, record_files
from save_deploy.errors import BundleError
from save_deploy.libraries import import_onnxruntime
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session import open_session, packed
from save_deploy.runtime.session.compiled import digest_of_sums
from save_deploy.runtime.session.open import Content

FILES = {packed.GRAPH, packed.DATA, packed.RECORD}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("save_deploy.runtime.session.ort._PACKED_FROM_BYTES", 0)
    return tmp_path / "cache"


def logits(folder: Path, *, backend: str = "onnxruntime", **options: Any) -> np.ndarray:
    """Of three pictures and sounds."""
    rng = np.random.default_rng(0)
    with load(folder, backend=backend, threads=options.pop("threads", 1), **options) as pipeline:
        side = pipeline.config.res
        images = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
        sounds = rng.normal(size=(3, 16_000)).astype(np.float32) / 10
        return pipeline.run(images, np.concatenate([pipeline.embed(s) for s in sounds]))


def places(cache: Path) -> list[Path]:
    """Cached graphs, and nothing else but locks."""
    kept = sorted(path.parent for path in cache.glob(f"onnxruntime/*/*/{packed.RECORD}"))
    files = {path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert {path.parent for path in files if "onnxruntime" in path.parts} == {*kept}
    return kept


@pytest.fixture(scope="module")
def plain(bundle_fp32: Path) -> np.ndarray:
    """Without a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAVE_DEPLOY_CACHE", "/proc/nowhere")
        return logits(bundle_fp32)


@pytest.mark.parametrize("told", ["int8", "fp32"])
def test_int8_is_not_cached(bundle_int8: Path, cache: Path, tmp_path: Path, told: str) -> None:
    """ONNX Runtime 1.31 crashes with packed INT8 weights of a file; masks are those without a cache.

    Also when the manifest says that the graph is FP32. The twin: the float graph beside it is kept.
    """
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_int8, folder)
    manifest = Manifest.read(folder)
    replace(manifest, precision={**manifest.precision, "precision": told}).write(folder)
    found = logits(folder)
    kept = manifest.content_of("audio.onnx", [n for n in manifest.files if n == "audio.onnx.data"])
    assert [place.parent.name for place in places(cache)] == [kept[:16]]
    assert logits(folder, verify=False).tobytes() == found.tobytes()


@pytest.fixture
def other(bundle_fp32: Path, tmp_path: Path) -> Path:
    """Another bundle: one weight matrix has other numbers, the hashes are right."""
    folder = tmp_path / "other"
    shutil.copytree(bundle_fp32, folder)
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.size > 10_000:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.5), tensor.name))
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest.read(folder)
    replace(manifest, files=record_files(folder)).write(folder)
    return folder


def test_masks_are_equal_to_the_byte(bundle_fp32: Path, cache: Path, plain: np.ndarray) -> None:
    """When the graph is written and when it is read, whatever the number of threads."""
    assert logits(bundle_fp32).tobytes() == plain.tobytes()
    written = {place: (place / packed.DATA).stat().st_mtime_ns for place in places(cache)}
    assert len(written) == 2  # of both graphs
    assert all({f.name for f in place.iterdir()} == FILES for place in written)
    for threads in (1, 2):
        assert logits(bundle_fp32, threads=threads).tobytes() == plain.tobytes()
    assert {p: (p / packed.DATA).stat().st_mtime_ns for p in places(cache)} == written


def test_weights_are_mapped_and_not_packed_again(
    bundle_fp32: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(bundle_fp32)
    place = max(places(cache), key=lambda p: (p / packed.DATA).stat().st_size)
    refuse = lambda *_, **__: pytest.fail("written again")
    monkeypatch.setattr(packed, "_written", refuse)
    with load(bundle_fp32, backend="onnxruntime", threads=1):
        maps = Path("/proc/self/maps").read_text()
    assert str(place / packed.DATA) in maps
    assert str(bundle_fp32 / "model.onnx") not in maps
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", "/proc/nowhere")
    with load(bundle_fp32, backend="onnxruntime", threads=1):
        assert str(cache) not in Path("/proc/self/maps").read_text()


def test_another_bundle_has_its_own(
    bundle_fp32: Path, other: Path, tmp_path: Path, cache: Path, plain: np.ndarray
) -> None:
    """And a copy of the same bundle shares what is there."""
    logits(bundle_fp32)
    changed = logits(other)
    assert np.abs(changed - plain).max() > 1e-3
    assert logits(other).tobytes() == changed.tobytes() and len(places(cache)) == 3
    shutil.copytree(bundle_fp32, tmp_path / "copy")
    assert logits(tmp_path / "copy").tobytes() == plain.tobytes() and len(places(cache)) == 3


def test_another_version_or_cpu_has_its_own(
    bundle_fp32: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(bundle_fp32)
    monkeypatch.setattr(import_onnxruntime(), "__version__", "1.99.0")
    logits(bundle_fp32)
    assert len(places(cache)) == 4
    flags = "save_deploy.runtime.session.ort.cpu_flags"
    monkeypatch.setattr(flags, lambda: frozenset({"avx9"}))
    logits(bundle_fp32)
    assert len(places(cache)) == 6


def test_other_int8_kernels_have_their_own(bundle_fp32: Path, cache: Path) -> None:
    """A graph made for exact kernels is not read for fast ones, which saturate with large weights."""
    manifest = Manifest.read(bundle_fp32)
    for small in (False, True, False):
        content = Content(manifest.content_of("model.onnx", ()), (), small, lambda: None)
        open_session(
            "onnxruntime", bundle_fp32 / "model.onnx", manifest.model, threads=1, content=content
        ).close()
    assert len(places(cache)) == 2


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit of the weights": lambda place: _flipped(place / packed.DATA),
    "cut weights": lambda place: os.truncate(place / packed.DATA, 5000),
    "no weights": lambda place: (place / packed.DATA).unlink(),
    "a bit of the graph": lambda place: _flipped(place / packed.GRAPH),
    "no graph": lambda place: (place / packed.GRAPH).write_bytes(b""),
    "no record": lambda place: (place / packed.RECORD).write_text("[]"),
    "another record": lambda place: (place / packed.RECORD).write_text('{"model.onnx": 1}'),
    "files of strangers": lambda place: (place / packed.DATA).chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_content_is_written_again(
    bundle_fp32: Path, cache: Path, plain: np.ndarray, damage: str
) -> None:
    logits(bundle_fp32)
    for place in places(cache):
        DAMAGE[damage](place)
    assert logits(bundle_fp32).tobytes() == plain.tobytes()
    for place in places(cache):
        records = json.loads((place / packed.RECORD).read_text())
        for name in (packed.GRAPH, packed.DATA):
            assert packed.Part(**records[name]) == packed.Part.of(place / name)
        assert not (place / packed.DATA).stat().st_mode & 0o022


def test_sums_see_every_bit() -> None:
    """In whole blocks and in the rest, and a page in another place."""
    content = np.random.default_rng(0).integers(0, 256, 3 * 4096 + 100, dtype=np.uint8)
    seen = set()
    for at in (None, 0, 4095, 4096, content.size - 1):
        changed = content.copy()
        if at is not None:
            changed[at] ^= 128
        seen.add(digest_of_sums(changed))
    moved = np.concatenate([content[4096:8192], content[:4096], content[8192:]])
    seen.add(digest_of_sums(moved))
    assert len(seen) == 6 and digest_of_sums(content) in seen
    assert digest_of_sums(content[:0]) == hashlib.sha256(b"").digest()


def test_weights_of_another_bundle_are_not_taken(
    bundle_fp32: Path, other: Path, cache: Path, plain: np.ndarray
) -> None:
    """Put in place with their record they would be: so the name holds the hash, and that is all that
    keeps them apart. Without their record they are damage."""
    logits(bundle_fp32)
    mine = {*places(cache)}
    changed = logits(other)
    (theirs,) = {*places(cache)} - mine
    place = max(mine, key=lambda p: (p / packed.DATA).stat().st_size)
    for name in (packed.GRAPH, packed.DATA):
        shutil.copyfile(theirs / name, place / name)
    assert logits(bundle_fp32).tobytes() == plain.tobytes()
    shutil.rmtree(place)
    shutil.copytree(theirs, place)
    assert logits(bundle_fp32).tobytes() == changed.tobytes()


def test_no_cache_is_no_obstacle(
    bundle_fp32: Path, cache: Path, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A disk without space and a folder nobody can write to: said, nothing half written."""
    caplog.set_level(logging.INFO, "save_deploy")
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        assert logits(bundle_fp32).tobytes() == plain.tobytes()
    assert "not cached" in caplog.text and "0 MB are free" in caplog.text
    assert places(cache) == []
    caplog.clear()
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", "/proc/nowhere")
    assert logits(bundle_fp32).tobytes() == plain.tobytes()
    assert "not cached" in caplog.text and "/proc/nowhere" in caplog.text


def test_a_cache_that_cannot_be_written_is_read(
    bundle_fp32: Path, cache: Path, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(bundle_fp32)
    before = places(cache)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(packed, "new_folder", refuse)
    monkeypatch.setattr(packed, "_locked", refuse)
    assert logits(bundle_fp32).tobytes() == plain.tobytes() and places(cache) == before


def test_unchecked_files_are_not_cached(bundle_fp32: Path, cache: Path) -> None:
    """Nobody knows that they have the hashes of their manifest; verified ones may be read."""
    for backend in ("onnxruntime", "openvino"):
        logits(bundle_fp32, backend=backend, verify=False)
        assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_altered_weights_are_found_while_they_are_opened(
    bundle_fp32: Path, tmp_path: Path, cache: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashed in a thread: nothing is cached, and the error is that of the hash."""
    from save_deploy.export import graph

    monkeypatch.setattr(graph, "EXTERNAL_ABOVE_BYTES", 1000)
    folder = tmp_path / "b"
    shutil.copytree(bundle_fp32, folder)
    model = graph.ir.load(bundle_fp32 / "model.onnx")
    (folder / "model.onnx").unlink()
    data = graph.save_graph(model, folder / "model.onnx")[1]
    replace(Manifest.read(folder), files=record_files(folder)).write(folder)
    assert data.stat().st_size > 1_000_000
    good = logits(folder, backend=backend)
    shutil.rmtree(cache)
    _flipped(data)
    with pytest.raises(BundleError, match=r"was altered(.|\n)*model\.onnx\.data"):
        logits(folder, backend=backend)
    kept = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not [path for path in kept if path.stat().st_size > data.stat().st_size // 2]
    _flipped(data)
    assert logits(folder, backend=backend).tobytes() == good.tobytes()
    os.truncate(data, 1000)
    with pytest.raises(BundleError, match=r"was altered(.|\n)*model\.onnx\.data"):
        logits(folder, backend=backend)


def test_starts_at_once(bundle_fp32: Path, cache: Path, plain: np.ndarray) -> None:
    """One writes, the others wait for it. (Locks of one process's threads exclude each other too.)"""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: logits(bundle_fp32), range(4)))
    assert {one.tobytes() for one in found} == {plain.tobytes()}
    assert len(places(cache)) == 2


@pytest.mark.thorough
def test_eight_processes_start_at_once(bundle_fp32: Path, cache: Path, plain: np.ndarray) -> None:
    code = (
        "import sys, hashlib; from pathlib import Path\n"
        "from tests.runtime.test_packed import logits\n"
        "print(hashlib.sha256(logits(Path(sys.argv[1])).tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(bundle_fp32)]
    root = Path(__file__).parents[2]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(8)
    ]
    found = {child.communicate()[0].strip() for child in children}
    assert found == {hashlib.sha256(plain.tobytes()).hexdigest()}
    assert len(places(cache)) == 1  # the audio graph is too small to be worth a file
