"""What the C++ runtime keeps in its cache folder, for itself and as Python keeps it."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sysconfig
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from save_deploy import bundle_files
from save_deploy.bundle import FileRecord, Manifest
from save_deploy.runtime.session.compiled import read_kept
from tests.runtime.cpp import infer

LARGE = "large.bin"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mask(build: Path, bundle: Path, out: Path, *args: str | Path, **options: Any) -> Any:
    inputs = [bundle / "conformance" / f"normal.{kind}" for kind in ("png", "wav")]
    return infer(
        build, "run", bundle, *inputs, "-o", out, "--backend", "openvino", *args, **options
    )


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = (damaged, lambda blob: blob.write_bytes(b""), piped)


def test_compiled_models_are_kept(
    build: Path, bundle_fp32: Path, cache: Path, tmp_path: Path
) -> None:
    """Read where they are whole, written again where they are damaged; masks are equal to the byte."""
    outs = [tmp_path / f"{i}.png" for i in range(6)]
    assert mask(build, bundle_fp32, outs[0]).returncode == 0 and not cache.exists()
    assert mask(build, bundle_fp32, outs[1], "--cache", cache).returncode == 0
    blobs = sorted(cache.rglob("*.blob"))
    assert len(blobs) == 2 and all(read_kept(blob) is not None for blob in blobs)
    before = {blob: blob.read_bytes() for blob in blobs}
    written = {blob: blob.stat().st_mtime_ns for blob in blobs}
    assert mask(build, bundle_fp32, outs[2], "--cache", cache).returncode == 0
    assert {blob: blob.stat().st_mtime_ns for blob in blobs} == written
    for damage, out in zip(DAMAGE, outs[3:], strict=True):
        for blob in blobs:
            damage(blob)
        assert mask(build, bundle_fp32, out, "--cache", cache).returncode == 0
        assert all(read_kept(blob) is not None for blob in blobs)
        assert [len(blob.read_bytes()) for blob in blobs] == [len(b) for b in before.values()]
    assert {out.read_bytes() for out in outs} == {outs[0].read_bytes()}
    assert not [path for path in cache.rglob("*") if "partial" in path.name]


def test_unchecked_files_are_not_kept(build: Path, bundle_fp32: Path, cache: Path) -> None:
    """Nobody knows that they have the hashes that the folder is named by."""
    done = mask(build, bundle_fp32, cache.with_name("m.png"), "--cache", cache, "--no-hashes")
    assert done.returncode == 0 and not cache.exists()


def test_no_space_is_no_obstacle(build: Path, bundle_fp32: Path, cache: Path) -> None:
    """Nothing half written stays; the mask, which is small, is there."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    out = cache.with_name("m.png")
    done = mask(build, bundle_fp32, out, "--cache", cache, preexec_fn=limit)
    assert done.returncode == 0 and out.stat().st_size > 0, done.stderr
    assert not [path for path in (cache / "openvino").rglob("*") if path.is_file()]


def test_remains_of_a_killed_process_go(build: Path, bundle_fp32: Path, cache: Path) -> None:
    """After an hour in which nobody wrote to them."""
    assert mask(build, bundle_fp32, cache.with_name("m.png"), "--cache", cache).returncode == 0
    blob = next(cache.rglob("*.blob"))
    old, young = (blob.with_name(f".save.partial-{i}") for i in range(2))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    blob.unlink()
    assert mask(build, bundle_fp32, cache.with_name("m.png"), "--cache", cache).returncode == 0
    assert young.exists() and not old.exists() and read_kept(blob) is not None


@pytest.fixture
def settled() -> Path:
    """A large file that nobody has changed for a minute."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in (*folder.rglob("*.so*"), *folder.parent.rglob("*.so*")):
        status = path.stat()
        if status.st_size > 1_000_000 and max(status.st_mtime, status.st_ctime) < time.time() - 90:
            return path
    pytest.skip("everything here is new")


@pytest.fixture
def linked(bundle_fp32: Path, settled: Path, tmp_path: Path) -> Path:
    """A bundle with a further file: a link to the settled one."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_fp32, folder)
    (folder / LARGE).symlink_to(settled)
    record = FileRecord(bundle_files.sha256_of(settled), settled.stat().st_size)
    manifest = Manifest.read(folder)
    replace(manifest, files={**manifest.files, LARGE: record}).write(folder)
    return folder


def test_marks_are_those_of_python(
    build: Path, linked: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark of one is read by the other, and neither looks at the file again."""
    out, record = cache.with_name("m.png"), Manifest.read(linked).files[LARGE]
    assert mask(build, linked, out, "--cache", cache).returncode == 0
    mark = bundle_files._mark_of_check(linked / LARGE, record)
    assert mark is not None and mark in (cache / "checked").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(bundle_files, "_sha256", lambda _: pytest.fail("read again"))
        with bundle_files.checked(linked, {LARGE: record}, meanwhile=True, parsed=()):
            pass
    manifest = Manifest.read(linked)
    wrong = FileRecord(hashlib.sha256(b"another").hexdigest(), record.size)
    replace(manifest, files={**manifest.files, LARGE: wrong}).write(linked)
    done = mask(build, linked, out, "--cache", cache)
    assert done.returncode == 1 and f"{LARGE} ({record.size} bytes)" in done.stderr, done.stderr
    planted = bundle_files._mark_of_check(linked / LARGE, wrong)
    assert planted is not None
    planted.touch()
    assert mask(build, linked, out, "--cache", cache).returncode == 0
    for done in (mask(build, linked, out), infer(build, "verify", linked, "--cache", cache)):
        assert done.returncode == 1 and "altered" in done.stderr


def test_young_files_are_not_marked(build: Path, linked: Path, cache: Path) -> None:
    content = (linked / LARGE).read_bytes()
    (linked / LARGE).unlink()
    (linked / LARGE).write_bytes(content)
    os.utime(linked / LARGE, (0, 0))
    assert mask(build, linked, cache.with_name("m.png"), "--cache", cache).returncode == 0
    assert not (cache / "checked").exists()
