"""Small sizes registered as presets, so that files of those sizes are recognized."""

from __future__ import annotations

import pytest

from save_deploy import config as config_module
from tests.checkpoints.files import SIZES


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """vit_x: 32 wide, 3 blocks; vit_y: 32 wide, 5 blocks (two of them before GAVS's adapters)."""
    monkeypatch.setitem(config_module.PRESETS, "vit_x", SIZES)
    monkeypatch.setitem(config_module.PRESETS, "vit_y", {**SIZES, "depth": 5})
