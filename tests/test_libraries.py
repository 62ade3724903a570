"""Libraries that report their users are kept from it: nothing in the home, no name looked up."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from save_deploy.libraries import ENV_ONNXRUNTIME, import_openvino
from save_deploy.machine import version
from tests.test_layout import modules

# Every name that a process asks for, as a line of $ASKED; nothing is found.
_RESOLVER = r"""
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    FILE *file = fopen(getenv("ASKED"), "a");
    if (file) fprintf(file, "%s\n", node ? node : ""), fclose(file);
    return EAI_NONAME;
}
"""
_RUN = """
import sys, time, numpy, save_deploy
frame, sound = numpy.zeros((8, 8, 3), "u1"), numpy.full(16000, 0.1, "f4")
for backend in ("onnxruntime", "openvino"):
    with save_deploy.load(sys.argv[1], backend=backend) as segment:
        segment(frame, sound)
time.sleep(float(sys.argv[2]))
"""
_TALKS = "import openvino, time; time.sleep(1)"


def start(tmp_path: Path, code: str, *arguments: str | Path) -> tuple[list[str], list[str]]:
    """Files left in an empty home, which is the current folder too, and names asked for."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("apt-get install gcc")
    source, asked, home = tmp_path / "resolver.c", tmp_path / "asked", tmp_path / "home"
    source.write_text(_RESOLVER)
    library = source.with_suffix(".so")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True, timeout=60)
    home.mkdir()
    asked.touch()
    unset = ("CI", "TF_BUILD", "JENKINS_URL", "XDG_CACHE_HOME", ENV_ONNXRUNTIME)
    env = {k: v for k, v in os.environ.items() if k not in unset}
    env |= {"HOME": str(home), "LD_PRELOAD": str(library), "ASKED": str(asked)}
    env |= {"SAVE_DEPLOY_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    left = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    return left, asked.read_text().split()


def test_a_mask_leaves_nothing_and_asks_nobody(bundle_fp32: Path, tmp_path: Path) -> None:
    assert start(tmp_path, _RUN, bundle_fp32, "0.5") == ([], [])


@pytest.mark.slow
def test_the_resolver_would_have_seen_it(tmp_path: Path) -> None:
    """OpenVINO imported by itself writes an identifier and asks for its server."""
    if not version("openvino-telemetry"):
        pytest.skip("pip install openvino-telemetry")
    left, asked = start(tmp_path, _TALKS)
    assert "intel/openvino_ga_cid" in left and "www.google-analytics.com" in asked


def test_openvino_telemetry_is_still_there_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    telemetry = ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", telemetry)
    import_openvino()
    assert sys.modules["openvino_telemetry"] is telemetry


@pytest.mark.slow
def test_nobody_else_imports_them() -> None:
    wrong = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [name for m in found if m.split(".")[0] in ("onnxruntime", "openvino")]
    assert wrong == []
