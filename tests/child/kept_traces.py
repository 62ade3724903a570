"""Traces of `torch.onnx.export` kept on disk: for all workers, child processes and runs of the tests.

A trace takes most of an export and depends on the module alone. What the product does with a trace runs
every time. At file level only the standard library is imported: children without torch load this too.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
TRACED = ("save_deploy/model", "export/merge", "export")  # folders with code that is traced
ENVIRONMENT = "SAVE_TEST_CACHE"


def share_with_children() -> Path:
    """The folder for what is kept between runs: $SAVE_TEST_CACHE or one in the user's cache.

    Child processes of this one find it in the environment, and sitecustomize.py in their path.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get(ENVIRONMENT) or user / "save-deploy-tests")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to write to
        folder = Path(tempfile.gettempdir()) / f"save-deploy-tests-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    os.environ[ENVIRONMENT] = str(folder)
    here, paths = str(Path(__file__).parent), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, *paths]))
    return folder


def code_hash(paths: Sequence[Path], more: bytes = b"") -> str:
    digest = hashlib.sha256(more)
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def traced_code() -> str:
    """Hash of the files in TRACED."""
    return code_hash([path for folder in TRACED for path in (ROOT / folder).glob("*.py")])


@functools.cache
def _source(kind: type) -> bytes:
    """The file of a class: modules of torch, and those that tests define."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        return b""


def module_key(module: Any, example: Sequence[Any], **options: object) -> str:
    """Hash of all a trace can depend on: code, structure, attributes, weights, shapes, versions."""
    import onnx
    import onnxscript
    import torch

    versions = (torch.__version__, onnx.__version__, onnxscript.__version__)
    digest = hashlib.sha256(f"{versions} {traced_code()} {sorted(options.items())}".encode())

    def add(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())

    ignored = vars(torch.nn.Module()).keys()
    for name, part in module.named_modules():
        digest.update(f"{name} {type(part).__qualname__}".encode())
        digest.update(hashlib.sha256(_source(type(part))).digest())
        for key, value in sorted(vars(part).items()):
            if key not in ignored or key == "training":
                add(key, value)
    # not state_dict: buffers that no checkpoint holds are part of the graph too
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        add(name, tensor)
    for tensor in example:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return digest.hexdigest()


def kept(export: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`export` that traces equal modules once; every caller gets a graph of its own."""

    @functools.wraps(export)
    def from_kept(module: Any, args: Any = (), f: Any = None, **options: Any) -> Any:
        import onnx
        import onnx_ir as ir

        if f is not None or options.get("optimize", True):
            return export(module, args, f, **options)  # not how the product calls it
        path = folder / f"{module_key(module, args, **options)}.onnx"
        folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever wants the same waits for it
            if path.exists():
                os.utime(path)
            else:
                program = export(module, args, **options)
                partial = path.with_suffix(f".{os.getpid()}")
                partial.write_bytes(ir.to_proto(program.model).SerializeToString())
                partial.replace(path)
            # read again by whoever wrote it too: names of constants depend on the order in a file
            return SimpleNamespace(model=ir.from_proto(onnx.load(path)))

    return from_kept


def install(onnx_module: ModuleType) -> None:
    """Replace torch.onnx.export, where the tests say in which folder traces are kept."""
    if place := os.environ.get(ENVIRONMENT):
        onnx_module.export = kept(onnx_module.export, Path(place) / "traces")  # type: ignore[attr-defined]


class _AfterTorchOnnx(MetaPathFinder):
    """Finds torch.onnx as Python does, and installs the kept traces once it is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "torch.onnx":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Installing(spec.loader)
        return spec


class _Installing(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        install(module)


def install_on_import() -> None:
    """Without importing torch: `install` as soon as something else does."""
    if os.environ.get(ENVIRONMENT):
        sys.meta_path.insert(0, _AfterTorchOnnx())
