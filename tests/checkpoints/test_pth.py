"""PyTorch files in every wrapping, with what training scripts leave in them, and with attacks."""

from __future__ import annotations

import argparse
import builtins
import collections
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from save_deploy.checkpoints import load_model
from save_deploy.checkpoints.weights import open_weights
from save_deploy.errors import CheckpointError

FORMATS = [True, False]


def read_pth(path: Path) -> dict[str, torch.Tensor]:
    return open_weights(path).tensors


def state() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([7], dtype=torch.int64)}


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(state())
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state().items())


@pytest.mark.parametrize("as_zip", FORMATS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "module.model_v."])
@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "model_state_dict"])
def test_wrappers_and_prefixes(tmp_path: Path, wrapper: str, prefix: str, as_zip: bool) -> None:
    content: Any = {prefix + k: v for k, v in state().items()}
    content = {wrapper: content, "epoch": 3} if wrapper else content
    torch.save(content, tmp_path / "f.pth", _use_new_zipfile_serialization=as_zip)
    file = open_weights(tmp_path / "f.pth")
    assert_same(file.tensors)
    assert (file.wrapper, file.prefix) == (wrapper, prefix)
    assert file.dropped == (("epoch",) if wrapper else ())


def test_a_prefix_that_not_all_share_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "f.pth")
    assert set(read_pth(tmp_path / "f.pth")) == {"module.a", "b"}


def test_parameters_become_tensors(tmp_path: Path) -> None:
    torch.save({"w": nn.Parameter(torch.ones(2))}, tmp_path / "f.pth")
    found = read_pth(tmp_path / "f.pth")["w"]
    assert type(found) is torch.Tensor and not found.requires_grad and found.tolist() == [1, 1]


@pytest.mark.parametrize("as_zip", FORMATS)
@pytest.mark.parametrize("shapes_only", [False, True])
def test_what_training_scripts_store(tmp_path: Path, as_zip: bool, shapes_only: bool) -> None:
    """SAM-Med2D's train.py pickles the optimizer itself; others args, defaultdicts, numpy."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 10]),
        "args": argparse.Namespace(lr=0.1, name="x"),
        "scores": collections.defaultdict(list, {"iou": [0.5]}),
        "best": np.float64(0.5),
        "curve": np.zeros(3, np.float32),
        "epoch": 3,
    }
    torch.save(content, tmp_path / "f.pth", _use_new_zipfile_serialization=as_zip)
    before = set(torch.serialization.get_safe_globals())
    file = open_weights(tmp_path / "f.pth", shapes_only=shapes_only)
    assert set(file.dropped) == set(content) - {"model"}
    assert {k: v.shape for k, v in file.tensors.items()} == {"weight": (4, 3), "bias": (4,)}
    if not shapes_only:
        assert torch.equal(file.tensors["weight"], model.weight)
    assert set(torch.serialization.get_safe_globals()) == before  # nothing stays allowed


class Call:
    """Unpickles into a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


ATTACKS = {
    "posix.system": lambda: Call(os.system, "touch pwned"),
    "builtins.eval": lambda: Call(builtins.eval, "open('pwned', 'w')"),
    ".Popen": lambda: Call(__import__("subprocess").Popen, ["touch", "pwned"]),
    "pathlib": lambda: Call(Path.touch, Path("pwned")),
    "torch.serialization.load": lambda: Call(torch.load, "pwned"),
    "zipfile.ZipFile": lambda: Call(zipfile.ZipFile, "pwned", "w"),
}


@pytest.mark.parametrize("as_zip", FORMATS)
@pytest.mark.parametrize("beside_optimizer", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_code_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, as_zip: bool, beside_optimizer: bool
) -> None:
    """Also behind an optimizer, whose stand-in must not open the door for what follows."""
    monkeypatch.chdir(tmp_path)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    content: dict[str, Any] = {"model": state()}
    content["optimizer"] = optimizer if beside_optimizer else 0
    content["x"] = ATTACKS[name]()
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=as_zip)
    for read in (read_pth, load_model):
        with pytest.raises(CheckpointError, match="more than tensors") as caught:
            read(Path("evil.pth"))
        assert "evil.pth" in str(caught.value)
        assert "a reference to " in str(caught.value)
        if name not in ("pathlib",):  # pickled as getattr(Path, "touch")
            assert name in str(caught.value)
    assert not Path("pwned").exists()


def test_the_attack_works_without_protection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: plain unpickling does create the file."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(ATTACKS["posix.system"]()))
    assert Path("pwned").exists()


def test_a_name_that_only_looks_like_an_optimizer_stays_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GLOBAL torch.optim.sgd / os.system is never looked up: the stand-in takes its place."""
    monkeypatch.chdir(tmp_path)
    raw = (
        b"\x80\x02}q\x00(X\x01\x00\x00\x00wq\x01ctorch.optim.sgd\nos.system\n"
        b"X\x0b\x00\x00\x00touch pwnedq\x02\x85q\x03Rq\x04u."
    )
    with zipfile.ZipFile("f.pth", "w") as archive:
        archive.writestr("archive/data.pkl", raw)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_pth(Path("f.pth"))
    assert not Path("pwned").exists()


def test_whole_modules_and_other_objects(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear(.|\n)*next"):
        read_pth(tmp_path / "module.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="a list"):
        read_pth(tmp_path / "list.pth")
    torch.save({"model": {}, "epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"no tensors(.|\n)*model, epoch"):
        read_pth(tmp_path / "empty.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04 and nothing more", "cannot be read"),
        (b"just text, no pickle at all", "cannot be read|more than tensors"),
        (b"\x80\x02]q\x00.", "cannot be read|not a dict|more than tensors"),
    ],
)
def test_what_lies_in_place_of_a_checkpoint(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "f.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_pth(tmp_path / "f.pth")
    assert "f.pth" in str(caught.value)


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "f.pth")
    assert_same(read_pth(tmp_path / "f.pth"))


@pytest.mark.parametrize("as_zip", FORMATS)
@pytest.mark.parametrize("kept", [1, 3, 30, 200, 900, -8])
def test_truncated(tmp_path: Path, as_zip: bool, kept: int) -> None:
    torch.save({"w": torch.randn(500)}, tmp_path / "f.pth", _use_new_zipfile_serialization=as_zip)
    content = (tmp_path / "f.pth").read_bytes()
    (tmp_path / "f.pth").write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=r"cannot be read|more than tensors"):
        read_pth(tmp_path / "f.pth")


@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_what_unpacks_to_more_than_the_file(tmp_path: Path, entry: str) -> None:
    """Three megabytes hold three thousand million steps of a pickle, or so many weights."""
    torch.save(state(), tmp_path / "s.pth")
    with zipfile.ZipFile(tmp_path / "s.pth") as source:
        with zipfile.ZipFile(tmp_path / "f.pth", "w") as target:
            for info in source.infolist():
                content = source.read(info) + (
                    bytes(100_000) if info.filename.endswith(entry) else b""
                )
                packed = zipfile.ZIP_DEFLATED if len(content) > 100_000 - 1 else zipfile.ZIP_STORED
                target.writestr(info.filename, content, packed)
    with pytest.raises(CheckpointError, match=f"{entry.split('/')[-1]} is compressed"):
        read_pth(tmp_path / "f.pth")
    assert_same(read_pth(tmp_path / "s.pth"))


@pytest.mark.parametrize("as_zip", FORMATS)
@pytest.mark.parametrize("shapes_only", [False, True])
@pytest.mark.parametrize(
    "larger",
    [
        torch.zeros(1).expand(1 << 40),
        torch.zeros(1, dtype=torch.int8).expand(1 << 30, 1 << 20, 8),
        torch.zeros(100).as_strided((99, 2), (1, 1)),
        torch.nn.Parameter(torch.zeros(3, 1)).expand(3, 4),
    ],
    ids=["stride 0", "int8", "overlap", "parameter"],
)
def test_tensors_larger_than_what_is_stored(
    tmp_path: Path, larger: torch.Tensor, shapes_only: bool, as_zip: bool
) -> None:
    """A kilobyte that would take four terabytes as soon as a value is converted."""
    path = tmp_path / "f.pth"
    torch.save({**state(), "w": larger}, path, _use_new_zipfile_serialization=as_zip)
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"larger than (.|\n)*f\.pth: w ") as caught:
        open_weights(path, shapes_only=shapes_only)
    assert str(tuple(larger.shape)) in caught.value.got and "contiguous" in caught.value.hint


@pytest.mark.parametrize("as_zip", FORMATS)
def test_views_of_one_storage(tmp_path: Path, as_zip: bool) -> None:
    """Transposed, cut out, and two names of one tensor: nothing is larger than the storage."""
    whole = torch.arange(12.0).reshape(3, 4)
    views = {"a": whole, "b": whole, "t": whole.t(), "cut": whole[1:, 2:], "none": whole[:0]}
    torch.save(views, tmp_path / "f.pth", _use_new_zipfile_serialization=as_zip)
    found = read_pth(tmp_path / "f.pth")
    assert found.keys() == views.keys()
    assert all(torch.equal(found[k], v) for k, v in views.items())


@pytest.mark.parametrize("as_zip", FORMATS)
def test_many_views_of_one_storage(tmp_path: Path, as_zip: bool) -> None:
    """Each is as large as what is stored; converted they would be many times as large."""
    whole = torch.zeros(1000, dtype=torch.float16)
    views = {f"w{i}": whole.view(10, 100) for i in range(100)}
    torch.save(views, tmp_path / "f.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"200000 bytes of 2000"):
        read_pth(tmp_path / "f.pth")


def test_tensors_without_values(tmp_path: Path) -> None:
    """Of the device meta: a shape alone."""
    torch.save({**state(), "w": torch.zeros(7, device="meta")}, tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match=r"larger than (.|\n)*w \(7,\)"):
        read_pth(tmp_path / "f.pth")


@pytest.mark.filterwarnings("ignore:.*nested")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.zeros(2, dtype=torch.complex64),
        lambda: torch._neg_view(torch.ones(3)),
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
    ids=["nested", "complex", "negated", "sparse", "quantized"],
)
def test_tensors_that_are_no_plain_numbers_are_left_out(
    tmp_path: Path, make: Callable[[], torch.Tensor]
) -> None:
    torch.save({**state(), "x": make()}, tmp_path / "f.pth")
    file = open_weights(tmp_path / "f.pth")
    assert_same(file.tensors)
    assert file.dropped == ("x",)


def test_types_that_no_weight_has(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "f.safetensors")
    for shapes_only in (False, True):
        with pytest.raises(CheckpointError, match=r"unsupported type(.|\n)*w of type C64"):
            open_weights(tmp_path / "f.safetensors", shapes_only=shapes_only)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", ".", "/proc/self/mem"])
def test_names_that_no_checkpoint_has(name: str) -> None:
    with pytest.raises(CheckpointError):
        read_pth(Path(name))
