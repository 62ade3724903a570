"""Inconsistencies of the paper that a comparison of rows does not show (SPEC 8, items 3-9)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class Note:
    """A note on some rows of the paper.

    item: its number in SPEC 8.
    rows: patterns of recipe names.
    datasets: datasets it applies to; () means all.
    """

    item: int
    rows: tuple[str, ...]
    datasets: tuple[str, ...]
    text: str

    def concerns(self, recipe: str, dataset: str) -> bool:
        """Return True when the note applies to this recipe and dataset."""
        here = not self.datasets or dataset in self.datasets
        return here and any(fnmatch(recipe, pattern) for pattern in self.rows)


NOTES: tuple[Note, ...] = (
    Note(
        3,
        ("t9_*",),
        (),
        "Table 9 does not name its model: with 2 layers its 256 px row has the numbers of SAVE(*), "
        "its 1024 px row those of SAVE(**), as in Table 7",
    ),
    Note(
        4,
        ("t6_*_100_*",),
        ("s4",),
        "the row of gains in Table 6 is Table 7's, 0.480 for .048 included; by its own numbers "
        "SAVE(1024) gains 2.53 / .019 on SAMA-AVS without and 1.99 / .010 with pre-training",
    ),
    Note(
        4,
        ("t4_save",),
        ("v3_1_shot",),
        "the printed gain in M_F over GAVS is 0.02; .770 - .768 is .002",
    ),
    Note(
        4,
        ("t1_save_1024",),
        ("s4",),
        "the printed gain in M_F, .026, is over SAMA-AVS; over the best other row (GAVS .902) "
        "it is .010",
    ),
    Note(5, ("t3_save",), ("v2",), "the text says M_F .773, the table .795"),
    Note(
        5,
        ("t6_save_*_100_*",),
        ("s4",),
        "the text gives 85.16 and 84.59 as 'with and without pre-training'; they are the 1024 px and "
        "the 256 px row, both with it",
    ),
    Note(
        5,
        ("t[127]_save_256*", "t[127]_save_1024*"),
        ("s4",),
        "the text says that 256 px beats 1024 px on S4; Tables 1 and 2 say the reverse, Table 7 "
        "has them equal",
    ),
    Note(
        6,
        ("t2_save_256_wo_ft",),
        ("s4",),
        "not ahead in all metrics: COMBO has 84.70 / .919 on S4",
    ),
    Note(6, ("t2_save_1024_wo_ft",), ("s4",), "not ahead in all metrics: COMBO has M_F .919 on S4"),
    Note(
        6,
        ("t2_save_*_wo_ft",),
        ("ms3",),
        "not ahead in all metrics: GAVS has M_F .774 on MS3",
    ),
    Note(
        6,
        ("t2_save_256_ft_syn",),
        ("s4",),
        "underlined as the second best of Table 2, but 85.11 is in the same column",
    ),
    Note(
        7,
        ("t4_*",),
        ("v3_unseen", "v3_5_shot"),
        "the text sets SAVE's 0-shot beside GAVS's 5-shot: 758 clips of 14 classes and 488 clips "
        "of 11, not the same test",
    ),
    Note(7, ("t3_*", "t4_*"), (), "Tables 3 and 4 set SAVE on ViT-H against GAVS on ViT-B"),
    Note(
        8,
        ("t[127]_save_1024*",),
        (),
        "Table 8 gives it the FPS and the training hours of SAMA-AVS, although the image adapters "
        "add 45 % of multiply-accumulates",
    ),
    Note(
        8,
        ("t[127]_save_256*",),
        (),
        "Table 8's 35 FPS, beside 8 at 1024 px, is the pair that SAM-Med2D publishes for ViT-B; and "
        "weights and AdamW states of ViT-H with full adapters take 23.2 GiB of the 24 GB card before "
        "any activation",
    ),
    Note(
        9,
        ("*_save_256*", "*_save_star_256*", "t7_sama_ft_256", "t9_*_256"),
        (),
        "the text says that all experiments are at 224 and 1024 px, the tables say 256 (A9)",
    ),
    Note(
        9,
        ("t2_save_*",),
        ("s4", "ms3"),
        "AVSegFormer is better than Table 2 has it: its authors publish 83.06 / .905 on S4 and "
        "61.33 / .730 on MS3, at 512 px",
    ),
)


def notes_on(recipe: str, dataset: str) -> tuple[str, ...]:
    """Return the notes on a built-in row, in the order of SPEC 8; () for a user's own recipe."""
    return tuple(note.text for note in NOTES if note.concerns(recipe, dataset))
