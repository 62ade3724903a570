"""Files whose tensors are missing or of another shape: every name of every layout is tried once."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from save_deploy.checkpoints import foreign, load, mapping
from save_deploy.checkpoints.fit import POS_EMBED, meta_state
from save_deploy.checkpoints.inspect import inspect_checkpoint
from save_deploy.checkpoints.mapping import NameMap
from save_deploy.checkpoints.native import read_native
from save_deploy.checkpoints.pth import PthFile
from save_deploy.checkpoints.weights import WeightFile
from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError
from save_deploy.model.save import SaveModel
from save_deploy.weight_files import FORMAT, FORMAT_VERSION
from tests.checkpoints.files import (
    gavs_state,
    med2d_state,
    sam_modules,
    sam_state,
    sama_state,
    vggish_state,
)
from tests.conftest import randomise

pytestmark = pytest.mark.usefixtures("presets")
State = dict[str, Tensor]
DAMAGES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda value: None,
    "no rank": lambda value: torch.zeros(()),
    "flat": lambda value: value.flatten(),
    "empty": lambda value: value[:0],
    "no channels": lambda value: value[..., :0],
    "twice as wide": lambda value: torch.cat([value, value], -1),
}
# (1,g,g,C), from which a resolution follows: of nothing, too large, not square
POSITIONS = [(1, 1 << 27, 0, 0), (1, 513, 513, 32), (1, 4, 2, 32)]


def without_prefix(state: State) -> State:
    return {k.removeprefix("model_v."): v for k, v in state.items()}


def own_model() -> SaveModel:
    torch.manual_seed(3)
    model = randomise(SaveModel(SaveConfig.preset("vit_x", res=256))).requires_grad_(False)
    assert isinstance(model, SaveModel)
    return model


def damaged(state: State) -> Iterator[tuple[str, State]]:
    """(what is wrong, the state with it), one name of those that differ in numbers only."""
    alike = {re.sub(r"\d+", "0", name): name for name in reversed(state)}
    for name in alike.values():
        for damage, change in DAMAGES.items():
            value = change(state[name])
            if value is None:
                yield f"{name} {damage}", {k: v for k, v in state.items() if k != name}
            elif value.shape != state[name].shape:
                yield f"{name} {damage}", {**state, name: value}
    for shape in POSITIONS if POS_EMBED in state else ():
        yield f"{POS_EMBED} {shape}", {**state, POS_EMBED: torch.zeros(shape)}


def small_interpolate(table: Tensor, size: Any, **how: Any) -> Tensor:
    """torch's, that fails before it takes gigabytes."""
    assert math.prod((*table.shape[:2], *np.atleast_1d(size).tolist())) < 1 << 26, "too large"
    return interpolate(table, size, **how)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, State]:
    """States by the name of a file; they take the place of what is read from a disk."""
    held: dict[str, State] = {}
    weights = lambda path: WeightFile(path, held[path.name], "PyTorch", "", "", ())
    monkeypatch.setattr(load, "open_weights", weights)
    monkeypatch.setattr(foreign, "open_weights", weights)
    monkeypatch.setattr(mapping, "open_stored", lambda path: PthFile(held[path.name], "", ()))
    monkeypatch.setattr(load, "is_ours", lambda path: path.name == "own")
    for module in (foreign, mapping):  # building the model hundreds of times takes seconds
        monkeypatch.setattr(module, "meta_state", functools.cache(meta_state))
    monkeypatch.setattr(load, "interpolate", small_interpolate)
    config = SaveConfig.preset("vit_x", res=256)
    monkeypatch.setattr(load, "read_native", lambda path: (held[path.name], config, "full"))
    return held


def through_a_map(path: Path) -> object:
    return mapping.map_file(path, NameMap("save", "vit_x", None, {}, (("{rest}", "{rest}"),)))


# file -> its intact state, and what reads it
READERS: dict[str, tuple[Callable[[], State], Callable[[Path], object]]] = {
    "sama_avs": (lambda: sama_state(sam_modules()), lambda path: load.load_model(path)),
    "gavs": (
        lambda: without_prefix(gavs_state(sam_modules(depth=5), 5, tune_v=2)),
        lambda path: load.load_model(path, vggish=Path("intact")),
    ),
    "vggish": (vggish_state, lambda path: load.load_model(Path("gavs"), vggish=path)),
    "sam": (lambda: sam_state(sam_modules()), lambda path: foreign.read_sam(path)),
    "sam_med2d": (lambda: med2d_state(sam_modules(256)), lambda path: foreign.read_sam(path)),
    "map": (lambda: own_model().state_dict(), through_a_map),
    "own": (lambda: own_model().state_dict(), lambda path: load.load_model(path)),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_tensor_missing_or_of_another_shape(files: dict[str, State], kind: str) -> None:
    make, read = READERS[kind]
    intact = make()
    files |= {"intact": vggish_state(), "gavs": READERS["gavs"][0](), kind: intact}
    read(Path(kind))
    faults, n = [], 0
    for what, state in damaged(intact):
        files[kind] = state
        try:
            read(Path(kind))
            faults.append(f"{what}: accepted")
        except CheckpointError as error:
            if not (error.what and error.got and error.expected) or error.exit_code != 1:
                faults.append(f"{what}: {error}")
        except Exception as error:
            faults.append(f"{what}: {type(error).__name__}: {error}")
        n += 1
    optional = {"gavs": "adapter_v", "map": "prompt_encoder.|iou_prediction|hypernetworks"}
    allowed = [f for f in faults if kind in optional and "missing: accepted" in f]
    assert all(re.search(optional[kind], fault) for fault in allowed)
    assert [fault for fault in faults if fault not in allowed] == []
    assert n > 60 or kind == "vggish"


@pytest.mark.parametrize("key", ["pixel_mean", "pixel_std"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (4,), (3, 2), (100_000,)])
def test_pixel_buffers_of_another_size(
    files: dict[str, State], key: str, shape: tuple[int, ...]
) -> None:
    files["sam"] = {**sam_state(sam_modules()), key: torch.full(shape, 123.675)}
    with pytest.raises(CheckpointError, match=f"another {key}") as caught:
        foreign.read_sam(Path("sam"))
    assert len(str(caught.value)) < 400


def test_an_odd_number_of_tokens(files: dict[str, State]) -> None:
    """No SAVE runs there; SAM's table is resized anyway."""
    odd = {POS_EMBED: torch.zeros(1, 5, 5, 32)}
    files["sama_avs"] = {**READERS["sama_avs"][0](), **odd}
    with pytest.raises(CheckpointError, match=r"unsupported resolution(.|\n)*of 80 px(.|\n)*32 px"):
        load.load_model(Path("sama_avs"))
    files["sam"] = {**sam_state(sam_modules()), **odd}
    assert foreign.read_sam(Path("sam"))[0][POS_EMBED].shape == (1, 5, 5, 32)


def test_adapters_that_gavs_never_reads_have_its_shape(files: dict[str, State]) -> None:
    """Those of blocks before --tune_v say where it is, so they are read."""
    state = READERS["gavs"][0]()
    name = "image_encoder.blocks.0.adapter_v.2.weight"
    for shape in ((32,), (32, 0), (0, 128)):
        files["gavs"] = {**state, name: torch.zeros(shape)}
        with pytest.raises(CheckpointError, match=rf"1 tensors of GAVS(.|\n)*{name} ") as caught:
            load.load_model(Path("gavs"))
        assert str(shape) in caught.value.got and "(32, 128)" in caught.value.got
        assert caught.value.hint
    late = "image_encoder.blocks.4.adapter_v.0.bias"
    files["gavs"] = {k: v for k, v in state.items() if k != late}
    with pytest.raises(
        CheckpointError, match=r"1 tensors of GAVS are missing(.|\n)*adapter\.0\.bias"
    ):
        load.load_model(Path("gavs"), vggish=Path("intact"))


def test_a_table_grows_only_in_a_model_that_fits(
    files: dict[str, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header of 8192 px and a table of one token: nothing is resized before all shapes are right."""
    wide = SaveConfig.preset("vit_x", res=256).replace(embed_dim=4096, res=8192)
    files["own"] = {POS_EMBED: torch.zeros(1, 1, 1, 4096)}
    monkeypatch.setattr(load, "read_native", lambda path: (files["own"], wide, "full"))
    monkeypatch.setattr(load, "interpolate", lambda *_, **__: pytest.fail("resized"))
    with pytest.raises(CheckpointError, match="do not fit"):
        load.load_model(Path("own"))


def test_names_that_a_rule_takes_and_no_model_has(files: dict[str, State]) -> None:
    """Blocks and layers of any number have a name; they are refused before they are converted."""
    files["sama_avs"] = sama_state(sam_modules())
    files["sama_avs"]["image_encoder.neck.5000.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="not part of a") as caught:
        load.load_model(Path("sama_avs"))
    assert "neck.5000" in caught.value.got


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, 2.0], True), ([], True), ([3e38, 3e38], True), ([1.0, math.nan], False),
        ([math.inf, -math.inf], False), ([3e38, math.inf], False), ([-math.inf], False),
    ],
)  # fmt: skip
def test_what_is_not_finite(values: list[float], finite: bool) -> None:
    """Finite values whose sum overflows are finite."""
    assert load._all_finite(torch.tensor(values)) is finite


def test_own_files_are_checked_before_they_are_converted(tmp_path: Path) -> None:
    """A tensor that no model has is named, whatever its size: no value of it is read."""
    config = SaveConfig.preset("vit_x", res=256)
    path = tmp_path / "f.safetensors"
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "full",
        "config": config.to_json(),
        "notes": "{}",
    }
    save_file({"more": torch.zeros(4, dtype=torch.uint8)}, path, metadata=metadata)
    state, _, _ = read_native(path)
    assert state["more"].dtype == torch.uint8
    with pytest.raises(CheckpointError, match="do not fit"):
        load.load_model(path)


def test_inspect_names_wrong_shapes(tmp_path: Path) -> None:
    state = sam_state(sam_modules())
    torch.save(state, tmp_path / "f.pth")
    intact = inspect_checkpoint(tmp_path / "f.pth")
    assert "save-train" in intact.next and not intact.remarks
    name = "image_encoder.neck.0.weight"
    torch.save({**state, name: state[name].flatten()}, tmp_path / "f.pth")
    found = inspect_checkpoint(tmp_path / "f.pth")
    assert found.next == "" and len(found.remarks) == 1
    assert found.remarks[0] == f"{name} (8192,), expected (256, 32, 1, 1)"
