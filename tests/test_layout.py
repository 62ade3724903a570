"""The structure people rely on: one-way imports, no circles, a runtime without torch, README commands.

Imports inside functions count like those at the top of a file.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.command import run

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "save_deploy"
BESIDE = ("export", "runtime", "calibration")  # folders of the package beside save_deploy/
MAX_LINES = 400
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
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
FRONT = (
    "cli",
    "cli.py",
    "__main__.py",
    "__init__.py",
)  # of save_deploy/: nothing imports these
# The eager model beside the runtime's pipelines: what else these files may import.
EAGER = {
    "runtime/eager.py": {"model", "checkpoints"},
    "runtime/compare/source.py": {"model", "checkpoints"},
}
# All modules of these parts are loaded without torch, but for those named.
WITHOUT_TORCH = ("base", "cli", "data", "metrics", "recipes", "calibration", "runtime")
NEEDS_TORCH = {
    "save_deploy.runtime.eager",
    "save_deploy.runtime.compare.source",
    "save_deploy.calibration.observe",
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of the whole package."""
    found = {}
    for base, prefix in [(PACKAGE, ""), *((ROOT / name, f"{name}.") for name in BESIDE)]:
        for path in sorted(base.rglob("*.py")):
            name = prefix + ".".join(path.relative_to(base).with_suffix("").parts)
            found["save_deploy." + name] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def part_of(module: str) -> str:
    """save_deploy.data.audio -> data; save_deploy.config -> base; save_deploy.__main__ -> cli."""
    path = modules()[module]
    inner = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).parts
    if path.is_relative_to(PACKAGE) and inner[0] in FRONT:
        return "cli"
    return inner[0] if len(inner) > 1 else "base"


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that a module imports anywhere in its file."""
    known, path = modules(), modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            start = ".".join(parents) if node.level else ""
            source = ".".join(filter(None, [start, node.module]))
            for alias in node.names:  # a module of the package, or a name in it
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in known else source)
    return frozenset(found & known.keys() - {module})


def circles(edges: dict[str, frozenset[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in order:
            visit(name)
    return found


@pytest.mark.slow
def test_imports_point_one_way() -> None:
    wrong = []
    for module, path in modules().items():
        part, name = part_of(module), path.relative_to(ROOT).as_posix()
        allowed = MAY_IMPORT[part] | EAGER.get(name, set()) | {part}
        for other in sorted(imports(module)):
            # `import save_deploy` gives version and load, not the command line
            if other != "save_deploy" and part_of(other) not in allowed:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_exceptions_are_needed() -> None:
    for name, parts in EAGER.items():
        for module in (m for m, path in modules().items() if path == ROOT / name):
            assert parts <= {part_of(other) for other in imports(module)}, name


@pytest.mark.slow
def test_no_module_imports_itself_through_others() -> None:
    found = circles({module: imports(module) for module in modules()})
    assert found == []


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles({k: frozenset(v) for k, v in edges.items()}) == [["b", "c"]]


def test_no_file_is_too_long() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in modules().values()}
    assert not {path.name: n for path, n in lines.items() if n > MAX_LINES}


@pytest.mark.slow
def test_imports_without_torch() -> None:
    """A deployment needs no torch; --help does not wait for it."""
    code = (
        "import importlib, json, sys\n"
        "sys.modules['torch'] = None\n"
        "failed = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: failed[name] = str(error)\n"
        "print(json.dumps(failed))"
    )
    names = [m for m in modules() if part_of(m) in WITHOUT_TORCH and not m.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout).keys() == NEEDS_TORCH & set(names)


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


VERBS = (
    "", "export", "calibrate", "build", "inspect", "merge", "bench", "compare", "train", "eval",
    "mask", "masks", "run", "doctor", "polygraphy", "triton", "publish", "verify", "systems",
    "recipes", "data", "web", "data scenes", "data stamps", "data check", "cache", "cache ls",
    "cache rm", "checkpoint", "checkpoint inspect", "checkpoint convert",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    done = run(*verb.split(), "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


@pytest.mark.slow
def test_help_of_a_process() -> None:
    """`python -m save_deploy` is the command line too."""
    args = [sys.executable, "-m", "save_deploy", "export", "--help"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Usage" in done.stdout


LARGE = {
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "av",
    "PIL",
    "soundfile",
    "safetensors",
}


def imported(*command: str) -> set[str]:
    """Top-level packages that `python COMMAND` imports, as -X importtime lists them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    rows = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line)
    return {name.partition(".")[0] for name in rows}


@pytest.mark.slow
def test_help_imports_no_large_library() -> None:
    """numpy alone takes longer than everything else that --help needs."""
    found = imported("-m", "save_deploy", "--help")
    assert "typer" in found and not found & LARGE
    assert "numpy" in imported("-c", "import save_deploy.bundle")  # the twin


def test_readme_links_every_document() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [d.name for d in (ROOT / "docs").glob("*.md") if f"docs/{d.name}" not in readme] == []


@pytest.mark.slow
def test_readme_commands_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every make target and option the README shows is real."""
    monkeypatch.setenv("COLUMNS", "300")  # no option is cut
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", readme, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    known = set()
    for verb in VERBS:
        known |= set(re.findall(r"--[a-z0-9-]+", run(*verb.split(), "--help").stdout))
    assert set(re.findall(r"save-\w+ .*?(--[a-z0-9-]+)", readme)) <= known


@pytest.mark.slow
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
