"""Other projects' files at a small size, built from segment-anything's modules and names written
out by hand; and what those projects compute, in a few lines. Nothing here uses our key tables."""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, interpolate, linear, max_pool2d, relu

from tests.conftest import TINY, randomise

DIM, HEADS, WINDOW, HIDDEN = TINY["embed_dim"], TINY["num_heads"], TINY["window_size"], 24
CHANNELS, FC = TINY["audio_channels"], TINY["audio_fc"]
CONVS = (0, 3, 6, 8, 11, 13)
SIZES: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("name", "res")}


def sam_modules(side: int = 64, depth: int = 3) -> dict[str, nn.Module]:
    """segment-anything's own three parts, seeded, with non-trivial tables and norms."""
    torch.manual_seed(depth)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    grid = side // 16
    encoder = ImageEncoderViT(
        img_size=side, embed_dim=DIM, depth=depth, num_heads=HEADS, use_rel_pos=True,
        norm_layer=lambda d: nn.LayerNorm(d, eps=1e-6), window_size=WINDOW,
        global_attn_indexes=(2,),
    )  # fmt: skip
    parts = {
        "image_encoder": encoder,
        "prompt_encoder": PromptEncoder(256, (grid, grid), (side, side), 16),
        "mask_decoder": MaskDecoder(transformer_dim=256, transformer=transformer),
    }
    return {name: randomise(part).requires_grad_(False).eval() for name, part in parts.items()}


def sam_state(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{n}.{k}": v for n, part in parts.items() for k, v in part.state_dict().items()}


def vggish_state() -> dict[str, Tensor]:
    torch.manual_seed(11)
    state: dict[str, Tensor] = {}
    for i, c_in, c_out in zip(CONVS, (1, *CHANNELS), CHANNELS, strict=False):
        state[f"features.{i}.weight"] = torch.randn(c_out, c_in, 3, 3) * 0.4
        state[f"features.{i}.bias"] = torch.randn(c_out) * 0.1
    for i, d_in, d_out in ((0, CHANNELS[-1] * 24, FC), (2, FC, FC), (4, FC, 128)):
        state[f"embeddings.{i}.weight"] = torch.randn(d_out, d_in) * 0.2
        state[f"embeddings.{i}.bias"] = torch.randn(d_out) * 0.2
    return state


def sama_state(parts: dict[str, nn.Module], depth: int = 3) -> dict[str, Tensor]:
    """As train_avs.py saves it: its own matrix and no_mask, no prompt encoder."""
    torch.manual_seed(12)
    names = {
        k: v for k, v in sam_state(parts).items() if k.startswith(("image_encoder", "mask_decoder"))
    }
    generator = "image_encoder.prompt_generator"
    names[f"{generator}.shared_mlp.weight"] = torch.randn(DIM, HIDDEN) * 0.2
    names[f"{generator}.shared_mlp.bias"] = torch.randn(DIM) * 0.2
    for i in range(depth):
        names[f"{generator}.lightweight_mlp_{i}.0.weight"] = torch.randn(HIDDEN, 128) * 0.2
        names[f"{generator}.lightweight_mlp_{i}.0.bias"] = torch.randn(HIDDEN) * 0.2
    names |= {f"audio_encoder.audio_backbone.{k}": v for k, v in vggish_state().items()}
    names["pe_layer.positional_encoding_gaussian_matrix"] = torch.randn(2, 128)
    names["no_mask_embed.weight"] = torch.randn(1, 256)
    return names


def med2d_state(parts: dict[str, nn.Module], depth: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(13)
    state = sam_state(parts)
    for i in range(depth):
        adapter = f"image_encoder.blocks.{i}.Adapter"
        state[f"{adapter}.norm.weight"] = torch.randn(DIM)
        state[f"{adapter}.norm.bias"] = torch.randn(DIM)
        state[f"{adapter}.channel.0.weight"] = torch.randn(DIM // 4, DIM)
        state[f"{adapter}.channel.2.weight"] = torch.randn(DIM, DIM // 4)
        state[f"{adapter}.spatial.0.weight"] = torch.randn(DIM, DIM, 3, 3)
        state[f"{adapter}.spatial.2.weight"] = torch.randn(DIM, DIM, 4, 4)
    return state


def gavs_state(parts: dict[str, nn.Module], depth: int, tune_v: int) -> dict[str, Tensor]:
    """As run_v1m_x.py saves AVSM: adapters in every block, those before tune_v at their start."""
    torch.manual_seed(14)
    state = sam_state(parts)
    for i in range(depth):
        for j, (d_in, d_out) in {0: (DIM, 128), 2: (128, DIM)}.items():
            fresh = nn.Linear(d_in, d_out).requires_grad_(False)
            grown = 1.0 if i < tune_v else 3.0
            state[f"image_encoder.blocks.{i}.adapter_v.{j}.weight"] = fresh.weight * grown
            state[f"image_encoder.blocks.{i}.adapter_v.{j}.bias"] = fresh.bias * grown
    layer = "mask_decoder.transformer.layers"
    for i in range(2):
        state[f"{layer}.{i}.adapter_tf.dense.weight"] = torch.randn(128, 256) * 0.1
        state[f"{layer}.{i}.adapter_tf.dense.bias"] = torch.randn(128)
        state[f"{layer}.{i}.adapter_tf.proj.weight"] = torch.randn(256, 128) * 0.1
        state[f"{layer}.{i}.adapter_tf.proj.bias"] = torch.randn(256)
    for j, (d_in, d_out) in {0: (128, 512), 2: (512, 256)}.items():
        state[f"mask_decoder.audio_proj.{j}.weight"] = torch.randn(d_out, d_in) * 0.1
        state[f"mask_decoder.audio_proj.{j}.bias"] = torch.randn(d_out)
    return {f"model_v.{k}": v for k, v in state.items()}


def normalized(frames: Tensor) -> Tensor:
    mean = torch.tensor([123.675, 116.28, 103.53])
    std = torch.tensor([58.395, 57.12, 57.375])
    return ((frames.float() - mean) / std).permute(0, 3, 1, 2)


def vggish(log_mel: Tensor, state: dict[str, Tensor]) -> Tensor:
    x = log_mel
    for i in CONVS:
        x = relu(conv2d(x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1))
        x = max_pool2d(x, 2) if i in (0, 3, 8, 13) else x
    x = x.permute(0, 2, 3, 1).flatten(1)
    for i in (0, 2, 4):
        x = relu(linear(x, state[f"embeddings.{i}.weight"], state[f"embeddings.{i}.bias"]))
    return x


def decode(
    parts: dict[str, nn.Module], features: Tensor, sparse: Tensor, pe: Tensor, no_mask: Tensor
) -> Tensor:
    """One frame through segment-anything's decoder, to the input's size."""
    dense = no_mask.reshape(1, -1, 1, 1).expand_as(features)
    low, _ = parts["mask_decoder"](
        image_embeddings=features,
        image_pe=pe,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return interpolate(low, scale_factor=4, mode="bilinear", align_corners=False)


def sama_forward(
    parts: dict[str, nn.Module], state: dict[str, Tensor], frame: Tensor, log_mel: Tensor
) -> Tensor:
    """SAMA-AVS on one frame: a vector per block, added before it; no prompt token; its own PE."""
    back = "audio_encoder.audio_backbone."
    sound = vggish(
        log_mel, {k.removeprefix(back): v for k, v in state.items() if k.startswith(back)}
    )
    encoder: Any = parts["image_encoder"]
    g = "image_encoder.prompt_generator"
    x = encoder.patch_embed(normalized(frame)) + encoder.pos_embed
    for i, block in enumerate(encoder.blocks):
        mlp = f"{g}.lightweight_mlp_{i}.0"
        vector = gelu(linear(sound, state[f"{mlp}.weight"], state[f"{mlp}.bias"]))
        vector = linear(vector, state[f"{g}.shared_mlp.weight"], state[f"{g}.shared_mlp.bias"])
        x = block(x + vector[:, None, None])
    features = encoder.neck(x.permute(0, 3, 1, 2))
    prompt: Any = parts["prompt_encoder"]
    prompt.pe_layer.positional_encoding_gaussian_matrix = state[
        "pe_layer.positional_encoding_gaussian_matrix"
    ]
    empty = torch.zeros(1, 0, 256)
    return decode(parts, features, empty, prompt.get_dense_pe(), state["no_mask_embed.weight"])


def gavs_forward(
    parts: dict[str, nn.Module], state: dict[str, Tensor], frame: Tensor, sound: Tensor, tune_v: int
) -> Tensor:
    """GAVS on one RGB frame, which it reads as BGR: bottlenecks behind the MLPs, one sound token."""
    state = {k.removeprefix("model_v."): v for k, v in state.items()}

    def two(x: Tensor, name: str, first: str, second: str, act: Any) -> Tensor:
        hidden = act(linear(x, state[f"{name}.{first}.weight"], state[f"{name}.{first}.bias"]))
        return linear(hidden, state[f"{name}.{second}.weight"], state[f"{name}.{second}.bias"])

    def behind(module: nn.Module, *how: Any) -> Any:
        return module.register_forward_hook(lambda _m, _i, out: out + two(out, *how))

    encoder: Any = parts["image_encoder"]
    decoder: Any = parts["mask_decoder"]
    prompt: Any = parts["prompt_encoder"]
    hooks = [
        behind(block.mlp, f"image_encoder.blocks.{i}.adapter_v", "0", "2", relu)
        for i, block in enumerate(encoder.blocks)
        if i >= tune_v
    ]
    hooks += [
        behind(layer.mlp, f"mask_decoder.transformer.layers.{i}.adapter_tf", "dense", "proj", gelu)
        for i, layer in enumerate(decoder.transformer.layers)
    ]
    features = encoder(normalized(frame.flip(-1)))
    token = two(sound, "mask_decoder.audio_proj", "0", "2", relu)[:, None]
    no_mask = prompt.no_mask_embed.weight
    mask = decode(parts, features, token, prompt.get_dense_pe(), no_mask)
    for hook in hooks:
        hook.remove()
    return mask
