"""Options of an export that Python code can set to what the command line would refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from save_deploy.errors import SaveDeployError
from save_deploy.export.options import ExportOptions, SearchOptions
from save_deploy.runtime.bench.options import BenchOptions
from save_deploy.runtime.compare.options import CompareOptions
from save_deploy.training.options import TrainConfig


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"precision": "bf16"}, "precision"),
        ({"precision": "int8_bf16"}, "precision"),
        ({"precision": "int8", "weight_bits": 4}, "--weight-bits"),
        ({"min_agreement": math.nan}, "--min-agreement"),
        ({"min_agreement": -0.5}, "--min-agreement"),
        ({"max_abs_err": math.inf}, "--max-logit-error"),
        ({"max_abs_err": -1.0}, "--max-logit-error"),
    ],
)
def test_wrong_options_are_refused_at_once(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(SaveDeployError, match=named):
        ExportOptions(**wrong)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ExportOptions(n_golden=0), "--golden | got: 0 | expected: 1 or more"),
        (lambda: ExportOptions(rounds=2), "--rounds | got: 2"),
        (lambda: ExportOptions(weight_bits=9, precision="int8"), "7 or more and 8 or less"),
        (lambda: SearchOptions(clips=3), "--search-clips"),
        (lambda: BenchOptions(batch=65), "--batch"),
        (lambda: CompareOptions(bundles=(), rounds=0), "--rounds"),
        (lambda: TrainConfig(data={}, lr=float("nan")), "--lr | got: nan"),
        (lambda: TrainConfig(data={}, out_of_view=1.5), "0 or more and 1 or less"),
    ],
)
def test_python_meets_the_limits_of_the_command_line(
    make: Callable[[], object], named: str
) -> None:
    with pytest.raises(SaveDeployError) as caught:
        make()
    error = caught.value
    assert named in f"{error.what} | got: {error.got} | expected: {error.expected}"


def test_what_a_search_minimizes() -> None:
    assert ExportOptions(precision="int8").search_cost == "time"
    assert ExportOptions(precision="fp8").search_cost == "work", "no CPU has FP8 kernels"
    assert ExportOptions(precision="int8", target="tensorrt").search_cost == "work"
    asked = ExportOptions(precision="fp8", search=SearchOptions(cost="time"))
    assert asked.search_cost == "time"
