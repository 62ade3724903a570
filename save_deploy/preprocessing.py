"""Preprocessing of frames and audio as data in the manifest, for clients in any language."""

from __future__ import annotations

from typing import Any

from save_deploy.fields import Fields, shown

PREPROCESSING: dict[str, Any] = {
    "frame": {
        "color": "RGB",
        "dtype": "uint8",
        "layout": "NHWC",
        "resize": "square",
        "interpolation": "bilinear_antialias",
        "normalisation": "in the graph",
    },
    "sound": {
        "sample_rate_hz": 16000,
        "channels": "mean",
        "window_samples": 16000,
        "window_step_s": 0.96,
        "short": "completed with silence",
    },
    "mask": {"threshold_logit": 0.0, "resize": "bilinear on logits to the frame size"},
}


def check_preprocessing(fields: Fields) -> None:
    """Raise the error of `fields` for a manifest that asks for anything else, as C++ does."""
    found = fields.table("preprocessing").values
    if not _is_same(found, PREPROCESSING):
        expected = "the preprocessing of this version of save-deploy"
        raise fields.error("preprocessing", got=shown(found), expected=expected)


def _is_same(found: Any, wanted: Any) -> bool:
    """Return whether both are equal as JSON: true is not 1."""
    if isinstance(wanted, dict):
        alike = isinstance(found, dict) and found.keys() == wanted.keys()
        return alike and all(_is_same(found[key], wanted[key]) for key in wanted)
    return bool(found == wanted) and not isinstance(found, bool)
