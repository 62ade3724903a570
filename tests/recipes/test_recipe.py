"""Recipe files: what a good one gives, and what a bad one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from save_deploy.errors import SaveDeployError
from save_deploy.recipes.recipe import load_recipe

GOOD = """
table = "own"
row = "mine"
title = "Mine"
system = "save"
backbone = "vit_b"
res = 256

[switches]
audio_layers = 3

[[stage]]
dataset = "s4"
towards = ["s4"]
epochs = 80
item = "frame"
batch = 16
gpus = 2
lr = 2e-4
schedule = "cosine"
final_lr = 0
warmup_steps = 0
weight_decay = 0.01
loss = "bce+iou"

[test]
s4 = "test"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_own_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.name, recipe.metrics, recipe.mask) == ("mine", "avsbench", "model")
    assert recipe.config().audio_layers == 3
    assert recipe.config(audio_layers=1, backbone="vit_t", res=224).audio_layers == 1
    assert recipe.paper == {} and recipe.switches == {"audio_layers": 3}
    stage = recipe.chain("s4")[0]
    assert (stage.res, stage.lr, stage.final_lr) == (256, 2e-4, 0.0)
    assert recipe.config().embed_dim == 768


def test_steps() -> None:
    """S4 has 3452 training clips; 32 a step are 108 steps an epoch."""
    recipe = load_recipe("t1_save_256")
    stage = recipe.chain("s4")[0]
    assert recipe.steps(stage, 3452) == 8640
    assert recipe.steps(stage, 32) == 80 and recipe.steps(stage, 33) == 160
    large = load_recipe("t1_save_1024")
    assert large.steps(large.chain("s4")[0], 3452) == 863 * 80
    gavs = load_recipe("t1_gavs")
    assert gavs.steps(gavs.chain("ms3")[0], 296) == 296 * 60
    with pytest.raises(SaveDeployError, match="nothing to train on"):
        recipe.steps(stage, 0)


BAD = {
    # what is replaced, by what, what the error names
    "unknown key": ('title = "Mine"', 'title = "Mine"\ntitel = "x"', "unknown key titel"),
    "unknown stage key": ("gpus = 2", "gpus = 2\nlearning_rate = 1", "stage[0].learning_rate"),
    "unknown switch": ("audio_layers = 3", "audio_layer = 3", "switches.audio_layer"),
    "switch that is a key": ("audio_layers = 3", "res = 224", "switches.res"),
    "switch of wrong type": ("audio_layers = 3", 'audio_layers = "3"', "switches.audio_layers"),
    "switch of no model": ("audio_layers = 3", 'audio_mode = "loud"', "switches.audio_mode"),
    "blocks of no number": ("audio_layers = 3", 'global_blocks = ["a"]', "switches.global_blocks[0]"),
    "no heads": ("audio_layers = 3", "num_heads = 0", "switches.num_heads"),
    "heads that do not divide": ("audio_layers = 3", "num_heads = 7", "switches"),
    "zero lr": ("lr = 2e-4", "lr = 0", "stage[0].lr"),
    "missing key": ("res = 256\n", "", "res"),
    "missing stage key": ("epochs = 80\n", "", "stage[0].epochs"),
    "missing final_lr": ("final_lr = 0\n", "", "stage[0].final_lr"),
    "final_lr of a constant": ('"cosine"', '"constant"', "stage[0].final_lr"),
    "text for a number": ("lr = 2e-4", 'lr = "2e-4"', "stage[0].lr"),
    "boolean for a number": ("gpus = 2", "gpus = true", "stage[0].gpus"),
    "fraction for a whole": ("batch = 16", "batch = 16.0", "stage[0].batch"),
    "nan": ("lr = 2e-4", "lr = nan", "stage[0].lr"),
    "zero epochs": ("epochs = 80", "epochs = 0", "stage[0].epochs"),
    "rising cosine": ("final_lr = 0", "final_lr = 1e-3", "stage[0].final_lr"),
    "unknown system": ('"save"', '"safe"', "system"),
    "unknown backbone": ("vit_b", "vit_g", "backbone"),
    "unknown dataset": ('dataset = "s4"', 'dataset = "s5"', "stage[0].dataset"),
    "training on unseen classes": ('dataset = "s4"', 'dataset = "v3_unseen"', "stage[0].dataset"),
    "towards nothing": ('towards = ["s4"]', "towards = []", "stage[0].towards"),
    "towards what is not tested": ('towards = ["s4"]', 'towards = ["ms3"]', "stage[0].towards[0]"),
    "unknown split": ('s4 = "test"', 's4 = "tset"', "test.s4"),
    "unknown test": ('s4 = "test"', 's4 = "test"\ns5 = "test"', "test.s5"),
    "no test": ('[test]\ns4 = "test"', "[test]", "test"),
    "odd resolution": ("res = 256", "res = 512", "res"),
    "stage is no list": ("[[stage]]", "[stage]", "stage"),
    "unknown protocol": ("res = 256", 'res = 256\nmetrics = "mine"', "metrics"),
    "oracle that trains": ("res = 256", 'res = 256\nmask = "oracle"', "mask"),
    "score in 0..1": ('s4 = "test"', 's4 = "test"\n[paper.s4]\nm_j = 84.0\nm_f = 90.5', "paper.s4.m_f"),
    "score of no test": ('s4 = "test"', 's4 = "test"\n[paper.v2]\nm_j = 1\nm_f = 0', "paper.v2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_file(tmp_path: Path, case: str) -> None:
    """One line, naming the file and the key."""
    old, new, key = BAD[case]
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(SaveDeployError) as caught:
        load_recipe(path)
    assert str(path) in caught.value.what and caught.value.what.endswith(key)
    assert caught.value.expected


def test_v2_weights_never_start_v3(tmp_path: Path) -> None:
    """The seen classes hold clips of V2's test split."""
    text = GOOD.replace('dataset = "s4"', 'dataset = "v2"').replace('"s4"]', '"v3_unseen"]')
    with pytest.raises(SaveDeployError, match="v2 before v3"):
        load_recipe(write(tmp_path, text.replace('s4 = "test"', 'v3_unseen = "test"')))
    sound = text.replace('"v2"', '"v3_seen"').replace('s4 = "test"', 'v3_unseen = "test"')
    assert load_recipe(write(tmp_path, sound)).chain("v3_unseen")[0].dataset == "v3_seen"


@pytest.mark.parametrize("content", [b"table = ", b"\xff\xfe", b"\x00", b"a = " + b"[" * 5000])
def test_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SaveDeployError, match=r"mine\.toml"):
        load_recipe(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SaveDeployError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(SaveDeployError, match="cannot read"):
        (tmp_path / "folder.toml").mkdir()
        load_recipe(tmp_path / "folder.toml")
