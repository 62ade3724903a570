"""The structure people rely on: one-way imports, a runtime without torch, README commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "save_deploy": "",
    "export": "export",
    "runtime": "runtime",
    "calibration": "calibration",
}
# part -> parts it may import; what a part needs from a later one belongs into an earlier one
MAY_IMPORT = {
    "base": set(),
    "data": {"base"},
    "metrics": {"base"},
    "model": {"base"},
    "checkpoints": {"base", "model"},
    "recipes": {"base", "metrics"},
    "training": {"base", "data", "metrics", "model", "checkpoints", "recipes"},
    "calibration": {"base", "data"},
    "runtime": {"base", "data", "metrics"},
    "export": {"base", "data", "metrics", "model", "checkpoints", "calibration", "runtime"},
    "cli": {
        "base",
        "data",
        "metrics",
        "model",
        "checkpoints",
        "recipes",
        "training",
        "export",
        "runtime",
        "cli",
    },
}
# what people import or run: nothing imports these
TOP = ("cli.py", "__main__.py", "__init__.py")
WITH_TORCH = {("runtime", "eager.py"), ("runtime", "reference.py"), ("runtime", "worker.py")}


def part_of(module: str) -> str:
    """save_deploy.data.audio -> data; save_deploy.config -> base."""
    names = module.split(".")[1:]
    if names and names[0] == "cli":
        return "cli"
    if not names or names[0] not in MAY_IMPORT:
        return "base"
    return names[0]


def sources() -> list[tuple[str, Path]]:
    found = []
    for folder, name in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder)
            part = name or (inner.parts[0] if len(inner.parts) > 1 else "base")
            if part == "cli" or (part == "base" and inner.name in TOP):
                part = "cli"
            found.append((part, path))
    return found


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


@pytest.mark.parametrize(("part", "path"), sources(), ids=lambda v: getattr(v, "name", v))
def test_imports_point_one_way(part: str, path: Path) -> None:
    allowed = MAY_IMPORT[part] | {part}
    if (part, path.name) in WITH_TORCH:
        allowed |= {"model", "checkpoints"}
    used = {part_of(name) for name in imports(path) if name.startswith("save_deploy")}
    assert used <= allowed, f"{path.name} imports {used - allowed}"


def test_no_file_is_too_long() -> None:
    long = {p.name: n for _, p in sources() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize(
    "module",
    [
        "runtime.pipeline",
        "runtime.verify",
        "calibration.pairs",
        "calibration.select",
        "calibration.table",
        "export.options",
        "runtime.kernels",
        "cli",
        "cli.export",
        "cli.calibrate",
        "cli.inspect",
        "runtime.stream",
        "runtime.html",
        "runtime.video",
        "cli.run",
        "cli.doctor",
        "runtime.doctor",
        "runtime.self_test",
    ],
)
def test_imports_without_torch(module: str) -> None:
    """A deployment needs no torch; --help does not wait for it."""
    code = f"import sys; sys.modules['torch'] = None; import save_deploy.{module}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bundle_runs_without_torch(bundle: Path) -> None:
    """The whole path of a deployed application: verify, load, mask."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from save_deploy.runtime.pipeline import load\n"
        f"mask = load({str(bundle)!r})(np.zeros((90, 120, 3), np.uint8), np.zeros(16000, np.float32))\n"
        "assert mask.shape == (90, 120)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    "verb",
    [
        "", "export", "calibrate", "build", "inspect", "merge", "bench", "compare", "train", "eval",
        "mask", "run", "doctor", "polygraphy", "verify", "systems", "recipes", "data", "data scenes",
        "data stamps", "data check", "cache", "cache ls", "cache rm", "checkpoint",
        "checkpoint inspect", "checkpoint convert",
    ],
)  # fmt: skip
def test_help(verb: str) -> None:
    args = [sys.executable, "-m", "save_deploy", *verb.split(), "--help"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Usage" in done.stdout


def test_readme_commands_exist() -> None:
    """Every make target and option the README shows is real."""
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", readme, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    verbs = (ROOT / "save_deploy" / "cli").glob("*.py")
    cli = "".join(path.read_text() for path in verbs)
    for option in set(re.findall(r"save-\w+ .*?(--[a-z0-9-]+)", readme)):
        assert option in cli or option.removeprefix("--").replace("-", "_") in cli, option


def test_repository_names_no_machine() -> None:
    """No absolute path of the machine it was written on."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    pattern = re.compile(r"(^|[^\w.])/(work|root|home)/\w")
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", "") and path.is_file():
            assert not pattern.search(path.read_text()), name
