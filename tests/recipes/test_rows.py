"""The built-in rows: their numbers, against a copy of SPEC 8 typed apart, and their models."""

from __future__ import annotations

import pytest
import torch

from save_deploy.config import SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.model.save import SaveModel
from save_deploy.recipes.notes import NOTES
from save_deploy.recipes.recipe import built_in_recipes, load_recipe, recipe_names

# name -> M_J, M_F on S4, then on MS3
S4_MS3: dict[str, tuple[float, ...]] = {
    "t1_sam": (55.08, 0.739, 53.96, 0.638),
    "t1_av_sam": (40.47, 0.566),
    "t1_ap_sam": (69.61, 0.796, 51.58, 0.578),
    "t1_sama_avs": (81.53, 0.886, 63.14, 0.691),
    "t1_gavs": (80.06, 0.902, 63.70, 0.774),
    "t1_save_256": (84.06, 0.905, 64.16, 0.712),
    "t1_save_1024": (85.11, 0.912, 67.01, 0.777),
    "t2_gavs": (80.06, 0.902, 63.70, 0.774),
    "t2_sama_avs_wo_ft": (81.53, 0.886, 63.14, 0.691),
    "t2_sama_avs_ft_syn": (83.17, 0.901, 66.95, 0.754),
    "t2_save_256_wo_ft": (84.06, 0.905, 64.16, 0.699),
    "t2_save_256_ft_syn": (84.59, 0.909, 70.28, 0.767),
    "t2_save_1024_wo_ft": (85.11, 0.912, 67.01, 0.739),
    "t2_save_1024_ft_syn": (86.16, 0.921, 70.83, 0.782),
    "t6_sama_1024_0_wo_pt": (17.65, 0.227),
    "t6_sama_1024_0_pt": (64.05, 0.744),
    "t6_save_256_0_wo_pt": (8.28, 0.162),
    "t6_save_256_0_pt": (65.00, 0.743),
    "t6_save_1024_0_wo_pt": (2.10, 0.06),
    "t6_save_1024_0_pt": (69.85, 0.785),
    "t6_sama_1024_100_wo_pt": (81.53, 0.886),
    "t6_sama_1024_100_pt": (83.17, 0.901),
    "t6_save_256_100_wo_pt": (83.11, 0.895),
    "t6_save_256_100_pt": (84.59, 0.909),
    "t6_save_1024_100_wo_pt": (84.06, 0.905),
    "t6_save_1024_100_pt": (85.16, 0.911),
    "t7_sama_256": (13.66, 0.197, 29.73, 0.479),
    "t7_sama_ft_256": (82.49, 0.897, 58.95, 0.646),
    "t7_save_star_256": (81.68, 0.887, 62.94, 0.696),
    "t7_save_256": (83.11, 0.895, 64.16, 0.699),
    "t7_sama_1024": (81.53, 0.886, 63.14, 0.691),
    "t7_save_star_1024": (82.43, 0.890, 65.54, 0.710),
    "t7_save_1024": (83.11, 0.895, 67.01, 0.739),
    "t9_2_layers_256": (81.68, 0.887, 62.94, 0.696),
    "t9_3_layers_256": (81.58, 0.880, 62.54, 0.686),
    "t9_2_layers_1024": (83.11, 0.895, 67.01, 0.739),
    "t9_3_layers_1024": (83.01, 0.891, 66.91, 0.719),
}
V3 = ("v3_unseen", "v3_1_shot", "v3_3_shot", "v3_5_shot")
ELSEWHERE: dict[str, dict[str, tuple[float, float]]] = {
    "t2_sama_avs_ft": {"ms3": (66.30, 0.730)},
    "t3_gavs": {"v2": (67.70, 0.788)},
    "t3_sama_avs_ft": {"v2": (70.48, 0.770)},
    "t3_save": {"v2": (71.28, 0.795)},
    "t4_gavs": {
        "v3_unseen": (54.71, 0.722), "v3_1_shot": (62.89, 0.768),
        "v3_3_shot": (66.28, 0.774), "v3_5_shot": (67.75, 0.795),
    },
    "t4_save": {
        "v3_unseen": (67.45, 0.731), "v3_1_shot": (71.50, 0.770),
        "v3_3_shot": (74.61, 0.786), "v3_5_shot": (75.35, 0.795),
    },
}  # fmt: skip


def test_every_number() -> None:
    typed = {
        name: {d: v[2 * i : 2 * i + 2] for i, d in enumerate(("s4", "ms3")[: len(v) // 2])}
        for name, v in S4_MS3.items()
    } | ELSEWHERE
    read = {r.name: {d: (s.m_j, s.m_f) for d, s in r.paper.items()} for r in built_in_recipes()}
    assert read == typed
    assert all(set(r.paper) == set(r.test) for r in built_in_recipes())


CHAINS = {
    ("t1_sam", "s4"): [],
    ("t1_save_256", "s4"): ["s4"],
    ("t1_save_256", "ms3"): ["ms3"],
    ("t2_sama_avs_ft", "ms3"): ["s4", "ms3"],
    ("t2_save_1024_ft_syn", "s4"): ["syn", "s4"],
    ("t2_save_1024_ft_syn", "ms3"): ["syn", "s4", "ms3"],
    ("t3_save", "v2"): ["v2"],
    ("t4_save", "v3_unseen"): ["v3_seen"],
    ("t4_save", "v3_3_shot"): ["v3_seen", "v3_3_shot"],
    ("t6_save_256_0_wo_pt", "s4"): [],
    ("t6_save_256_0_pt", "s4"): ["syn"],
    ("t6_save_256_100_pt", "s4"): ["syn", "s4"],
    ("t7_sama_ft_256", "ms3"): ["ms3", "ms3"],
}


@pytest.mark.parametrize(("name", "dataset"), CHAINS)
def test_chain(name: str, dataset: str) -> None:
    chain = load_recipe(name).chain(dataset)
    assert [stage.dataset for stage in chain] == CHAINS[name, dataset]


def test_hyper_parameters() -> None:
    """SPEC 6: every stage of everything but GAVS; k-shot is ten epochs more."""
    for recipe in built_in_recipes():
        for stage in recipe.stages:
            shot = stage.dataset.endswith("_shot")
            found = (stage.epochs, stage.batch, stage.gpus, stage.item, stage.lr, stage.loss)
            if recipe.system == "gavs":
                assert found == (10 if shot else 60, 1, 1, "video", 1e-3, "bce")
                assert (stage.schedule, stage.final_lr) == ("constant", 1e-3)
            else:
                batch = {224: 16, 256: 16, 1024: 2}[stage.res]
                assert found == (10 if shot else 80, batch, 2, "frame", 2e-4, "bce+iou")
                assert (stage.schedule, stage.final_lr, stage.warmup_steps) == ("cosine", 1e-7, 0)
            assert stage.weight_decay == 0.01


def test_sizes_and_protocols() -> None:
    for recipe in built_in_recipes():
        gavs, sama = recipe.system == "gavs", recipe.system.startswith("sama")
        assert recipe.backbone == ("vit_b" if gavs else "vit_h")
        assert recipe.metrics == ("gavs" if gavs else "sama" if sama else "avsbench")
        assert (recipe.mask == "oracle") == (recipe.system == "sam")
    assert [load_recipe(n).res for n in ("t3_save", "t4_save", "t3_sama_avs_ft")] == [224] * 3
    moved = load_recipe("t7_sama_256")
    assert (moved.res, [s.res for s in moved.stages]) == (256, [1024, 1024])
    tuned = load_recipe("t7_sama_ft_256")
    assert [s.res for s in tuned.chain("s4")] == [1024, 256]


def test_switches_reach_the_model() -> None:
    assert load_recipe("t9_3_layers_1024").config().audio_layers == 3
    assert load_recipe("t9_2_layers_256").config().image_adapter == "off"
    assert load_recipe("t7_sama_256").config(res=1024).res == 1024
    small = load_recipe("t1_save_256").config(backbone="vit_t", prompt_source="last")
    assert (small.name, small.prompt_source) == ("vit_t", "last")


ENCODER = {224: 631_970_048, 256: 632_049_408, 1024: 637_026_048}  # ViT-H, SPEC 1.6
SHARED = 72_141_184 + 4_058_340 + 6_220  # VGGish, mask decoder, prompt encoder
AUDIO = 42_000_384 + 165_120 + 393_728  # adapters, 128 -> C, prompt MLP
EXTRA = {  # beyond encoder and SHARED
    "sam": 0,
    "sama_avs": 2_770_176,
    "sama_avs_ft": 2_770_176,
    "save_star": AUDIO,
    "save": AUDIO + 1_337_016_320,
}


@pytest.mark.slow
def test_every_row_builds_its_model() -> None:
    """On the meta device, without memory; parameter totals of SPEC 1.6 where it has them."""
    counts: dict[SaveConfig, int] = {}
    for recipe in built_in_recipes():
        config = recipe.config()
        if config not in counts:
            with torch.device("meta"):
                counts[config] = sum(p.numel() for p in SaveModel(config).parameters())
        if recipe.system in EXTRA and not recipe.name.startswith("t9_3"):
            known = ENCODER[recipe.res] + SHARED + EXTRA[recipe.system]
            assert counts[config] == known, recipe.name
    # a third linear of 512 x 512 with its bias in each of the 32 adapters
    deep, usual = (load_recipe(f"t9_{n}_layers_1024").config() for n in (3, 2))
    assert counts[deep] - counts[usual] == 32 * (512 * 512 + 512)


def test_every_note_concerns_a_row() -> None:
    places = [(r.name, d) for r in built_in_recipes() for d in r.test]
    for note in NOTES:
        for pattern in note.rows:
            one = type(note)(note.item, (pattern,), note.datasets, note.text)
            assert any(one.concerns(*place) for place in places), (note.item, pattern)
    assert sorted({note.item for note in NOTES}) == [3, 4, 5, 6, 7, 8, 9]


def test_unknown_row_lists_near_ones() -> None:
    with pytest.raises(SaveDeployError) as caught:
        load_recipe("t1_save_265")
    assert "t1_save_256" in caught.value.expected and "t4_gavs" not in caught.value.expected
    assert len(recipe_names()) == 43
