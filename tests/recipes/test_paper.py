"""The paper's contradictions, found by comparing rows; each with a twin in which they agree."""

from __future__ import annotations

import dataclasses

import pytest

from save_deploy.errors import SaveDeployError
from save_deploy.recipes.paper import Claim, compare, paper_says
from save_deploy.recipes.recipe import PaperScore, Recipe, built_in_recipes, load_recipe


def agreeing(*printed: tuple[str, str, float, float]) -> list[Recipe]:
    """The built-in rows with some numbers changed: (recipe, dataset, m_j, m_f)."""
    rows = {r.name: r for r in built_in_recipes()}
    for name, dataset, m_j, m_f in printed:
        paper = {**rows[name].paper, dataset: PaperScore(m_j, m_f)}
        rows[name] = dataclasses.replace(rows[name], paper=paper)
    return list(rows.values())


def found(claims: tuple[Claim, ...]) -> dict[str, float]:
    return {claim.recipe: claim.score.m_j for claim in claims}


def test_save_1024_on_s4() -> None:
    """SPEC 8, item 1: 85.11 in T1 and T2, 84.06 in T6, 83.11 in T7 and T9."""
    says = paper_says(load_recipe("t1_save_1024"), "s4")
    assert found(says.elsewhere) == {
        "t6_save_1024_100_wo_pt": 84.06,
        "t7_save_1024": 83.11,
        "t9_2_layers_1024": 83.11,
    }
    assert [s.m_j for s in says.scores] == [85.11, 84.06, 83.11] and len(says.scores) > 1
    assert any("84.06 / 0.905 in T6" in line for line in says.lines())


def test_save_256_on_s4() -> None:
    """SPEC 8, item 1: 84.06 in T1 and T2, 83.11 in T6 and T7; the same under 1024 px."""
    says = paper_says(load_recipe("t2_save_256_wo_ft"), "s4")
    assert found(says.elsewhere) == {"t6_save_256_100_wo_pt": 83.11, "t7_save_256": 83.11}
    assert found(says.repeated) == {"t6_save_1024_100_wo_pt": 84.06}
    repeated = found(paper_says(load_recipe("t7_save_256"), "s4").repeated)
    assert repeated == {"t7_save_1024": 83.11, "t9_2_layers_1024": 83.11}


def test_pre_trained_1024_on_s4() -> None:
    """SPEC 8, item 1: 86.16 in T2, 85.16 in T6; 256 px agrees."""
    says = paper_says(load_recipe("t2_save_1024_ft_syn"), "s4")
    assert found(says.elsewhere) == {"t6_save_1024_100_pt": 85.16}
    assert len(paper_says(load_recipe("t2_save_256_ft_syn"), "s4").scores) == 1


@pytest.mark.parametrize(
    ("name", "others", "m_f"),
    [
        ("t1_save_256", {"t2_save_256_wo_ft", "t7_save_256"}, (0.712, 0.699)),
        (
            "t1_save_1024",
            {"t2_save_1024_wo_ft", "t7_save_1024", "t9_2_layers_1024"},
            (0.777, 0.739),
        ),
    ],
)
def test_m_f_on_ms3(name: str, others: set[str], m_f: tuple[float, float]) -> None:
    """SPEC 8, item 2: one M_J, two M_F."""
    says = paper_says(load_recipe(name), "ms3")
    assert set(found(says.elsewhere)) == others
    assert tuple(s.m_f for s in says.scores) == m_f
    assert len({s.m_j for s in says.scores}) == 1


def test_nothing_else_is_contradicted() -> None:
    contradicted = {
        (r.system, r.res, d, len(r.chain(d)))
        for r in built_in_recipes()
        for d in r.test
        if len(paper_says(r, d).scores) > 1
    }
    alone = {("save", res, dataset, 1) for res in (256, 1024) for dataset in ("s4", "ms3")}
    assert contradicted == {*alone, ("save", 1024, "s4", 2)}


def test_twin_that_agrees() -> None:
    """The same comparison, with Table 6's cell as in Table 2: nothing to report."""
    row, fixed = load_recipe("t2_save_1024_ft_syn"), ("t6_save_1024_100_pt", "s4", 86.16, 0.921)
    assert len(paper_says(row, "s4").scores) > 1
    says = paper_says(row, "s4", agreeing(fixed))
    assert (says.elsewhere, says.scores) == ((), (PaperScore(86.16, 0.921),))
    # one that repeats nothing: the 1024 px cell of Table 6 as in Table 2
    row = load_recipe("t1_save_256")
    assert paper_says(row, "s4").repeated
    assert not paper_says(
        row, "s4", agreeing(("t6_save_1024_100_wo_pt", "s4", 85.11, 0.912))
    ).repeated


def test_another_experiment_is_no_contradiction() -> None:
    """Other switches, weights or size: 3 layers, without image adapters, tested at 256 px."""
    assert not paper_says(load_recipe("t9_3_layers_1024"), "s4").elsewhere
    assert not paper_says(load_recipe("t7_save_star_1024"), "s4").elsewhere
    assert not paper_says(load_recipe("t7_sama_256"), "s4").elsewhere
    assert not paper_says(load_recipe("t7_sama_1024"), "s4").elsewhere  # T1, T2 and T6 agree


@pytest.mark.parametrize(
    ("name", "dataset", "words"),
    [
        ("t9_3_layers_256", "ms3", "SAVE(*)"),
        ("t6_save_1024_100_pt", "s4", "2.53 / .019"),
        ("t4_save", "v3_1_shot", ".002"),
        ("t1_save_1024", "s4", ".010"),
        ("t3_save", "v2", ".773"),
        ("t2_save_256_wo_ft", "s4", "COMBO"),
        ("t2_save_1024_wo_ft", "ms3", "GAVS has M_F .774"),
        ("t2_save_256_ft_syn", "s4", "85.11"),
        ("t4_save", "v3_unseen", "758"),
        ("t4_gavs", "v3_3_shot", "ViT-B"),
        ("t7_save_1024", "ms3", "45 %"),
        ("t7_save_star_256", "s4", "A9"),
    ],
)
def test_notes(name: str, dataset: str, words: str) -> None:
    assert any(words in note for note in paper_says(load_recipe(name), dataset).notes)


def test_notes_stay_with_their_rows() -> None:
    assert not paper_says(load_recipe("t1_sama_avs"), "s4").notes
    assert not any("COMBO" in n for n in paper_says(load_recipe("t1_save_256"), "ms3").notes)


def test_numbers_in_notes() -> None:
    """What the notes say of gains and of better rows follows from the rows."""
    paper = {r.name: r.paper for r in built_in_recipes()}
    gains = []
    for with_or_without in ("wo_pt", "pt"):
        ours = paper[f"t6_save_1024_100_{with_or_without}"]["s4"]
        sama = paper[f"t6_sama_1024_100_{with_or_without}"]["s4"]
        gains.append((round(ours.m_j - sama.m_j, 2), round(ours.m_f - sama.m_f, 3)))
    assert gains == [(2.53, 0.019), (1.99, 0.010)]
    combo = PaperScore(84.70, 0.919)  # Table 2, S4
    save_256, save_1024 = (paper[f"t2_save_{res}_wo_ft"] for res in (256, 1024))
    assert combo.m_j > save_256["s4"].m_j and combo.m_f > save_1024["s4"].m_f
    assert combo.m_j < save_1024["s4"].m_j  # so the note on 1024 px is about M_F alone
    assert paper["t2_gavs"]["ms3"].m_f > max(save_256["ms3"].m_f, save_1024["ms3"].m_f)


def test_compare() -> None:
    verdict = compare(load_recipe("t1_save_256"), "s4", 84.56, 0.9)
    assert verdict.m_j_difference == pytest.approx(0.5)
    assert verdict.m_f_difference == pytest.approx(-0.005)
    assert "84.56" in verdict.lines()[0] and "+0.50" in verdict.lines()[0]
    assert "-0.005" in verdict.lines()[1]
    assert any("83.11" in line for line in verdict.lines()[2:])


def test_compare_without_a_printed_number() -> None:
    """A recipe of one's own: no difference, but what the paper prints for the same experiment."""
    own = dataclasses.replace(load_recipe("t1_save_1024"), name="own", paper={})
    verdict = compare(own, "s4", 85.0, 0.9)
    assert verdict.m_j_difference is None and verdict.m_f_difference is None
    assert verdict.paper.printed is None and not verdict.paper.notes and not verdict.paper.repeated
    assert {s.m_j for s in verdict.paper.scores} == {85.11, 84.06, 83.11}
    assert "no number" in "\n".join(verdict.lines())


@pytest.mark.parametrize(
    ("m_j", "m_f"), [(101.0, 0.5), (-1.0, 0.5), (50.0, 50.0), (float("nan"), 0.5)]
)
def test_not_a_score(m_j: float, m_f: float) -> None:
    with pytest.raises(SaveDeployError, match="not a score"):
        compare(load_recipe("t1_save_256"), "s4", m_j, m_f)


def test_not_tested_there() -> None:
    with pytest.raises(SaveDeployError, match="not tested") as caught:
        paper_says(load_recipe("t1_save_256"), "v2")
    assert caught.value.expected == "s4, ms3"
