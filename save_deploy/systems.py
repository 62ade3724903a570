"""Systems that the paper compares, as switches of one configuration, and their trained parts.

SPEC 2. `SaveConfig.of_system("sama_avs", "vit_h", res=1024)` builds any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from save_deploy.errors import SaveDeployError
from save_deploy.fields import check_word

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
    """One system of the paper's tables.

    title: its name in the paper.
    switches: fields of SaveConfig.
    trains: trained groups of parameters.
    note: where its description is our reading.
    """

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
        "SAMA-AVS with its position tables resized to 224 or 256 and trained further; the paper "
        "does not say whether the audio adapters also train (A12)",
    ),
    "ap_sam": System(
        "AP-SAM",
        dict(**_NO_AUDIO_IN_ENCODER, prompt_source="raw", prompt_hidden=512),
        ("audio_prompt", *_DECODER),
        "audio as one sparse prompt; the hidden size is that of SAMA-AVS's unused MLP",
    ),
    "sam": System(
        "SAM",
        dict(**_NO_AUDIO_IN_ENCODER, prompt_source="off"),
        (),
        "scored by its best mask of a grid of points (the paper's 'maximum segmentation "
        "evaluation'); an export has no prompt",
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
        "as in its public code, without the paper's visual cues",
    ),
    "av_sam": System(
        "AV-SAM",
        dict(**_NO_AUDIO_IN_ENCODER, prompt_source="fused", post_fusion="add"),
        ("post_fusion", "audio_prompt", *_DECODER),
        "audio added to every pixel of the frozen features, their mean as the prompt; the paper "
        "says only that they are fused pixel-wise",
    ),
}
LATE_BLOCKS = 3  # number of last blocks that GAVS adapts and tunes (tune_v = 9 of 12)

# (group, pattern of its parameter names); the first match is used
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
# Parameters that a single mask never reads. They get no gradient and must not get weight decay.
_UNUSED = re.compile(
    r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])\."
    r"|prompt_encoder\.(point_embeddings|not_a_point|mask_downscaling)"
)


def system(name: str) -> System:
    """Return a system by name. Raises SaveDeployError for an unknown name."""
    check_word("system", name, SYSTEMS)
    return SYSTEMS[name]


def group_of(parameter: str, depth: int) -> str:
    """Return the group of a parameter by its name. Norms of the last blocks are `late_norms`."""
    for group, pattern in _GROUPS:
        if re.match(pattern, parameter):
            if group != "norms":
                return group
            late = int(parameter.split(".")[2]) > depth - LATE_BLOCKS
            return "late_norms" if late else "image_encoder"
    raise SaveDeployError("unknown parameter", got=parameter, expected="a part of SaveModel")


def is_unused(parameter: str) -> bool:
    """Return True for SAM's parameters that a single mask without points never reads."""
    return _UNUSED.match(parameter) is not None


def comes_with_sam(parameter: str, name: str, depth: int) -> bool:
    """Return True for a parameter of a frozen SAM that an adapter-only checkpoint leaves out.

    These are its image and prompt encoder without the parts that system `name` trains.
    """
    group = group_of(parameter, depth)
    frozen = ("image_encoder", "late_norms", "prompt_encoder")
    return group in frozen and group not in system(name).trains
