"""The face to TensorRT uses only names that TensorRT 10.16, 11.4 and RTX 1.7 have, or guards them.

tensorrt_names.json: names of the classes we use, read from the three libraries' Python modules.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from save_deploy.export.engine.targets import RTX_TARGETS

ROOT = Path(__file__).parents[2] / "export" / "engine"
NAMES: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent / "tensorrt_names.json").read_text()
)
# Variables of library.py and worker.py that hold TensorRT's objects, and their classes there.
CLASSES = {
    "trt": "module",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "cache": "ITimingCache",
    "plan": "IHostMemory",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
}
OUR_ERRORS = {"what", "got", "expected", "hint"}  # `error` is also one of ours, in worker.py


class Used(ast.NodeVisitor):
    """(class, name, guarded) of every attribute of a TensorRT object in a source."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str, bool]] = set()
        self.guard = False

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        guarded = isinstance(test, ast.Call) and getattr(test.func, "id", "") == "hasattr"
        if guarded:
            assert isinstance(test, ast.Call) and isinstance(test.args[1], ast.Constant)
            self.add(class_of(test.args[0]), test.args[1].value, True)
        before, self.guard = self.guard, self.guard or guarded
        for child in node.body:
            self.visit(child)
        self.guard = before
        for child in node.orelse:
            self.visit(child)

    def visit_Call(self, node: ast.Call) -> None:
        if getattr(node.func, "id", "") == "named":  # a member that some versions lack
            owner = class_of(node.args[0])
            if isinstance(node.args[1], ast.Constant):
                self.add(owner, node.args[1].value, True)
            self.add("module", owner, owner == "ComputeCapability")
            return
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.add(class_of(node.value), node.attr, self.guard)
        self.generic_visit(node)

    def add(self, owner: str, name: str, guarded: bool) -> None:
        if owner and name != "__init__":
            self.found.add((owner, name, guarded))


def class_of(node: ast.expr) -> str:
    """`trt` -> module, `config` -> IBuilderConfig, `trt.BuilderFlag` -> BuilderFlag; else ``."""
    if isinstance(node, ast.Name):
        return CLASSES.get(node.id, "")
    if isinstance(node, ast.Attribute) and class_of(node.value) == "module":
        return node.attr
    return ""


def missing(source: str) -> list[str]:
    """Names that a library lacks: any of the three, or all of them for guarded ones."""
    visitor = Used()
    visitor.visit(ast.parse(source))
    wrong = []
    for owner, name, guarded in sorted(visitor.found):
        if owner == "ParserError" and name in OUR_ERRORS:
            continue
        has = [name in table.get(owner, ()) for table in NAMES.values()]
        if not (any(has) if guarded else all(has)):
            wrong.append(f"{owner}.{name}")
    return wrong


@pytest.mark.parametrize("file", ["library.py", "worker.py"])
def test_only_names_all_three_have(file: str) -> None:
    source = (ROOT / file).read_text()
    assert missing(source) == []
    visitor = Used()
    visitor.visit(ast.parse(source))
    least = {"library.py": 25, "worker.py": 2}[file]
    assert len(visitor.found) >= least  # the walk really sees them


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("config.set_flags(1)", "IBuilderConfig.set_flags"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16"),  # 10.16 alone
        ("config.num_compute_capabilities = 1", "IBuilderConfig.num_compute_capabilities"),
        ("if hasattr(config, 'nothing'):\n    pass", "IBuilderConfig.nothing"),
        ("named(trt.BuilderFlag, 'NONE_SUCH')", "BuilderFlag.NONE_SUCH"),
        ("trt.Buildr(logger)", "module.Buildr"),
        ("config.clear_flag(trt.BuilderFlag.TF33)", "BuilderFlag.TF33"),
    ],
)
def test_a_made_up_name_is_caught(source: str, name: str) -> None:
    """Twin: the check can fail."""
    assert missing(source) == [name]


def test_guards_are_understood() -> None:
    assert missing("if hasattr(config, 'num_compute_capabilities'):\n"
                   "    config.set_compute_capability(1, 0)") == []  # fmt: skip
    assert missing("named(trt.BuilderFlag, 'FP16')") == []


def test_targets_are_those_of_the_library() -> None:
    assert set(RTX_TARGETS) == set(NAMES["rtx1.7"]["ComputeCapability"]) - {"NONE", "CURRENT"}


def test_the_table_is_of_the_installed_library() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx: save-deploy[rtx]")
    if not trt.__version__.startswith("1.7."):
        pytest.skip(f"the table is of RTX 1.7, installed is {trt.__version__}")
    for owner, names in NAMES["rtx1.7"].items():
        holder = trt if owner == "module" else getattr(trt, owner)
        assert all(hasattr(holder, name) for name in names), owner
