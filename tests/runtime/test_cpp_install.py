"""The C++ runtime as others get it: installed, moved, found, linked, shipped with its backend."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from save_deploy.data.scenes import Scenes
from save_deploy.runtime.pipeline import load
from tests.runtime.cpp import ROOT, SOURCE, cmake

EXAMPLE = ROOT / "docs" / "examples" / "mask.cpp"
BACKEND = (
    "libopenvino.so.",
    "libopenvino_onnx_frontend.so.",
    "libopenvino_intel_cpu_plugin.so",
    "libtbb.so.",
)


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without the variables of this process: nothing is found by chance."""
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=300, check=False,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip


def succeeds(*words: str | Path, **environment: str) -> str:
    done = run(*words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdk(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of `make sdk`, unpacked somewhere else."""
    folder = tmp_path_factory.mktemp("sdk")
    succeeds("cpack", "--config", build / "CPackConfig.cmake", "-B", folder / "made")
    (archive,) = (folder / "made").glob("save_runtime-*-linux-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (root,) = (folder / "unpacked").iterdir()
    assert archive.name == f"{root.name}.tar.gz"
    return root


@pytest.fixture(scope="module")
def backend(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what OpenVINO needs at run time, and nothing else of it."""
    prefix = tmp_path_factory.mktemp("backend")
    done = cmake("--install", build, "--component", "backends", "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    assert "not copied" not in done.stderr
    (folder,) = {path.parent for path in prefix.rglob("libopenvino.so.*")}
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    clip = Scenes(n_clips=1, seed=5)[0]
    Image.fromarray(clip.frames[0]).resize((101, 77)).save(tmp_path / "picture.png")
    soundfile.write(tmp_path / "sound.wav", clip.waveform, 16_000)
    return tmp_path / "picture.png", tmp_path / "sound.wav"


def library_folder(sdk: Path) -> Path:
    (folder,) = {path.parent for path in sdk.rglob("libsave_runtime.so")}
    return folder


def test_archive(sdk: Path) -> None:
    """What is in it, what it needs, and that it names no folder of the machine it was built on."""
    names = {path.name for path in sdk.rglob("*") if path.is_file()}
    assert {
        "save_runtime.h", "save_runtime.hpp", "save_media.h", "save_media.hpp", "libsave_runtime.so",
        "libsave_media.so", "save-infer", "save_runtimeConfig.cmake", "save_runtime.pc",
        "save_media.pc", "LICENSE", "NOTICE", "THIRD_PARTY", "mask.cpp",
        "cpp.md", "shipping.md",
    } <= names  # fmt: skip
    assert not any(name.startswith(("libopenvino", "test_")) for name in names)
    for path in sdk.rglob("*"):
        if path.is_file() and (
            path.suffix in (".so", ".cmake", ".pc") or path.name == "save-infer"
        ):
            assert str(ROOT).encode() not in path.read_bytes(), path
            assert b"site-packages" not in path.read_bytes(), path


@pytest.mark.skipif(
    shutil.which("readelf") is None, reason="not installed: apt-get install binutils"
)
def test_links(sdk: Path) -> None:
    """save_runtime needs no reader of pictures or sounds, and save_media no backend."""
    needed, paths = {}, {}
    for name in ("libsave_runtime.so", "libsave_media.so"):
        said = succeeds("readelf", "-d", library_folder(sdk) / name)
        needed[name] = set(re.findall(r"Shared library: \[(\w+)", said))
        paths[name] = re.findall(r"R(?:UN)?PATH.*\[(.*)\]", said)
    for readers in ("libpng16", "libjpeg", "libsndfile"):
        assert readers in needed["libsave_media.so"] - needed["libsave_runtime.so"]
    assert "libopenvino" in needed["libsave_runtime.so"] - needed["libsave_media.so"]
    for found in paths.values():
        assert found and all(part.startswith("$ORIGIN") for part in found[0].split(":"))


@pytest.mark.skipif(
    shutil.which("readelf") is None, reason="not installed: apt-get install binutils"
)
def test_no_library_of_the_current_folder(build: Path, sdk: Path, tmp_path: Path) -> None:
    """Not before the installation either: an empty entry of the path means the current folder."""
    files = [f for root in (build, sdk) for f in root.rglob("*") if f.is_file()]
    programs = [f for f in files if f.read_bytes()[:4] == b"\x7fELF" and f.suffix != ".o"]
    assert {"save-infer", "libsave_runtime.so.0.2.0"} <= {f.name for f in programs}
    for program in programs:
        for path in re.findall(r"R(?:UN)?PATH.*\[(.*)\]", succeeds("readelf", "-d", program)):
            assert all(part.startswith(("/", "$ORIGIN")) for part in path.split(":")), program
    for name in ("libpng16.so.16", "libjpeg.so.62", "libsndfile.so.1"):
        (tmp_path / name).write_bytes(b"no library")
    done = subprocess.run(
        [build / "save-infer", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "save-infer" in done.stdout, done.stderr


def test_readers_refuse(sdk: Path, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing, damage and wrong numbers: a status and a text, in a library without a backend."""
    media = ctypes.CDLL(str(library_folder(sdk) / "libsave_media.so"))
    media.save_media_last_error.restype = ctypes.c_char_p
    place = (ctypes.c_void_p * 8)()
    cut = tmp_path / "cut.png"
    cut.write_bytes(inputs[0].read_bytes()[:200])
    bits, out = bytes(6), os.fsencode(tmp_path / "out.png")
    refused = {
        "path is NULL": lambda: media.save_read_picture(None, place),
        "picture is NULL": lambda: media.save_read_picture(os.fsencode(inputs[0]), None),
        "image cannot be read": lambda: media.save_read_picture(os.fsencode(cut), place),
        "wrong number of seconds": lambda: media.save_read_sound(
            os.fsencode(inputs[1]), ctypes.c_double(-1), place
        ),
        "mask is NULL": lambda: media.save_write_mask(out, None, 3, 2),
        "of a size that cannot be written": lambda: media.save_write_mask(out, bits, 0, 2),
        "file cannot be written": lambda: media.save_write_mask(out + b"/m.png", bits, 3, 2),
    }
    for text, call in refused.items():
        assert call() == 1 and text in media.save_media_last_error().decode()
        assert not any(place)
    assert not Path(os.fsdecode(out)).exists()
    assert media.save_write_mask(out, bytes([0, 255] * 3), 3, 2) == 0
    assert np.array_equal(np.asarray(Image.open(os.fsdecode(out))), [[0, 255, 0], [255, 0, 255]])


@pytest.mark.slow
@pytest.mark.parametrize("by", ["find_package", "pkg-config"])
def test_example(
    sdk: Path, backend: Path, bundle_fp32: Path, inputs: tuple[Path, Path], tmp_path: Path, by: str
) -> None:
    """The documented program, built against the archive alone: its mask is Python's."""
    assert EXAMPLE.read_text() in (ROOT / "docs" / "cpp.md").read_text()
    assert len(EXAMPLE.read_text().splitlines()) <= 25
    if by == "find_package":
        consumer = Path(shutil.copytree(SOURCE / "tests" / "consumer", tmp_path / "consumer"))
        shutil.copy(EXAMPLE, consumer)
        build = tmp_path / "b"
        succeeds("cmake", "-S", consumer, "-B", build, f"-DCMAKE_PREFIX_PATH={sdk}")
        succeeds("cmake", "--build", build, "--target", "mask")
        program = build / "mask"
    else:
        if shutil.which("pkg-config") is None:
            pytest.skip("not installed: apt-get install pkg-config")
        program = tmp_path / "program"
        (folder,) = {path.parent for path in sdk.rglob("save_media.pc")}
        flags = succeeds(
            "pkg-config", "--cflags", "--libs", "save_media", PKG_CONFIG_PATH=str(folder)
        )
        succeeds("c++", "-std=c++17", "-Wall", "-Werror", EXAMPLE, "-o", program, *flags.split())
    found = os.pathsep.join(map(str, (library_folder(sdk), backend)))
    out = tmp_path / "mask.png"
    succeeds(program, bundle_fp32, *inputs, out, LD_LIBRARY_PATH=found)
    mask = np.asarray(Image.open(out))
    with load(bundle_fp32, backend="openvino") as segment:
        expected = segment(*inputs)
    assert mask.shape == (77, 101) and set(np.unique(mask)) <= {0, 255}
    assert ((mask > 0) != expected).sum() <= 2  # a logit within the tolerance may go either way

    wrong = run(
        program, bundle_fp32, inputs[1], inputs[0], tmp_path / "no.png", LD_LIBRARY_PATH=found
    )
    assert wrong.returncode == 1 and "neither PNG nor JPEG" in wrong.stderr
    wrong = run(program, bundle_fp32, *inputs, tmp_path / "no.gif", LD_LIBRARY_PATH=found)
    assert wrong.returncode == 1 and "a .png path" in wrong.stderr
    assert not list(tmp_path.glob("no.*"))


@pytest.mark.slow
def test_shipped_beside_each_other(
    sdk: Path, backend: Path, bundle_fp32: Path, tmp_path: Path
) -> None:
    """save-infer with the copied files, moved, no variable set. Twin: without one of them."""
    shutil.copytree(sdk, tmp_path / "product", symlinks=True)
    product = library_folder(tmp_path / "product")
    copied = [product / path.name for path in backend.iterdir()]
    for path in backend.iterdir():
        shutil.copy(path, product, follow_symlinks=False)
    assert all(any(path.name.startswith(name) for path in copied) for name in BACKEND)
    program = tmp_path / "product" / "bin" / "save-infer"
    assert "openvino" in succeeds(program, "verify", bundle_fp32)
    for name in BACKEND:
        for path in copied:
            if path.name.startswith(name):
                path.rename(path.with_name(f"hidden-{path.name}"))
        assert run(program, "verify", bundle_fp32).returncode != 0, name
        for path in copied:
            hidden = path.with_name(f"hidden-{path.name}")
            if hidden.exists():
                hidden.rename(path)


def test_installed_for_others(
    build: Path, backend: Path, bundle_fp32: Path, tmp_path: Path
) -> None:
    """cmake --install into a prefix: the library without the readers, found by find_package."""
    assert cmake("--install", build, "--prefix", tmp_path / "prefix").returncode == 0
    consumer = Path(shutil.copytree(SOURCE / "tests" / "consumer", tmp_path / "consumer"))
    documented = (ROOT / "docs" / "cpp.md").read_text()
    assert (consumer / "main.cpp").read_text() in documented
    succeeds(
        "cmake", "-S", consumer, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"
    )
    succeeds("cmake", "--build", tmp_path / "b", "--target", "consumer")
    program = tmp_path / "b" / "consumer"
    said = succeeds(program, bundle_fp32, LD_LIBRARY_PATH=str(backend))
    assert said == "3072 pixels on openvino\n"
