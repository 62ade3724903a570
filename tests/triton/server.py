"""A real tritonserver on loopback: the one inside the PyPI package nvidia-pytriton, which holds the
Python backend and the response cache but none of Triton's graph backends."""

from __future__ import annotations

import contextlib
import os
import shutil
import site
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from save_deploy.files import new_folder
from tests.conftest import made_once

PACKAGE = "nvidia-pytriton==0.7.0"  # tritonserver 2.51
BACKEND = Path(__file__).with_name("onnxruntime_backend.py")
START_S = 120


def triton_files() -> Path:
    """Unpacked: server/, libs/, and numpy/, the one that its Python backend can share arrays with.

    Skips the test where the package cannot be had, or is not for this machine.
    """
    with made_once("nvidia-pytriton-0.7.0") as place:
        if not place.exists():
            with tempfile.TemporaryDirectory() as folder, new_folder(place) as made:
                _pip("download", "--no-deps", "--dest", folder, PACKAGE)
                with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                    wheel.extractall(folder)
                shutil.move(Path(folder, "pytriton/tritonserver"), made / "tritonserver")
                shutil.move(Path(folder, "nvidia_pytriton.libs"), made / "nvidia_pytriton.libs")
                _pip("install", "--no-deps", "--target", str(made / "numpy"), "numpy<2")
                _prepare(made / "tritonserver")
    return place


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be had: {done.stderr.strip().splitlines()[-1][:200]}")


def _prepare(server: Path) -> None:
    """The stub of this Python where the backend looks for it, and the stand-in for ONNX Runtime's."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends/python")
    for program in (server / "bin/tritonserver", server / "backends/python" / stub.name):
        program.chmod(0o755)


@dataclass(frozen=True)
class Server:
    """One that answers. log: what it wrote."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str
    log: Path

    def url(self, protocol: str) -> str:
        return self.http if protocol == "http" else self.grpc

    @property
    def alive(self) -> bool:
        return self.process.poll() is None and _answers(f"http://{self.http}/v2/health/ready")

    def count(self, metric: str, model: str) -> int:
        """A counter of a model, as Prometheus would read it."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            int(float(line.rsplit(" ", 1)[1]))
            for line in lines
            if line.startswith(f"{metric}{{") and f'model="{model}"' in line
        )


@contextlib.contextmanager
def running(repository: Path, folder: Path) -> Iterator[Server]:
    """repository served while the block runs; folder: for the log."""
    files = triton_files()
    server = files / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends, copy_function=os.link)
    (backends / "onnxruntime").mkdir()
    shutil.copy(BACKEND, backends / "onnxruntime/model.py")
    http, grpc, metrics = _free_ports(3)
    command = [
        server / "bin/tritonserver", f"--model-repository={repository}",
        f"--backend-directory={backends}", f"--cache-directory={server / 'caches'}",
        "--cache-config=local,size=16777216", "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}", f"--metrics-port={metrics}",
        "--metrics-address=127.0.0.1", "--exit-timeout-secs=5",
    ]  # fmt: skip
    paths = [str(files / "numpy"), *site.getsitepackages()]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(files / "nvidia_pytriton.libs"),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    log = folder / "tritonserver.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, env=environment, stdout=written, stderr=subprocess.STDOUT, cwd=folder
        )
    found = Server(process, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{metrics}", log)
    try:
        _wait(found)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server) -> None:
    until = time.monotonic() + START_S
    while not server.alive:
        if server.process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"tritonserver does not serve:\n{server.log.read_text()[-6000:]}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
