"""Numbers that the paper prints for a row, and their contradictions.

Two kinds are computed from the rows: one experiment with different numbers, and one pair of numbers
for different experiments. Other contradictions are listed in notes.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from save_deploy.errors import SaveDeployError
from save_deploy.recipes.notes import notes_on
from save_deploy.recipes.recipe import PaperScore, Recipe, built_in_recipes


@dataclass(frozen=True)
class Claim:
    """A number, and the row that prints it."""

    recipe: str
    table: str
    row: str
    score: PaperScore

    @property
    def text(self) -> str:
        return f"{self.score.text} in {self.table}, {self.row}"


@dataclass(frozen=True, kw_only=True)
class PaperComparison:
    """Numbers of the paper for one row and dataset.

    printed: number of this row, None if it has none.
    elsewhere: rows of the same experiment with other numbers.
    repeated: rows of other experiments with the same pair of numbers.
    notes: other inconsistencies of this row.
    """

    recipe: Recipe
    dataset: str
    printed: PaperScore | None
    elsewhere: tuple[Claim, ...]
    repeated: tuple[Claim, ...]
    notes: tuple[str, ...]

    @property
    def scores(self) -> tuple[PaperScore, ...]:
        """All numbers of the paper for this experiment without duplicates, this row's first."""
        printed = (self.printed,) if self.printed else ()
        return tuple(dict.fromkeys((*printed, *(c.score for c in self.elsewhere))))

    def lines(self) -> list[str]:
        """Return the comparison as lines of text."""
        score = self.printed.text if self.printed else "no number"
        place = f"{self.recipe.table}, {self.recipe.row}, {self.dataset}"
        found = [f"the paper: {score} ({place})"]
        found += [f"same experiment, other number: {c.text}" for c in self.elsewhere]
        found += [f"other experiment, same number: {c.text}" for c in self.repeated]
        return found + [f"note: {note}" for note in self.notes]


def paper_says(
    recipe: Recipe, dataset: str, among: Iterable[Recipe] | None = None
) -> PaperComparison:
    """Return the numbers of the paper for a row and a dataset.

    among: rows to compare with, by default all built-in ones.
    Raises SaveDeployError for a dataset that the row is not tested on.
    """
    recipe.chain(dataset)
    printed, same = recipe.paper.get(dataset), experiment(recipe, dataset)
    elsewhere, repeated = [], []
    for other in built_in_recipes() if among is None else among:
        score = other.paper.get(dataset)
        if score is None:
            continue
        claim = Claim(other.name, other.table, other.row, score)
        if experiment(other, dataset) != same:
            repeated += [claim] if score == printed else []
        elif score != printed:
            elsewhere.append(claim)
    return PaperComparison(
        recipe=recipe,
        dataset=dataset,
        printed=printed,
        elsewhere=tuple(elsewhere),
        repeated=tuple(repeated),
        notes=notes_on(recipe.name, dataset),
    )


def experiment(recipe: Recipe, dataset: str) -> tuple[Any, ...]:
    """Return what is equal for two rows of the same experiment: model, training and test."""
    chain = tuple(dataclasses.replace(s, towards=()) for s in recipe.chain(dataset))
    return recipe.config(), recipe.mask, chain, dataset, recipe.test[dataset]


@dataclass(frozen=True)
class Verdict:
    """Measured scores compared with the paper's."""

    ours: PaperScore
    paper: PaperComparison

    @property
    def m_j_difference(self) -> float | None:
        """Measured minus printed M_J in points, None when the paper has no number."""
        return self.ours.m_j - self.paper.printed.m_j if self.paper.printed else None

    @property
    def m_f_difference(self) -> float | None:
        """Measured minus printed M_F, None when the paper has no number."""
        return self.ours.m_f - self.paper.printed.m_f if self.paper.printed else None

    def lines(self) -> list[str]:
        """Return two lines of numbers, followed by those of the paper."""
        rows = [f"M_J ours {self.ours.m_j:6.2f}", f"M_F ours {self.ours.m_f:6.3f}"]
        if (printed := self.paper.printed) is not None:
            rows[0] += f"  paper {printed.m_j:6.2f}  difference {self.m_j_difference:+.2f}"
            rows[1] += f"  paper {printed.m_f:6.3f}  difference {self.m_f_difference:+.3f}"
        return rows + self.paper.lines()


def compare(recipe: Recipe, dataset: str, m_j: float, m_f: float) -> Verdict:
    """Compare scores with the paper's. Raises SaveDeployError for invalid scores.

    m_j: 0 to 100.
    m_f: 0 to 1.
    """
    if not (0 <= m_j <= 100 and 0 <= m_f <= 1):
        raise SaveDeployError(
            "not a score", got=f"M_J {m_j}, M_F {m_f}", expected="M_J 0..100 and M_F 0..1"
        )
    return Verdict(PaperScore(m_j, m_f), paper_says(recipe, dataset))
