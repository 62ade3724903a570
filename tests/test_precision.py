"""Precision as a value."""

from __future__ import annotations

import pytest

from save_deploy.errors import SaveDeployError
from save_deploy.precision import Precision


@pytest.mark.parametrize("text", ["fp32", "fp16", "bf16", "int8", "int8_fp16", "fp8", "fp8_fp16"])
def test_text_and_back(text: str) -> None:
    assert str(Precision.parse(text)) == text


def test_parts() -> None:
    assert Precision.parse("int8_fp16") == Precision("fp16", "int8")
    assert Precision.parse("int8") == Precision("fp32", "int8")

    assert Precision() == Precision.parse("fp32")


@pytest.mark.parametrize("text", ["", "int4", "int8_fp32", "FP16", "fp16_int8"])
def test_unknown(text: str) -> None:
    with pytest.raises(SaveDeployError, match="unknown precision"):
        Precision.parse(text)
