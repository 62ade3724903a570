"""The frozen parts a training run starts from: SAM's .pth files (vit_b_01ec64, vit_l_0b3195,
vit_h_4b8939), SAM-Med2D's, and VGGish's, as tensors under our names."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from save_deploy.checkpoints.foreign import Layout, identify, shapes_of, to_ours, unknown_size
from save_deploy.checkpoints.pth import read_pth
from save_deploy.errors import CheckpointError

__all__ = ["read_pth", "read_sam", "read_vggish"]


def read_sam(path: Path) -> tuple[dict[str, Tensor], str]:
    """SAM or SAM-Med2D .pth -> (tensors by our names, preset name vit_b, vit_l or vit_h).

    SAM-Med2D brings image adapters (image_encoder.blocks.i.adapter.*) and 256 px position tables.
    """
    state, layout = _read(path, ("sam", "sam_med2d"), "SAM", "SAM's official .pth")
    if layout.backbone is None:
        raise unknown_size(layout)
    return to_ours(state, layout), layout.backbone


def read_vggish(path: Path) -> dict[str, Tensor]:
    """vggish-10086976.pth -> tensors under our prefix `audio_encoder.`."""
    state, layout = _read(path, ("vggish",), "VGGish", "vggish-10086976.pth")
    return to_ours(state, layout)


def _read(
    path: Path, wanted: tuple[str, ...], title: str, expected: str
) -> tuple[dict[str, Tensor], Layout]:
    state = read_pth(path)
    layout = identify(shapes_of(state))
    if layout is None or layout.name not in wanted:
        found = f"{layout.table.title}: " if layout is not None else ""
        raise CheckpointError(
            f"not a {title} checkpoint",
            got=f"{found}{path} with keys such as {', '.join(sorted(state)[:3])}",
            expected=expected,
        )
    if layout.missing:
        raise CheckpointError(
            f"{len(layout.missing)} tensors of {layout.table.title} are missing",
            got=f"{path} without {'; '.join(layout.missing[:8])}",
            expected=expected,
        )
    return state, layout
