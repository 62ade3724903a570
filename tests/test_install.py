"""What each extra brings, what a missing one says, and fresh environments that run a bundle."""

from __future__ import annotations

import ast
import fcntl
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.numpy import save_file

from save_deploy import __version__
from save_deploy.checkpoints import load
from save_deploy.errors import BackendError
from save_deploy.extras import EXTRA_OF, named_extras
from save_deploy.runtime.session import open as session_open

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTION = {  # module -> distribution, where the names differ
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "tensorrt_rtx": "tensorrt-rtx-cu12",
}


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=;\[ ]", r)[0] for r in requirements}


def distribution_of(module: str) -> str:
    return DISTRIBUTION.get(module, module.replace("_", "-"))


def third_party(folder: Path) -> dict[str, set[str]]:
    """Imported top-level module -> files that import it."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in (n.partition(".")[0] for n in names):
                if name not in {*sys.stdlib_module_names, "save_deploy", "tests"}:
                    found.setdefault(name, set()).add(path.name)
    return found


@pytest.mark.parametrize("module", EXTRA_OF)
def test_every_optional_package_is_in_its_extra(module: str) -> None:
    extras = PROJECT["optional-dependencies"]
    assert distribution_of(module) in distributions(extras[EXTRA_OF[module]])


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["save_deploy", "export", "runtime", "calibration"])
def test_every_import_is_a_dependency(folder: str) -> None:
    """Of the base, or of an extra that a missing package is traced to."""
    base = distributions(PROJECT["dependencies"])
    unknown = {
        module: files
        for module, files in third_party(ROOT / folder).items()
        if module not in EXTRA_OF and distribution_of(module) not in base
    }
    assert not unknown


def test_missing_package_names_its_extra() -> None:
    with pytest.raises(BackendError, match=r"torch is not installed") as caught, named_extras():
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    assert caught.value.hint == 'pip install "save-deploy[export]"'
    assert caught.value.exit_code == 3


def test_unknown_missing_module_stays_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"save_deploy\.gone"), named_extras():
        raise ModuleNotFoundError("No module named 'save_deploy.gone'", name="save_deploy.gone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "blocked", "extra"),
    [
        (["export", "--fp16"], "torch", "export"),
        (["eval"], "torch", "export"),
        (["bench"], "torch", "export"),
        (["checkpoint", "inspect", "x.safetensors"], "torch", "export"),
        (["run", "bundle", ".", "-o", "out"], "pyarrow", "bulk"),
        (["run", "bundle", ".", "-o", "out", "--engine", "ray"], "ray", "ray"),
    ],
)
def test_verb_without_its_extra(verb: list[str], blocked: str, extra: str, tmp_path: Path) -> None:
    """Exit 3, the install line, no traceback."""
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    code = (
        f"import sys; sys.modules[{blocked!r}] = None; sys.argv = ['save-deploy', *{verb!r}]\n"
        "from save_deploy.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 3, done.stderr
    assert f'next:     pip install "save-deploy[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_no_backend_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_open, "available_backends", lambda: ())
    with pytest.raises(BackendError, match="no backend is installed") as caught:
        session_open.preferred_backend("fp32")
    assert 'pip install "save-deploy[cpu]"' in caught.value.hint


@pytest.mark.parametrize(
    ("installed", "low_memory", "chosen"),
    [
        (("openvino", "onnxruntime"), False, "openvino"),
        (("openvino", "onnxruntime"), True, "onnxruntime"),
        (("openvino",), True, "openvino"),
        (("onnxruntime",), False, "onnxruntime"),
    ],
)
def test_automatic_cpu_backend(
    installed: tuple[str, ...], low_memory: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_open, "available_backends", lambda: installed)
    assert session_open.preferred_backend("fp32", low_memory=low_memory) == chosen


def test_built_in_checkpoint_is_found_or_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a clone, then in the package of its own, else an error with the install line."""
    assert load.builtin_path() == ROOT / "save_deploy" / "assets" / "save_vit_t_256.safetensors"
    monkeypatch.setattr(load, "__file__", str(tmp_path / "checkpoints" / "load.py"))
    with pytest.raises(BackendError, match="not installed") as caught:
        load.builtin_path()
    assert "pip install ./save_deploy/assets" in caught.value.hint
    package = tmp_path / "site" / "save_deploy_checkpoint"
    package.mkdir(parents=True)
    (package / "save_vit_t_256.safetensors").touch()
    monkeypatch.syspath_prepend(package.parent)
    assert load.builtin_path() == package / "save_vit_t_256.safetensors"


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == __version__
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel and the sdist."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    probe = ["-m", "pip", "download", "-q", "--no-deps", "-d", str(out / "probe"), "mdurl"]
    if subprocess.run([sys.executable, *probe], timeout=600).returncode:
        pytest.skip("no package index can be reached")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    with (Path(tempfile.gettempdir()) / "save-deploy-dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # setuptools writes beside the sources
        subprocess.run(command, check=True, timeout=600)
    return out


def _environment(folder: Path) -> str:
    """A fresh virtual environment's Python."""
    venv.create(folder, with_pip=True)
    return str(folder / "bin" / "python")


@pytest.mark.thorough
def test_wheel_holds_what_runs_and_sdist_all_of_it(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert (
        "save_deploy/runtime/pipeline.py" in names and "save_deploy/export/merge/deploy.py" in names
    )
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not [n for n in names if "test" in n.split("/")[0] or n.endswith(".safetensors")]
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "LICENSE",
        "NOTICE",
        "tests/conftest.py",
        "runtime/cpp/include/save_runtime.h",
        "save_deploy/assets/save_vit_t_256.safetensors",
    } <= inside
    assert not [name for name in inside if name.endswith(".pyc")]


def _write_inputs(folder: Path) -> None:
    """f.png, s.wav (44.1 kHz stereo), v.mp4 with sound."""
    frame = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(frame).save(folder / "f.png")
    tone = (0.5 * np.sin(0.06 * np.arange(2 * 44_100))).astype(np.float32)
    soundfile.write(folder / "s.wav", np.stack([tone, tone], axis=1), 44_100)
    with av.open(str(folder / "v.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        sound = container.add_stream("aac", rate=44_100)
        for _ in range(12):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(video.encode())
        heard = av.AudioFrame.from_ndarray(tone[None, :44_100], format="fltp", layout="mono")
        heard.rate = 44_100
        container.mux(sound.encode(heard))
        container.mux(sound.encode())


_USE = """
import sys, numpy as np, save_deploy
from pathlib import Path
from save_deploy.data.audio import read_waveform
sound = read_waveform(Path("s.wav"))
assert sound.shape == (32_000,)
with save_deploy.load(sys.argv[1]) as pipeline:
    assert pipeline(np.zeros((90, 120, 3), np.uint8), sound).shape == (90, 120)
    assert pipeline.backend == sys.argv[2]
assert "torch" not in sys.modules
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("extra", "pattern", "backend"),
    [("cpu", "*.whl", "onnxruntime"), ("openvino", "*.tar.gz", "openvino")],
)
def test_fresh_environment_runs_a_bundle(
    extra: str, pattern: str, backend: str, built: Path, bundle: Path, tmp_path: Path
) -> None:
    """Without torch: load, mask, run a film, verify, inspect, doctor; export names its extra."""
    python = _environment(tmp_path / "venv")
    package = f"{next(built.glob(pattern))}[{extra}]"
    subprocess.run([python, "-m", "pip", "install", "-q", package], check=True, timeout=600)
    _write_inputs(tmp_path)
    environment = {**os.environ, "SAVE_DEPLOY_CACHE": str(tmp_path / "cache")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments],
            capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
        )  # fmt: skip

    done = run("-c", _USE, str(bundle), backend)
    assert done.returncode == 0, done.stderr
    for verb in (
        ["verify", str(bundle)],
        ["mask", str(bundle), "f.png", "s.wav", "-o", "m.png"],
        ["run", str(bundle), "v.mp4", "-o", "out.mp4"],
        ["inspect", str(bundle)],
        ["doctor", str(bundle)],
    ):
        done = run("-m", "save_deploy", *verb)
        assert done.returncode == 0, (verb, done.stderr)
    assert (tmp_path / "m.png").is_file() and (tmp_path / "out.mp4").is_file()
    refused = run("-m", "save_deploy", "export", "--fp16")
    assert refused.returncode == 3 and "Traceback" not in refused.stderr
    assert 'pip install "save-deploy[export]"' in refused.stderr
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    size = sum(f.lstat().st_blocks * 512 for f in site.rglob("*") if f.is_file())
    assert size < 450 * 2**20
