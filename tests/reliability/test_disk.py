"""Every verb that writes, into a full disk, a disk that fills up, and a read-only one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.runtime import films

pytestmark = pytest.mark.long
SMALL = ("--res", "224", "--golden", "2", "--rounds", "3", "--threads", "1")
# verb -> arguments; @ is the place that cannot hold what is written
VERBS: dict[str, tuple[str, ...]] = {
    "export": ("export", "tiny.safetensors", *SMALL, "-o", "@/out"),
    "calibrate": (
        "calibrate", "tiny.safetensors", "--res", "224", "--calib-pairs", "32", "-o", "@/t.json",
    ),
    "merge": ("merge", "tiny.safetensors", "--res", "224", "--json", "@/proof.json"),
    "bench": (
        "bench", "tiny.safetensors", "--res", "224", "--what", "merged", "--backends", "openvino",
        "--rounds", "3", "-o", "@/bench",
    ),
    "compare": (
        "compare", "bundle", "--checkpoint", "tiny.safetensors", "--clips", "1", "--rounds", "3",
        "--report", "@/report",
    ),
    "train": (
        "train", "--init", "tiny.safetensors", "--res", "224", "--batch", "1", "--steps", "2",
        "--out", "@/run",
    ),
    "eval": (
        "eval", "tiny.safetensors", "--res", "224", "--clips", "1", "--json", "@/score.json",
    ),
    "mask": ("mask", "bundle", "frame.png", "sound.wav", "-o", "@/mask.png"),
    "run": ("run", "bundle", "film.mp4", "-o", "@/out.mp4", "--json", "@/out.json"),
    "run many": ("run", "bundle", "films", "-o", "@/many"),
    "masks": ("masks", "many", "--export", "coco", "-o", "@/coco.json"),
    "polygraphy": ("polygraphy", "bundle", "-o", "@/samples"),
    "triton": ("triton", "bundle", "-o", "@/repository"),
    "publish": ("publish", "bundle", "-o", "@/hub"),
    "web": ("web", "bundle", "-o", "@/site"),
    "systems": ("systems", "--json", "@/systems.json"),
    "data scenes": ("data", "scenes", "-o", "@/data"),
    "data stamps": ("data", "stamps", "-o", "@/data"),
    "convert": ("checkpoint", "convert", "tiny.safetensors", "-o", "@/c.safetensors"),
}  # fmt: skip
DISKS = {"full": "size=64k", "filling": "size=64k", "read-only": "ro"}


@pytest.fixture(scope="module")
def place(
    tiny_checkpoint: Path, bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("disks")
    films.write_film(folder / "film.mp4", seconds=2, sound=films.tone(2, (0, 2)))
    (folder / "films").mkdir()
    (folder / "films" / "film.mp4").hardlink_to(folder / "film.mp4")
    (folder / "bundle").symlink_to(bundle_fp32)
    (folder / "tiny.safetensors").symlink_to(tiny_checkpoint)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)).save(
        folder / "frame.png"
    )
    soundfile.write(folder / "sound.wav", np.sin(np.arange(16_000) / 9), 16_000)
    done = _run(folder, ("run", "bundle", "films", "-o", "many"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", DISKS[request.param], "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    try:
        if request.param == "full":
            with (folder / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError):
                while file.write(bytes(4096)):
                    pass
        yield request.param, folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _run(folder: Path, verb: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "save_deploy", *verb], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "SAVE_DEPLOY_CACHE": str(folder / "cache")}, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_disk_that_holds_nothing(name: str, place: Path, disk: tuple[str, Path]) -> None:
    """One error of ours, and nothing but what was there before."""
    kind, folder = disk
    before = sorted(folder.iterdir())
    done = _run(place, tuple(word.replace("@", str(folder)) for word in VERBS[name]))
    if kind == "filling" and done.returncode == 0:  # what is written is that small
        return
    if done.returncode == 3 and "--fetch" in done.stderr:
        pytest.skip("ONNX Runtime Web is not on this machine: save-deploy web --fetch")
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1 and lines[errors[0] + 1].startswith("  got:"), done.stderr
    assert sorted(folder.iterdir()) == before
    print(f"\n{name}, {kind}: {lines[errors[0]]}")
