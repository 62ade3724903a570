"""Recipe of one row of the paper's tables, from training to its printed number.

    recipe = load_recipe("t2_save_256_ft_syn")
    [stage.dataset for stage in recipe.chain("ms3")]  # ["syn", "s4", "ms3"]

A row that is tested on two datasets has one file; each stage lists the tests it belongs to.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from save_deploy.config import PRESETS, RESOLUTIONS, SaveConfig, take_switch
from save_deploy.errors import SaveDeployError
from save_deploy.fields import Fields, near, read_toml
from save_deploy.metrics.segmentation import PROTOCOLS
from save_deploy.systems import SYSTEMS

ROWS = Path(__file__).parent / "rows"
_V3 = ("v3_seen", "v3_unseen", "v3_1_shot", "v3_3_shot", "v3_5_shot")
DATASETS = ("s4", "ms3", "v2", *_V3, "syn")
TRAINABLE = tuple(d for d in DATASETS if d != "v3_unseen")  # the 0-shot test
_CHOSEN_BY_ROW = ("name", "res", "system")  # keys of a recipe that are not switches


_LABELED = {"s4": 1, "ms3": 5}  # labeled frames of a training video; all other datasets have 10


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run, starting from the best weights of the previous stage (SPEC 6).

    towards: tested datasets whose chain includes this stage.
    item: unit of `batch`: a labeled frame, or a video with all its frames.
    A cosine schedule goes from lr to final_lr over all epochs.
    """

    dataset: str
    towards: tuple[str, ...]
    res: int  # px; may differ from the recipe's, as positions are resized between stages
    epochs: int
    item: str
    batch: int  # items per GPU
    gpus: int
    lr: float
    schedule: str
    final_lr: float
    warmup_steps: int
    weight_decay: float
    loss: str

    @property
    def frames(self) -> int:
        """Frames of a step on one GPU: `batch`, or the labeled frames of so many training videos."""
        return self.batch * (_LABELED.get(self.dataset, 10) if self.item == "video" else 1)


@dataclass(frozen=True)
class PaperScore:
    """M_J in percent (0 to 100), M_F in 0 to 1."""

    m_j: float
    m_f: float

    @property
    def text(self) -> str:
        return f"{self.m_j:.2f} / {self.m_f:.3f}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of the paper's tables.

    test: dataset -> split.
    mask: `model`, or `oracle` for the best of SAM's masks.
    paper: dataset -> printed score; empty in a user's own recipe.
    """

    name: str
    table: str
    row: str  # as printed
    title: str
    system: str
    backbone: str
    res: int
    metrics: str  # key of save_deploy.metrics PROTOCOLS
    mask: str
    switches: dict[str, Any]
    stages: tuple[Stage, ...]
    test: dict[str, str]
    paper: dict[str, PaperScore]

    def chain(self, dataset: str) -> tuple[Stage, ...]:
        """Return the stages before the test on `dataset`, in order; () for a row without training.

        Raises SaveDeployError for a dataset that this row is not tested on.
        """
        if dataset not in self.test:
            raise SaveDeployError(
                f"{self.name} is not tested on this dataset",
                got=dataset,
                expected=", ".join(self.test),
            )
        return tuple(s for s in self.stages if dataset in s.towards)

    def config(self, **changes: Any) -> SaveConfig:
        """Return the model configuration. A stage at another size uses `config(res=stage.res)`."""
        res = changes.pop("res", self.res)
        backbone = changes.pop("backbone", self.backbone)
        return SaveConfig.of_system(self.system, backbone, res=res, **{**self.switches, **changes})

    def steps(self, stage: Stage, n_items: int) -> int:
        """Return the optimizer steps of a stage over n_items frames or videos (`stage.item`)."""
        if n_items < 1:
            raise SaveDeployError("nothing to train on", got=f"{n_items} {stage.item}s")
        return stage.epochs * -(-n_items // (stage.batch * stage.gpus))  # rounded up


@cache
def recipe_names() -> tuple[str, ...]:
    """Return the names of the built-in recipes, t1_... to t9_..."""
    return tuple(sorted(path.stem for path in ROWS.glob("*.toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a built-in recipe by name, or a .toml file.

    Raises SaveDeployError for an unknown name, with similar names, and for a bad file, with the
    key.
    """
    text = os.fspath(name_or_path)
    if text in recipe_names():
        return _read(ROWS / f"{text}.toml")
    if text.endswith(".toml"):
        return _read(Path(text))
    raise SaveDeployError(
        "unknown recipe", got=text, expected=near(text, recipe_names()), hint="or a .toml file"
    )


@cache
def built_in_recipes() -> tuple[Recipe, ...]:
    """Return all built-in recipes, in the order of `recipe_names`."""
    return tuple(load_recipe(name) for name in recipe_names())


def _read(path: Path) -> Recipe:
    fields = read_toml(
        path, what="recipe", hint="save-deploy recipes lists the built-in ones, named without .toml"
    )
    table, row, title = fields.string("table"), fields.string("row"), fields.string("title")
    system, backbone = fields.string("system", SYSTEMS), fields.string("backbone", PRESETS)
    res = _resolution(fields, None)
    metrics = fields.string("metrics", PROTOCOLS, default="avsbench")
    mask = fields.string("mask", ("model", "oracle"), default="model")
    tests = fields.table("test")
    test = {d: tests.string(d, ("train", "val", "test")) for d in DATASETS if d in tests.values}
    tests.done(DATASETS)
    if not test:
        raise fields.error("test", got="nothing", expected='e.g. s4 = "test"')
    stages = tuple(_stage(f, res, test) for f in fields.tables("stage"))
    scores = fields.table("paper", {})
    paper = {d: read_score(scores.table(d)) for d in test if d in scores.values}
    scores.done(test)
    recipe = Recipe(
        name=path.stem,
        table=table,
        row=row,
        title=title,
        system=system,
        backbone=backbone,
        res=res,
        metrics=metrics,
        mask=mask,
        switches=_switches(fields.table("switches", {})),
        stages=stages,
        test=test,
        paper=paper,
    )
    fields.done()
    _check(recipe, fields)
    return recipe


def _stage(fields: Fields, res: int, test: dict[str, str]) -> Stage:
    lr = fields.number("lr", 1e-12, 1.0)
    schedule = fields.string("schedule", ("cosine", "constant"))
    stage = Stage(
        dataset=fields.string("dataset", TRAINABLE),
        towards=fields.strings("towards", test, low=1),
        res=_resolution(fields, res),
        epochs=fields.integer("epochs", low=1),
        item=fields.string("item", ("frame", "video")),
        batch=fields.integer("batch", low=1),
        gpus=fields.integer("gpus", low=1),
        lr=lr,
        schedule=schedule,
        final_lr=lr if schedule == "constant" else fields.number("final_lr", 0.0, lr),
        warmup_steps=fields.integer("warmup_steps"),
        weight_decay=fields.number("weight_decay", 0.0, 1.0),
        loss=fields.string("loss", ("bce+iou", "bce")),
    )
    fields.done()
    return stage


def _resolution(fields: Fields, default: int | None) -> int:
    res = fields.integer("res", low=1) if default is None else fields.integer("res", default, low=1)
    if res not in RESOLUTIONS:
        raise fields.error("res", got=str(res), expected=", ".join(map(str, RESOLUTIONS)))
    return res


def read_score(fields: Fields) -> PaperScore:
    """Read a score such as { m_j = 84.06, m_f = 0.905 }."""
    score = PaperScore(fields.number("m_j", 0.0, 100.0), fields.number("m_f", 0.0, 1.0))
    fields.done()
    return score


def _switches(fields: Fields) -> dict[str, Any]:
    """Return the fields of SaveConfig that a row sets, with checked types and ranges."""
    known = [f.name for f in dataclasses.fields(SaveConfig) if f.name not in _CHOSEN_BY_ROW]
    chosen = {name: take_switch(fields, name) for name in known if name in fields}
    fields.done(known)
    return chosen


def _check(recipe: Recipe, fields: Fields) -> None:
    """Check combinations of keys. Raises the error type of `fields`."""
    try:
        recipe.config()
    except (SaveDeployError, TypeError, ArithmeticError) as error:
        raise fields.error("switches", got=str(error), expected="a valid model") from None
    for dataset in recipe.test:
        trained = {stage.dataset for stage in recipe.chain(dataset)}
        if dataset.startswith("v3") and "v2" in trained:
            # v3_seen has clips of v2's test split, and v2 has the unseen classes
            raise fields.error("stage", got="v2 before v3", expected="v3_seen first: V2 leaks")
    if recipe.mask == "oracle" and recipe.stages:
        raise fields.error("mask", got="oracle with [[stage]]", expected="nothing to train")
