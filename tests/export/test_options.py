"""Options of an export that Python code can set to what the command line would refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest

from save_deploy.errors import SaveDeployError
from save_deploy.export.options import ExportOptions


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
