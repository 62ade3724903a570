"""Precision search: the cheapest assignment of quantized or float to the branches within a budget.

A choice is scored by M_J of its masks on a validation set. Its cost is the time measured on this
machine, or the work for an engine elsewhere. Evaluations are cached in a file, so that an
interrupted search, or one with another budget, does not repeat them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from save_deploy.bundle import sha256_of
from save_deploy.calibration.select import is_generated
from save_deploy.calibration.videos import is_videos
from save_deploy.data.find import resolve
from save_deploy.errors import ParityError, SaveDeployError
from save_deploy.export.fp16 import Fp16Plan
from save_deploy.export.options import SEARCH_COSTS, ExportOptions
from save_deploy.export.quantize.plan import QuantPlan, units_of
from save_deploy.export.quantize.trial import Scored, Trial, make_validation
from save_deploy.fields import Fields, read_json
from save_deploy.files import cache_folder, keep_in_cache
from save_deploy.machine import describe, versions
from save_deploy.model.save import SaveModel
from save_deploy.progress import countdown, resumable
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.session import default_threads

MAX_RETURNS = 8  # float units that are tried quantized again after the bisection
BRANCHES = ("attn", "mlp", "adapter")


@dataclass(frozen=True)
class Sensitivity:
    """M_J points lost and mask agreement with eager when only one unit is quantized."""

    unit: str
    m_j_drop: float
    agreement: float


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    saved: cost that quantizing one unit of a branch saves.
    cost: cost of all quantized and of all float. Both are in cost_unit, ms or GMAC.
    evaluations: number made by this run.
    reused: number taken from earlier runs.
    """

    max_drop: float
    data: str
    clips: int
    frames: int
    backend: str
    eager: Scored
    full: Scored
    chosen: Scored
    float_units: tuple[str, ...]
    units: int
    sensitivity: tuple[Sensitivity, ...]
    cost_unit: str
    saved: dict[str, float]
    cost: dict[str, float]
    evaluations: int
    reused: int

    @property
    def expected(self) -> float:
        """Cost of the chosen assignment: all quantized, plus the lost savings of float units."""
        lost = sum(self.saved[branch_of(unit)] for unit in self.float_units)
        return self.cost["quantized"] + lost

    @property
    def slower(self) -> tuple[str, ...]:
        """Branches that quantization does not make faster here; they stay in float."""
        return tuple(branch for branch, saved in self.saved.items() if saved <= 0)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "expected": self.expected}


def search_precision(
    model: SaveModel, graph: Path, plan: QuantPlan, fp16: Fp16Plan | None, options: ExportOptions, *,
    on_stage: Callable[[str, str], None],
) -> tuple[QuantPlan, SearchResult]:  # fmt: skip
    """Return the cheapest plan within options.search.max_drop, and the search result.

    graph: the traced float32 graph.
    fp16: FP16 plan of the float parts, None for FP32.
    Raises Resumable for an interrupt when evaluations were cached.
    """
    assert options.search.max_drop is not None
    on_stage("search", "the eager model on validation clips")
    name = options.search.data or _searchable(options.calibration.data, options.data)
    validation = make_validation(
        eager_pipeline(model, batch=options.batch), name, options.search.clips, plan.table,
        on_clip=countdown(on_stage, "search", f"eager on val of {name}", options.search.clips),
    )  # fmt: skip
    trial = Trial(model, graph, plan, fp16, validation, options)
    cache = cache_folder("search")
    known = Evaluations(cache and cache / f"{_search_key(graph, plan, trial, options)}.json")
    units = units_of(plan.sites)
    advance = countdown(on_stage, "search", "choices", most_steps(len(units)))
    with resumable(lambda: known.kept):
        found = search(
            units,
            options.search.max_drop,
            validation.eager,
            evaluate=trial.evaluate,
            costs=trial.costs,
            known=known,
            on_step=advance,
            setting=SearchSetting(
                f"{name} val",
                len(validation.sizes),
                sum(validation.sizes),
                trial.backend,
                SEARCH_COSTS[options.search_cost],
            ),
        )
    return replace(plan, float_units=found.float_units, chosen_by="search"), found


def _search_key(graph: Path, plan: QuantPlan, trial: Trial, options: ExportOptions) -> str:
    """Return a key of everything that masks and times depend on.

    The graph depends on the batch, and the table on the model.
    """
    return evaluations_key(
        sha256_of(graph),
        plan.table.sha256,
        plan.method,
        plan.fmt,
        str(plan.weight_bits),
        json.dumps(trial.fp16 and trial.fp16.to_dict(), sort_keys=True),
        trial.validation.sha256,
        trial.backend,
        json.dumps(versions()),  # save-deploy, and the backend under the name of its package
        str(options.threads or default_threads()),
        str(describe()["cpu"]),
    )


def _searchable(calibration: str | None, data: str) -> str:
    """Return the default dataset of a search: the calibration data if it has a val split."""
    if calibration is None or is_videos(calibration):
        return data
    if is_generated(calibration) or "val" in resolve(calibration).splits:
        return calibration
    return data


class Evaluations:
    """Cache of scores by assignment, and of timings, in a JSON file that is written after each."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.made, self.kept = path, 0, False
        self.values: dict[str, Any] = {}
        self._asked: set[str] = set()
        if path is not None and path.is_file():
            with contextlib.suppress(SaveDeployError):  # damaged file: evaluate again
                kept = read_json(path, what="cache of the search")
                self.values = {key: kept.values[key] for key in kept.values if _numbers(kept, key)}

    @property
    def reused(self) -> int:
        """Number of requested values that this run did not compute."""
        return len(self._asked) - self.made

    def is_new(self, key: str) -> bool:
        """Return True when this run has not requested the key before."""
        return key not in self._asked

    def get(
        self, key: str, make: Callable[[], dict[str, float]], names: Iterable[str] = ()
    ) -> dict[str, float]:
        """Return the cached value of a key, or compute it with make() and cache it.

        names: the keys that a cached value must have; () accepts any.
        """
        if key in self.values and set(names or self.values[key]) == set(self.values[key]):
            self._asked.add(key)
            self.kept = self.path is not None
            return self.values[key]
        self.values[key] = make()
        self._asked.add(key)
        self.made += 1
        if self.path is not None:
            text = json.dumps(self.values, indent=1) + "\n"
            self.kept = keep_in_cache(self.path, lambda partial: partial.write_text(text))
        return self.values[key]


def _numbers(kept: Fields, key: str) -> bool:
    """Return True when an entry is a table of finite numbers."""
    try:
        entry = kept.table(key)
        return bool([entry.number(name) for name in entry.values])
    except SaveDeployError:
        return False


def evaluations_key(*parts: str) -> str:
    """Return the file name of a cache from everything that an evaluation depends on."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def branch_of(unit: str) -> str:
    """Return the branch of a unit: blocks.3.mlp -> mlp."""
    return unit.rpartition(".")[2]


def most_steps(n_units: int) -> int:
    """Return the maximum number of on_step calls of a search.

    They are: all quantized, each unit alone, the costs, the bisection with its two ends, and the
    units that are tried again.
    """
    bisection = 2 + math.ceil(math.log2(max(2, n_units)))
    return 1 + n_units + 1 + bisection + MAX_RETURNS


@dataclass(frozen=True)
class SearchSetting:
    """Setting of a search: validation data, backend of masks and times, and unit of costs."""

    data: str = ""
    clips: int = 0
    frames: int = 0
    backend: str = ""
    cost_unit: str = "ms"


def search(
    units: Iterable[str], max_drop: float, eager: Scored, *,
    evaluate: Callable[[frozenset[str]], Scored],
    costs: Callable[[Mapping[str, frozenset[str]]], Mapping[str, float]],
    known: Evaluations,
    on_step: Callable[[str], object] = lambda _: None,
    setting: SearchSetting | None = None,
) -> SearchResult:  # fmt: skip
    """Return the cheapest set of float units such that M_J loses at most max_drop against eager.

    evaluate: float units -> score.
    costs: name -> float units to name -> cost.
    on_step: called after each distinct choice, and after the costs.
    A branch that quantization does not make cheaper stays in float. Units of the other branches are
    moved to float in order of harm per saved cost; bisection finds how many. Then units that turn
    out unnecessary are quantized again. Raises ParityError when even all units in float exceed
    max_drop.
    """
    units, setting = tuple(units), setting or SearchSetting()

    def score(floats: Iterable[str], what: str) -> Scored:
        chosen = frozenset(floats)
        key = " ".join(sorted(chosen))
        is_new = known.is_new(key)
        names = [field.name for field in fields(Scored)]
        found = known.get(key, lambda: evaluate(chosen).to_dict(), names)
        if is_new:
            on_step(what)
        return Scored(**found)

    def drop(floats: Iterable[str]) -> float:
        chosen = frozenset(floats)
        return eager.m_j - score(chosen, f"{len(chosen)} float units").m_j

    full, everything = score((), "all quantized"), frozenset(units)
    alone = {unit: score(everything - {unit}, unit) for unit in units}
    choices = _priced_choices(units)
    cost = known.get(f"cost in {setting.cost_unit}", lambda: dict(costs(choices)), choices)
    on_step("cost of each branch")
    saved = {b: (cost[b] - cost["quantized"]) / len(choices[b]) for b in BRANCHES if b in choices}
    slower = [u for u in units if saved[branch_of(u)] <= 0]
    order = _order([u for u in units if u not in slower], alone, saved)
    floats = _cut(order, lambda k: drop(slower + order[:k]) <= max_drop)
    if drop(slower + floats) > max_drop:
        raise _over_budget(drop(slower + floats), max_drop, setting)
    floats = _returned(floats, lambda chosen: drop(slower + chosen) <= max_drop)
    chosen = frozenset(slower + floats)
    return SearchResult(
        max_drop=max_drop,
        **asdict(setting),
        eager=eager,
        full=full,
        chosen=score(chosen, "chosen"),
        float_units=tuple(u for u in units if u in chosen),
        units=len(units),
        sensitivity=tuple(Sensitivity(u, eager.m_j - s.m_j, s.agreement) for u, s in alone.items()),
        saved=saved,
        cost={name: cost[name] for name in ("quantized", "float")},
        evaluations=known.made,
        reused=known.reused,
    )


def _priced_choices(units: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return name -> float units: all quantized, all float, and each branch in float."""
    of_branch = {b: frozenset(u for u in units if branch_of(u) == b) for b in BRANCHES}
    ends = {"quantized": frozenset[str](), "float": frozenset(units)}
    return ends | {b: found for b, found in of_branch.items() if found}


def _over_budget(lost: float, max_drop: float, setting: SearchSetting) -> ParityError:
    return ParityError(
        "no precision choice is within --max-drop",
        got=f"M_J falls by {lost:.3g} points even with all branches in float",
        expected=f"at most {max_drop:g} on {setting.frames} frames of {setting.data}",
        hint="a larger --max-drop, or --fp32 for the float parts",
    )


def _order(
    units: Iterable[str], alone: Mapping[str, Scored], saved: Mapping[str, float]
) -> list[str]:
    """Return units by harm per saved cost, highest first; every saved cost is > 0.

    Harm is measured by agreement, because M_J can rise by chance.
    """
    harm = {u: (1 - alone[u].agreement + 1e-6) / saved[branch_of(u)] for u in units}
    return sorted(harm, key=lambda u: -harm[u])


def _cut(order: list[str], fine: Callable[[int], bool]) -> list[str]:
    """Return the shortest prefix within the budget, by bisection, or all units when none is."""
    if fine(0):
        return []
    low, high = 0, len(order)  # `low` float units are too few
    while high - low > 1:
        middle = (low + high) // 2
        if fine(middle):
            high = middle
        else:
            low = middle
    return order[:high]


def _returned(floats: list[str], fine: Callable[[list[str]], bool]) -> list[str]:
    """Remove units that the budget allows to quantize, trying the least harmful first."""
    kept = list(floats)
    for unit in reversed(
        floats[:-1][-MAX_RETURNS:]
    ):  # the bisection showed that the last is needed
        without = [u for u in kept if u != unit]
        if fine(without):
            kept = without
    return kept
