"""What the command line prints about itself."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import save_deploy


def version_of(blocked: str = "") -> list[str]:
    """Lines of `save-deploy --version` in a process that cannot import `blocked`."""
    code = (
        "import sys\n"
        f"for name in {blocked!r}.split(): sys.modules[name] = None\n"
        "sys.argv[1:] = ['--version']\n"
        "from save_deploy.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_version_imports_no_backend() -> None:
    lines = version_of(blocked="torch onnxruntime openvino tensorrt tensorrt_rtx")
    assert lines[0] == f"save-deploy {save_deploy.__version__}"
    assert f"openvino {metadata.version('openvino')}" in lines
    assert len(lines) == len(set(lines))
    assert not any(line.startswith("tensorrt ") for line in lines)  # twin: it is not installed
