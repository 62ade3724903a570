"""Budgets of a comparison: limits, values found, and the error that names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from save_deploy.errors import ParityError
from save_deploy.metrics.latency import STEADY
from save_deploy.runtime.compare.entries import REFERENCE
from save_deploy.runtime.compare.options import Budget
from save_deploy.runtime.compare.rows import Row
from save_deploy.runtime.html.data import Check


def check_rows(rows: Sequence[Row], budget: Budget) -> tuple[Check, ...]:
    """Return one check per budget, naming the rows over it, or else the row nearest to it.

    For speed there is one check per bundle, which is unsure where the calls of the row or of the
    reference were not steady. It is failed where other processes disturbed the timing.
    """
    # rows of the eager model are there to be read, not to be judged
    ours = [row for row in rows if not row.reference and row.backend != REFERENCE]
    found = []
    if budget.max_drop is not None:
        base = {row.dataset: row.score.m_j for row in rows if row.reference}
        drops = {_where(r): base[r.dataset] - r.score.m_j for r in ours}
        limit = budget.max_drop
        found.append(_check("M_J drop", drops, lambda v: v - limit, ".2f", f"at most {limit:g}"))
    if budget.min_agreement is not None:
        agreed = {_where(r): r.parity.mask_agreement for r in ours if r.parity is not None}
        floor = budget.min_agreement
        allowed = f"at least {floor:g}"
        found.append(_check("mask agreement", agreed, lambda v: floor - v, ".5f", allowed))
    if budget.min_speedup is not None:
        least = budget.min_speedup
        for bundle in dict.fromkeys(row.bundle for row in ours):
            name = f"speed-up of {bundle}, fastest backend"
            allowed = f"at least {least:g} x"
            of = [r for r in ours if r.bundle == bundle]
            judged = [(r.speedup, r) for r in of if r.speedup is not None]
            if not judged:
                got = "withheld: " + next(
                    (r.latency.withheld for r in rows if r.latency.withheld), ""
                )
                found.append(Check(name, got, allowed, passed=False))
                continue
            speedup, best = max(judged, key=lambda item: item[0])
            speeds = {best.name: speedup}
            checked = _check(name, speeds, lambda v: least - v, ".2f", allowed)
            against = [r for r in rows if r.reference and r.dataset == best.dataset]
            noise = max(row.latency.spread for row in (best, *against))
            unsure = f"not steady, noise {noise:.0%}" if noise > STEADY else ""
            found.append(replace(checked, unsure=unsure))
    return tuple(found)


def require(checks: Sequence[Check]) -> None:
    """Raise ParityError naming every failed check, with its rows and values."""
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ParityError(
            "over budget: " + ", ".join(check.name for check in failed),
            got="\n            ".join(check.got for check in failed),
            expected="; ".join(f"{check.name} {check.allowed}" for check in failed),
        )


def _check(
    name: str, values: dict[str, float], over: Callable[[float], float], form: str, allowed: str
) -> Check:
    """over: above 0 is too much."""
    failing = [key for key, value in values.items() if over(value) > 0]
    shown = failing or [max(values, key=lambda key: over(values[key]))]
    got = ", ".join(f"{values[key]:{form}} ({key})" for key in shown)
    return Check(name, got, allowed, not failing)


def _where(row: Row) -> str:
    return f"{row.name} on {row.dataset}" if row.dataset else row.name
