"""Stored pickles: tensors and name lists are read, everything else is refused and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from save_deploy.data.safe_pickle import load_audio_names, load_log_mel
from save_deploy.errors import DataError
from tests.data import trees


class Calls:
    """Unpickling this calls function(*arguments)."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("gradient", [True, False])
def test_log_mel(tmp_path: Path, protocol: int, gradient: bool) -> None:
    values = trees.log_mel_of("a")
    tensor = torch.from_numpy(values).requires_grad_(gradient)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(tensor, protocol))
    got = load_log_mel(tmp_path / "a.pkl")
    assert type(got) is np.ndarray and got.dtype == np.float32
    np.testing.assert_array_equal(got, values)


def test_names(tmp_path: Path) -> None:
    names = {0: ["a", "b"], 12: ["c"]}
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(names))
    assert load_audio_names(tmp_path / "n.pkl") == names


def attacks(mark: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose unpickling would create a file, and the name that must be refused."""
    touch = f"open({str(mark)!r}, 'w').close()"
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {mark}"), inner, _use_new_zipfile_serialization=False)
    plain = pickle.dumps(Calls(os.system, f"touch {mark}"), 2)
    return {
        "system": (Calls(os.system, f"touch {mark}"), "posix.system"),
        "exec": (Calls(exec, touch), "builtins.exec"),
        "getattr": (Calls(getattr, os, "system"), "builtins.getattr"),
        "inside a dict": ({0: [Calls(exec, touch)]}, "builtins.exec"),
        "storage": (Calls(torch.storage._load_from_bytes, inner.getvalue()), "posix.system"),
        "storage without header": (Calls(torch.storage._load_from_bytes, plain), ""),
        "torch.load": (Calls(torch.load, str(mark)), "torch.serialization.load"),
        "numpy": (np.zeros(3), "numpy"),
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
@pytest.mark.parametrize("load", [load_log_mel, load_audio_names])
def test_nothing_is_executed(tmp_path: Path, attack: str, load: Any) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.pkl"
    if attack == "getattr":  # modules cannot be pickled; by hand
        path.write_bytes(b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR.")
        refused = "builtins.getattr"
    else:
        thing, refused = attacks(mark)[attack]
        path.write_bytes(pickle.dumps(thing))
    with pytest.raises(DataError) as error:
        load(path)
    assert str(path) in error.value.got and not mark.exists()
    if load is load_log_mel or "storage" not in attack:
        assert refused in error.value.got
    else:
        assert "torch.storage._load_from_bytes" in error.value.got


def test_the_attacks_work_on_plain_pickle(tmp_path: Path) -> None:
    """Twin: without the restriction the same bytes do create the file."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(attacks(mark)["exec"][0]))
    assert mark.exists()
    mark.unlink()
    pickle.loads(pickle.dumps(attacks(mark)["system"][0]))
    assert mark.exists()


def test_writing_to_a_function_alters_nothing_shared(tmp_path: Path) -> None:
    """BUILD sets attributes of what find_class returned: those are stand-ins of this file only."""
    state = b"ctorch._utils\n_rebuild_tensor_v2\n}Vpoison\nI1\nsb."
    (tmp_path / "a.pkl").write_bytes(state)
    with pytest.raises(DataError, match="not a tensor"):
        load_log_mel(tmp_path / "a.pkl")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "poison")


@pytest.mark.parametrize("keep", [0, 1, 10, 200, -1, -40])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.pkl"
    trees.write_log_mel(path, trees.log_mel_of("a"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="pickle is damaged") as error:
        load_log_mel(path)
    assert str(path) in error.value.got


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"p2147483647\n"])
def test_memo_index_is_bounded(tmp_path: Path, put: bytes) -> None:
    """Python's unpickler allocates as many entries as the largest index says: here 16 GiB."""
    path = tmp_path / "names.pkl"
    path.write_bytes(b"\x80\x04}" + put + b".")
    with pytest.raises(DataError, match="memo index 2147483647 in"):
        load_audio_names(path)


@pytest.mark.parametrize("inside", [True, False])
def test_a_long_name_is_refused_at_once(tmp_path: Path, inside: bool) -> None:
    """torch needs time in proportion to the square of its length; the error shows its beginning."""
    name = b"c" + b"torch" + b"x" * 100_000 + b"\nFloatStorage\n."
    stream = io.BytesIO()
    torch.save(torch.ones(1).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    begin = 0
    for _ in range(3):  # magic number, protocol, machine
        begin = stream.getvalue().index(b".", begin) + 1
    values = stream.getvalue()[:begin] + name
    call = (
        b"ctorch.storage\n_load_from_bytes\nB"
        + len(values).to_bytes(4, "little")
        + values
        + b"\x85R."
    )
    path = tmp_path / "mel.pkl"
    path.write_bytes(b"\x80\x04" + (call if inside else name))
    expected = "a text of 100018 characters" if inside else "more than a tensor"
    with pytest.raises(DataError, match=expected) as error:
        load_log_mel(path)
    assert len(str(error.value)) < 1000


def test_missing(tmp_path: Path) -> None:
    for load in (load_log_mel, load_audio_names):
        with pytest.raises(DataError, match=r"cannot be read[^$]*gone.pkl"):
            load(tmp_path / "gone.pkl")


def test_random_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    trees.write_log_mel(path, trees.log_mel_of("a", 1))
    good, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(good)
        for at in rng.integers(0, 700, size=4):
            bad[at] = rng.integers(256)
        path.write_bytes(bytes(bad))
        try:
            assert load_log_mel(path).shape == (1, 1, 96, 64)
        except DataError as error:
            assert str(path) in error.got


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(5, 96, 64), "wrong log-mel tensor"),
        (torch.zeros(5, 1, 64, 96), "wrong log-mel tensor"),
        (torch.zeros(0, 1, 96, 64), "wrong log-mel tensor"),
        (torch.zeros(5, 1, 96, 64, dtype=torch.float64), "wrong log-mel tensor"),
        (torch.full((1, 1, 96, 64), torch.nan), "NaN"),
        (torch.full((1, 1, 96, 64), -torch.inf), "NaN"),
        ([1, 2], "not a tensor"),
        ("text", "not a tensor"),
        (OrderedDict(), "not a tensor"),
    ],
)
def test_wrong_contents(tmp_path: Path, tensor: Any, message: str) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(tensor))
    with pytest.raises(DataError, match=message):
        load_log_mel(tmp_path / "a.pkl")


def test_a_huge_view_of_one_value_is_not_copied(tmp_path: Path) -> None:
    """Strides of 0 claim any size from a few bytes."""
    huge = torch.zeros(1).as_strided((10**12, 1, 96, 64), (0, 0, 0, 0))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(huge))
    with pytest.raises(DataError, match="wrong log-mel tensor"):
        load_log_mel(tmp_path / "a.pkl")


@pytest.mark.parametrize("names", [[], {"0": ["a"]}, {0: "a"}, {0: []}, {0: [1]}, {True: ["a"]}])
def test_wrong_names(tmp_path: Path, names: Any) -> None:
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(names))
    with pytest.raises(DataError, match=r"wrong list of sounds[^$]*n.pkl"):
        load_audio_names(tmp_path / "n.pkl")
