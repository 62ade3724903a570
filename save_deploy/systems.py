"""The systems the paper compares, as changes to one configuration, and what each of them trains.

SPEC 2. `SaveConfig.of_system("sama_avs", "vit_h", res=1024)` builds any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from save_deploy.errors import SaveDeployError

_NO_AUDIO_IN_ENCODER: dict[str, Any] = dict(
    image_adapter="off", audio_mode="off", audio_inject="none"
)
_SAMA: dict[str, Any] = dict(
    image_adapter="off",
    audio_mode="independent",
    audio_inject="before",
    audio_in_proj=False,
    audio_share_out=True,
    prompt_source="off",
)


@dataclass(frozen=True)
class System:
    """One row of the paper's tables: its name there, its switches, the groups that learn, and where
    its description is our reading."""

    title: str
    switches: dict[str, Any]
    trains: tuple[str, ...]
    note: str = ""


_DECODER = ("mask_decoder", "no_mask_embed")
SYSTEMS: dict[str, System] = {
    "save": System("SAVE(**)", {}, ("image_adapter", "audio_adapter", "audio_prompt", *_DECODER)),
    "save_star": System(
        "SAVE(*)", dict(image_adapter="off"), ("audio_adapter", "audio_prompt", *_DECODER)
    ),
    "sama_avs": System("SAMA-AVS", _SAMA, ("audio_adapter", *_DECODER)),
    "sama_avs_ft": System(
        "SAMA-AVS-FT",
        _SAMA,
        ("audio_adapter", *_DECODER),
        "SAMA-AVS with its position tables resized to 224 or 256 and trained on; whether the audio "
        "adapters also train is not said (A12)",
    ),
    "ap_sam": System(
        "AP-SAM",
        dict(**_NO_AUDIO_IN_ENCODER, prompt_source="raw", prompt_hidden=512),
        ("audio_prompt", *_DECODER),
        "sound as one sparse prompt; the hidden width is SAMA-AVS's unused MLP's",
    ),
    "sam": System(
        "SAM",
        dict(**_NO_AUDIO_IN_ENCODER, prompt_source="off"),
        (),
        "scored by its best mask of a grid of points (the paper's 'maximum segmentation "
        "evaluation'); exported alone it has no prompt at all",
    ),
    "gavs": System(
        "GAVS",
        dict(
            image_adapter="bottleneck",
            audio_mode="off",
            audio_inject="none",
            decoder_adapter="bottleneck",
            prompt_source="raw",
            prompt_hidden=512,
            prompt_act="relu",
        ),
        ("image_adapter", "decoder_adapter", "audio_prompt", "late_norms"),
        "as its public code: without the paper's visual cues",
    ),
    "av_sam": System(
        "AV-SAM",
        dict(**_NO_AUDIO_IN_ENCODER, prompt_source="fused", post_fusion="add"),
        ("post_fusion", "audio_prompt", *_DECODER),
        "sound added to every pixel of the frozen features, their mean as the prompt: the paper "
        "tells no more than that they are fused pixel-wise",
    ),
}
LATE_BLOCKS = 3  # GAVS adapts and tunes the last three blocks (tune_v = 9 of 12)

# group -> pattern of the parameter names that belong to it, first match wins
_GROUPS: tuple[tuple[str, str], ...] = (
    ("image_adapter", r"image_encoder\.blocks\.\d+\.(mlp\.)?adapter\."),
    ("decoder_adapter", r"mask_decoder\.transformer\.layers\.\d+\.mlp\.adapter\."),
    ("norms", r"image_encoder\.blocks\.[0-9]{1,4}\.norm[12]\."),
    ("image_encoder", r"image_encoder\."),
    ("audio_encoder", r"audio_encoder\."),
    ("audio_adapter", r"audio_adapter\."),
    ("audio_prompt", r"audio_prompt\."),
    ("post_fusion", r"post_fusion\."),
    ("mask_decoder", r"mask_decoder\."),
    ("no_mask_embed", r"prompt_encoder\.no_mask_embed\."),
    ("prompt_encoder", r"prompt_encoder\."),
)
# Parameters that a single mask never reads: no gradient reaches them, weight decay must not either.
_UNUSED = re.compile(
    r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])\."
    r"|prompt_encoder\.(point_embeddings|not_a_point|mask_downscaling)"
)


def system(name: str) -> System:
    """Raises SaveDeployError for a name that is none."""
    if name not in SYSTEMS:
        raise SaveDeployError("unknown system", got=name, expected=", ".join(SYSTEMS))
    return SYSTEMS[name]


def group_of(parameter: str, depth: int) -> str:
    """The group a parameter belongs to, by its name; norms of the last blocks are `late_norms`."""
    for group, pattern in _GROUPS:
        if re.match(pattern, parameter):
            if group != "norms":
                return group
            late = int(parameter.split(".")[2]) > depth - LATE_BLOCKS
            return "late_norms" if late else "image_encoder"
    raise SaveDeployError("unknown parameter", got=parameter, expected="a part of SaveModel")


def is_unused(parameter: str) -> bool:
    """True for SAM's parameters that one mask without points never reads."""
    return _UNUSED.match(parameter) is not None


def comes_with_sam(parameter: str, name: str, depth: int) -> bool:
    """True for what a frozen SAM brings: its image and prompt encoder, but nothing that `name` trains.
    An adapter-only checkpoint leaves these out."""
    group = group_of(parameter, depth)
    frozen = ("image_encoder", "late_norms", "prompt_encoder")
    return group in frozen and group not in system(name).trains
