"""Tables of the tensor names in other projects' checkpoints of the same model.

A rule is (their name, our name). `{i}` and `{j}` stand for a number, `{p}` for weight or bias,
`{a}` for h or w. Both sides have the same placeholders, so every rule works in both directions. The
first matching rule is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Rules = tuple[tuple[str, str], ...]


def _same(names: Iterable[str]) -> Rules:
    return tuple((name, name) for name in names)


def _under(prefix: str, names: Iterable[str]) -> Rules:
    return tuple((name, prefix + name) for name in names)


IMAGE_ENCODER = _same(
    (
        "image_encoder.patch_embed.proj.{p}",
        "image_encoder.pos_embed",
        "image_encoder.blocks.{i}.norm1.{p}",
        "image_encoder.blocks.{i}.norm2.{p}",
        "image_encoder.blocks.{i}.attn.qkv.{p}",
        "image_encoder.blocks.{i}.attn.proj.{p}",
        "image_encoder.blocks.{i}.attn.rel_pos_{a}",
        "image_encoder.blocks.{i}.mlp.lin1.{p}",
        "image_encoder.blocks.{i}.mlp.lin2.{p}",
        "image_encoder.neck.{i}.{p}",
    )
)
MASK_DECODER = _same(
    (
        "mask_decoder.iou_token.weight",
        "mask_decoder.mask_tokens.weight",
        "mask_decoder.transformer.layers.{i}.self_attn.q_proj.{p}",
        "mask_decoder.transformer.layers.{i}.self_attn.k_proj.{p}",
        "mask_decoder.transformer.layers.{i}.self_attn.v_proj.{p}",
        "mask_decoder.transformer.layers.{i}.self_attn.out_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_token_to_image.q_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_token_to_image.k_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_token_to_image.v_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_token_to_image.out_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_image_to_token.q_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_image_to_token.k_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_image_to_token.v_proj.{p}",
        "mask_decoder.transformer.layers.{i}.cross_attn_image_to_token.out_proj.{p}",
        "mask_decoder.transformer.layers.{i}.norm{j}.{p}",
        "mask_decoder.transformer.layers.{i}.mlp.lin1.{p}",
        "mask_decoder.transformer.layers.{i}.mlp.lin2.{p}",
        "mask_decoder.transformer.final_attn_token_to_image.q_proj.{p}",
        "mask_decoder.transformer.final_attn_token_to_image.k_proj.{p}",
        "mask_decoder.transformer.final_attn_token_to_image.v_proj.{p}",
        "mask_decoder.transformer.final_attn_token_to_image.out_proj.{p}",
        "mask_decoder.transformer.norm_final_attn.{p}",
        "mask_decoder.output_upscaling.{i}.{p}",
        "mask_decoder.output_hypernetworks_mlps.{i}.layers.{j}.{p}",
        "mask_decoder.iou_prediction_head.layers.{i}.{p}",
    )
)
_PE_AND_NO_MASK = ("pe_layer.positional_encoding_gaussian_matrix", "no_mask_embed.weight")
PROMPT_ENCODER = _same(
    (
        *(f"prompt_encoder.{name}" for name in _PE_AND_NO_MASK),
        "prompt_encoder.point_embeddings.{i}.weight",
        "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.mask_downscaling.{i}.{p}",
    )
)
_VGGISH = ("features.{i}.{p}", "embeddings.{i}.{p}")
SAM = IMAGE_ENCODER + PROMPT_ENCODER + MASK_DECODER
# SAM's buffers, which some forks store; a file with other values is rejected
PIXEL_BUFFERS = ("pixel_mean", "pixel_std")
AUDIO_PARTS = ("audio_encoder.", "audio_adapter.", "audio_prompt.")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Layout of one project."""

    title: str
    marks: tuple[str, ...]  # substrings of names that only this layout has
    requires: tuple[str, ...] = ()  # names that must exist too
    rules: Rules
    like: str  # our system that has all of its tensors
    system: str | None = None  # system of its configuration; None: it has no audio modules
    systems: tuple[str, ...] = ()  # our systems that can be written in this layout
    needs: dict[str, Any] = field(default_factory=dict)  # switches that are fixed in its code
    leaves_out: tuple[str, ...] = ()  # prefixes of our tensors that it does not have
    drops: tuple[str, ...] = ()  # their tensors that our model does not use
    prefix: str = ""  # prefix of every name when written
    wrapper: str = ""  # entry that contains the names when written
    notes: tuple[str, ...] = ()


# Order matters: the first layout whose marks are found is used, and all others contain SAM's names.
LAYOUTS: dict[str, Table] = {
    "sama_avs": Table(
        title="SAMA-AVS",
        like="sama_avs",
        marks=("image_encoder.prompt_generator.",),
        rules=(
            (
                "image_encoder.prompt_generator.lightweight_mlp_{i}.0.{p}",
                "audio_adapter.blocks.{i}.fc1.{p}",
            ),
            ("image_encoder.prompt_generator.shared_mlp.{p}", "audio_adapter.shared_fc2.{p}"),
            *((f"audio_encoder.audio_backbone.{n}", f"audio_encoder.{n}") for n in _VGGISH),
            *_under("prompt_encoder.", _PE_AND_NO_MASK),
            *IMAGE_ENCODER,
            *MASK_DECODER,
        ),
        system="sama_avs",
        systems=("sama_avs", "sama_avs_ft"),
        needs=dict(audio_act="gelu", audio_layers=2),
        leaves_out=(
            "prompt_encoder.point_embeddings.",
            "prompt_encoder.not_a_point_embed.",
            "prompt_encoder.mask_downscaling.",
        ),
    ),
    "gavs": Table(
        title="GAVS",
        like="gavs",
        marks=(".adapter_v.", "mask_decoder.audio_proj.", ".adapter_tf."),
        rules=(
            (
                "image_encoder.blocks.{i}.adapter_v.{j}.{p}",
                "image_encoder.blocks.{i}.mlp.adapter.{j}.{p}",
            ),
            (
                "mask_decoder.transformer.layers.{i}.adapter_tf.dense.{p}",
                "mask_decoder.transformer.layers.{i}.mlp.adapter.0.{p}",
            ),
            (
                "mask_decoder.transformer.layers.{i}.adapter_tf.proj.{p}",
                "mask_decoder.transformer.layers.{i}.mlp.adapter.2.{p}",
            ),
            ("mask_decoder.audio_proj.0.{p}", "audio_prompt.layers.0.{p}"),
            ("mask_decoder.audio_proj.2.{p}", "audio_prompt.layers.1.{p}"),
            *_same(f"audio_encoder.{name}" for name in _VGGISH),  # if the file includes VGGish
            *SAM,
        ),
        system="gavs",
        systems=("gavs",),
        needs=dict(prompt_scale="none", prompt_tokens="one"),
        leaves_out=("audio_encoder.",),
        prefix="model_v.",
        notes=(
            "its code feeds BGR frames with RGB means: the patch embedding is rewritten for RGB",
            "its audio vectors are read from files; the public samples have negative values, from "
            "a VGGish without the last ReLU, which this VGGish has",
        ),
    ),
    "sam_med2d": Table(
        title="SAM-Med2D",
        like="save",
        marks=(".Adapter.",),
        rules=(
            *(
                (
                    f"image_encoder.blocks.{{i}}.Adapter.{n}",
                    f"image_encoder.blocks.{{i}}.adapter.{n}",
                )
                for n in ("norm.{p}", "channel.{j}.weight", "spatial.{j}.weight")
            ),
            *SAM,
        ),
        systems=("save",),
        needs=dict(
            image_adapter="med2d",
            image_adapter_ratio=0.25,
            image_adapter_position="parallel",
            image_adapter_spatial="full",
            image_adapter_down_kernel=3,
            image_adapter_up_kernel=4,
            image_adapter_skip="input",
            image_adapter_norm=True,
            image_adapter_norm_eps=1e-5,
            image_adapter_start=0,
        ),
        leaves_out=AUDIO_PARTS,
        wrapper="model",
    ),
    "sam": Table(title="SAM", marks=("image_encoder.patch_embed.",), rules=SAM, like="sam"),
    "vggish": Table(
        title="VGGish",
        like="sam",
        marks=("embeddings.0.weight",),
        requires=("features.0.weight",),
        rules=_under("audio_encoder.", _VGGISH),
        # torch.hub's class also applies a PCA to its vectors; AVSBench's and SAMA-AVS's do not
        drops=("pproc.pca_eigen_vectors", "pproc.pca_means"),
    ),
}
