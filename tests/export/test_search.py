"""The precision search against brute force, and that it never evaluates twice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from save_deploy.errors import ParityError
from save_deploy.export.quantize.search import (
    Evaluations,
    SearchResult,
    branch_of,
    most_steps,
    search,
)
from save_deploy.export.quantize.sensitivity import plot_sensitivity
from save_deploy.export.quantize.trial import Scored

UNITS = tuple(f"blocks.{i}.{b}" for i in range(3) for b in ("attn", "mlp", "adapter"))
# M_J points that a quantized unit loses, and ms that one of its branch saves
HARM = dict(zip(UNITS, (0.02, 0.30, 0.01, 0.05, 0.9, 0.4, 0.0, 0.03, 0.2), strict=True))
SAVES = {"attn": 1.0, "mlp": 2.0, "adapter": 0.5}
EAGER = Scored(75.0, 0.88, 1.0)


class Machine:
    """A model whose losses add up, and a stopwatch."""

    def __init__(self, saves: Mapping[str, float] = SAVES) -> None:
        self.calls: list[frozenset[str]] = []
        self.saves = saves

    def evaluate(self, floats: frozenset[str]) -> Scored:
        self.calls.append(floats)
        lost = sum(h for u, h in HARM.items() if u not in floats)
        return Scored(EAGER.m_j - lost, 0.88, 1 - lost / 100)

    def time(self, choices: Mapping[str, frozenset[str]]) -> dict[str, float]:
        saves = self.saves
        return {n: 20 + sum(saves[branch_of(u)] for u in floats) for n, floats in choices.items()}


def run(
    budget: float, path: Path | None = None, saves: Mapping[str, float] = SAVES
) -> tuple[SearchResult, Machine]:
    machine = Machine(saves)
    steps: list[str] = []
    found = search(
        UNITS, budget, EAGER, evaluate=machine.evaluate, costs=machine.time,
        known=Evaluations(path), on_step=steps.append,
    )  # fmt: skip
    assert len(UNITS) < len(steps) <= most_steps(len(UNITS))
    return found, machine


def lost(floats: tuple[str, ...]) -> float:
    return sum(h for u, h in HARM.items() if u not in floats)


def cost(floats: tuple[str, ...], saves: Mapping[str, float] = SAVES) -> float:
    return sum(saves[branch_of(u)] for u in floats)


def choices() -> list[tuple[str, ...]]:
    """All 512."""
    counts = range(len(UNITS) + 1)
    return [c for n in counts for c in itertools.combinations(UNITS, n)]


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.5, 1.0, 1.5, 3.0])
def test_within_budget_and_near_the_optimum(budget: float) -> None:
    """All 512 choices: the found one is allowed, none of its units can go back, and the cheapest
    allowed one is at most one unit's time cheaper."""
    found, _ = run(budget)
    assert lost(found.float_units) <= budget + 1e-9
    assert found.chosen.m_j == pytest.approx(75 - lost(found.float_units))
    for unit in found.float_units:
        without = tuple(u for u in found.float_units if u != unit)
        assert lost(without) > budget
    best = min(cost(c) for c in choices() if lost(c) <= budget + 1e-9)
    assert cost(found.float_units) <= best + max(SAVES.values())
    assert found.expected == pytest.approx(20 + cost(found.float_units))


def test_nothing_stays_in_float_when_all_fits() -> None:
    found, _ = run(2.0)
    assert found.float_units == () and found.chosen == found.full


@pytest.mark.slow
def test_what_is_measured(tmp_path: Path) -> None:
    found, _ = run(0.5)
    assert {s.unit: round(s.m_j_drop, 6) for s in found.sensitivity} == HARM
    assert found.saved == pytest.approx(SAVES)
    assert found.cost == {"quantized": 20, "float": 20 + 3 * sum(SAVES.values())}
    pytest.importorskip("matplotlib")
    assert plot_sensitivity(found, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_budget_evaluates_little(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    first, machine = run(0.5, path)
    assert first.evaluations == len(machine.calls) + 1  # and one timing
    assert len(set(machine.calls)) == len(machine.calls)
    again, other = run(0.5, path)
    assert other.calls == [] and again.float_units == first.float_units
    assert again.evaluations == 0 and again.reused > 0
    _, third = run(0.1, path)
    assert 0 < len(third.calls) < 8


def test_interrupted_search_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    machine, whole = Machine(), Machine()

    def until_the_sixth(floats: frozenset[str]) -> Scored:
        if len(machine.calls) == 5:
            raise KeyboardInterrupt
        return machine.evaluate(floats)

    with pytest.raises(KeyboardInterrupt):
        search(UNITS, 0.5, EAGER, evaluate=until_the_sixth, costs=machine.time,
               known=Evaluations(path))  # fmt: skip
    found = search(UNITS, 0.5, EAGER, evaluate=whole.evaluate, costs=whole.time,
                   known=Evaluations(path))  # fmt: skip
    assert not set(machine.calls) & set(whole.calls)
    assert found.float_units == run(0.5)[0].float_units


def test_a_damaged_file_is_evaluated_again(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text("{ not json")
    assert run(0.5, tmp_path / "search.json")[0].float_units == run(0.5)[0].float_units


@pytest.mark.parametrize("garbage", [None, True, "high", 3, [], {}, {"m_j": "x"}, {"m_j": [1]}])
def test_garbage_under_a_right_key_is_no_score(tmp_path: Path, garbage: object) -> None:
    path = tmp_path / "search.json"
    first, _ = run(0.5, path)
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(dict.fromkeys(kept, garbage)))
    again, machine = run(0.5, path)
    assert machine.calls and again.float_units == first.float_units
    assert again.reused == 0 and json.loads(path.read_text()) == kept


@pytest.mark.parametrize("budget", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("slow", ["attn", "mlp", "adapter"])
def test_a_branch_that_is_slower_in_8_bits_stays_in_float(slow: str, budget: float) -> None:
    """Also where the budget allows all of it in INT8: the cheapest choice is asked for."""
    saves = {**SAVES, slow: -0.3}
    found, _ = run(budget, saves=saves)
    assert {u for u in UNITS if branch_of(u) == slow} <= set(found.float_units)
    assert lost(found.float_units) <= budget + 1e-9
    best = min(cost(c, saves) for c in choices() if lost(c) <= budget + 1e-9)
    assert cost(found.float_units, saves) <= best + (2.0 if budget < 3 else 1e-9)
    assert found.expected == pytest.approx(20 + cost(found.float_units, saves))
    assert found.full.m_j == pytest.approx(75 - lost(()))  # still measured, for the report


def test_a_branch_that_saves_nothing_stays_in_float() -> None:
    found, _ = run(1.31, saves={"attn": 2, "mlp": 2, "adapter": 0})
    assert {branch_of(u) for u in found.float_units} == {"adapter"}


def test_an_impossible_budget_is_an_error() -> None:
    """All in float loses more than allowed: it is measured, and said."""
    machine = Machine()

    def worse(floats: frozenset[str]) -> Scored:
        found = machine.evaluate(floats)
        return Scored(found.m_j - 0.25, found.m_f, found.agreement)

    with pytest.raises(ParityError, match=r"0\.25 points(.|\n)*at most 0\.1") as caught:
        search(UNITS, 0.1, EAGER, evaluate=worse, costs=machine.time,
               known=Evaluations(None))  # fmt: skip
    assert caught.value.exit_code == 2 and frozenset(UNITS) in machine.calls


def test_what_this_run_asked_twice_is_not_reused(tmp_path: Path) -> None:
    first, _ = run(0.5, tmp_path / "search.json")
    assert first.reused == 0
    again, _ = run(0.5, tmp_path / "search.json")
    assert (again.evaluations, again.reused) == (0, first.evaluations)
