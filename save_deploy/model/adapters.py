"""Adapters of SAVE: image adapter (Eq. 1) and residual audio adapters (Eq. 2).

Also the adapters of GAVS and AV-SAM, which the paper compares with.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from save_deploy.config import AUDIO_DIM, PROMPT_DIM, SaveConfig


class ImageAdapter(nn.Module):
    """Channel gate, strided convolution and transposed convolution, skip and norm.

    The paper specifies the gate, the factor-2 pair of convolutions and "same number of channels".
    Kernels, ReLUs, skip and final norm are those of SAM-Med2D (Adapter_Layer), whose parameter
    names are kept. 25.5 C^2 + 2C parameters (SPEC 1.3). The token grid side must be even or 7k (224
    px: 14).
    skip: tensor that is added to the output of the convolutions: the adapter's input as in
        SAM-Med2D's code, the gated input as in the first built-in checkpoint, or none.
    """

    def __init__(self, config: SaveConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, int(config.embed_dim * config.image_adapter_ratio)
        groups = dim if config.image_adapter_spatial == "depthwise" else 1
        down, up = config.image_adapter_down_kernel, config.image_adapter_up_kernel
        self.skip = config.image_adapter_skip
        self.channel = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, dim, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, down, stride=2, padding=(down - 1) // 2, groups=groups, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(
                dim, dim, up, stride=2, padding=(up - 2) // 2, groups=groups, bias=False
            ),
            nn.ReLU(),
        )
        self.norm: nn.Module = nn.Identity()
        if config.image_adapter_norm:
            self.norm = nn.LayerNorm(dim, eps=config.image_adapter_norm_eps)
        self._init_weights(config.image_adapter_init)

    def _init_weights(self, how: str) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if how == "zero_out_norm" and isinstance(self.norm, nn.LayerNorm):
            nn.init.zeros_(self.norm.weight)  # identity start: keeps the frozen SAM features

    def forward(self, tokens: Tensor) -> Tensor:
        """Adapt tokens (B,s,s,C), already normalized by the block's norm2: (B,s,s,C)."""
        x = tokens.permute(0, 3, 1, 2)  # (B,C,s,s)
        gate = self.channel(x.mean(dim=(2, 3)))  # (B,C)
        gated = x * gate[:, :, None, None]
        y = self.spatial(gated)
        if self.skip != "none":
            y = (gated if self.skip == "gated" else x) + y
        return self.norm(y.permute(0, 2, 3, 1))  # (B,s,s,C)


class AdaptedMlp(MLPBlock):  # type: ignore[misc]
    """SAM's MLP followed by GAVS's bottleneck: y = MLP(x); y + up(act(down(y))).

    It is a subclass, so that SAM's parameter names (lin1, lin2) are kept and its files load
    strictly.
    """

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        *,
        bottleneck: int,
        adapter_act: type[nn.Module],
        act: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__(dim, mlp_dim, act)
        self.adapter = nn.Sequential(
            nn.Linear(dim, bottleneck), adapter_act(), nn.Linear(bottleneck, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.adapter(y)


class PostFusion(nn.Module):
    """AV-SAM's fusion: one audio vector, added to every pixel of the frozen image embedding.

    The paper says only "fused pixel-wise" (SPEC 2); addition is our reading.
    """

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(AUDIO_DIM, PROMPT_DIM)

    def forward(self, image_embeddings: Tensor, audio_embedding: Tensor) -> Tensor:
        """Fuse image_embeddings (B,256,s,s) with audio_embedding (B,128): (B,256,s,s)."""
        return image_embeddings + self.proj(audio_embedding)[:, :, None, None]


class AudioMlp(nn.Module):
    """PE_i of Eq. 2 without the residual: an MLP, whose output linear may be shared."""

    def __init__(self, dim_in: int, config: SaveConfig, *, has_output: bool) -> None:
        super().__init__()
        hidden = config.audio_hidden
        self.act = nn.GELU() if config.audio_act == "gelu" else nn.ReLU()
        self.fc1 = nn.Linear(dim_in, hidden)
        self.hidden = nn.ModuleList(
            nn.Linear(hidden, hidden) for _ in range(config.audio_layers - 2)
        )
        self.fc2 = nn.Linear(hidden, config.embed_dim) if has_output else None

    def forward(self, audio: Tensor) -> Tensor:
        """Map (B,D) to (B,C), or to hidden (B,H) when the output linear is shared.

        The residual is not included.
        """
        x = self.act(self.fc1(audio))
        for layer in self.hidden:
            x = self.act(layer(x))
        return x if self.fc2 is None else self.fc2(x)


class AudioAdapters(nn.Module):
    """All residual audio adapters: audio embedding -> N injection vectors and the prompt source.

    They read only the audio, so they run once per second of audio, not once per frame.
    """

    def __init__(self, config: SaveConfig) -> None:
        super().__init__()
        self.mode, self.source, self.depth = config.audio_mode, config.prompt_source, config.depth
        self.in_proj: nn.Linear | None = None
        self.shared_fc2: nn.Linear | None = None
        self.blocks = nn.ModuleList()
        if self.mode == "off":
            return
        if config.audio_in_proj:
            self.in_proj = nn.Linear(AUDIO_DIM, config.embed_dim)
        dim_in = config.embed_dim if config.audio_in_proj else AUDIO_DIM
        share = config.audio_share_out
        self.blocks.extend(
            AudioMlp(dim_in, config, has_output=not share) for _ in range(self.depth)
        )
        if share:
            self.shared_fc2 = nn.Linear(config.audio_hidden, config.embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _mlp(self, i: int, x: Tensor) -> Tensor:
        y = self.blocks[i](x)
        return y if self.shared_fc2 is None else self.shared_fc2(y)

    def forward(self, audio_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return injections (N,B,C) and prompt source (B,C) of audio_embedding (B,128).

        The raw prompt source is the audio embedding (B,128).

            literal          e_1 = PE_1(F); e_i = PE_i(F + PE_{i-1}(F)); prompt = sum of e_i    (Eq. 2)
            literal_running  the same, but each block gets the running sum of e_1..e_i
            recursive        a_1 = PE_1(F); a_i = PE_i(F + a_{i-1}); prompt = a_N (last) or the sum
            independent      e_i = MLP_i(F), no residual                                (SAMA-AVS)
        """
        if self.mode == "off":
            return audio_embedding.new_zeros(0, *audio_embedding.shape), audio_embedding
        feature = (
            audio_embedding if self.in_proj is None else self.in_proj(audio_embedding)
        )  # (B,C)
        if self.mode == "independent":
            outputs = [self._mlp(i, feature) for i in range(self.depth)]
        elif self.mode == "recursive":
            outputs = [self._mlp(0, feature) + feature]
            for i in range(1, self.depth):
                step = feature + outputs[-1]
                outputs.append(self._mlp(i, step) + step)
        else:
            first = [self._mlp(i, feature) + feature for i in range(self.depth)]  # PE_i(F)
            outputs = [first[0]]
            for i in range(1, self.depth):
                step = feature + first[i - 1]
                outputs.append(self._mlp(i, step) + step)
        stacked = torch.stack(outputs)  # (N,B,C)
        prompt = {"raw": audio_embedding, "last": stacked[-1]}.get(self.source)
        if prompt is None:
            prompt = stacked.sum(dim=0)
        if self.mode == "literal_running":
            stacked = stacked.cumsum(dim=0)
        return stacked, prompt


class AudioPrompt(nn.Module):
    """Prompt MLP: converts the audio vector to a sparse prompt token of SAM's mask decoder."""

    def __init__(self, config: SaveConfig) -> None:
        super().__init__()
        dim_in = {"raw": AUDIO_DIM, "fused": PROMPT_DIM}.get(config.prompt_source, config.embed_dim)
        self.act: nn.Module = nn.ReLU() if config.prompt_act == "relu" else nn.GELU()
        self.scale = 1.0 / config.depth if config.prompt_scale == "1/N" else 1.0
        self.n_tokens = config.grid**2 if config.prompt_tokens == "hw" else 1
        self.layers = nn.ModuleList(
            [nn.Linear(dim_in, config.prompt_hidden), nn.Linear(config.prompt_hidden, PROMPT_DIM)]
        )

    def forward(self, source: Tensor) -> Tensor:
        """Map source (B,C) to sparse_prompt_embeddings (B,P,256), P = 1 or s*s equal tokens."""
        x = self.act(self.layers[0](source * self.scale))
        return self.layers[1](x)[:, None, :].expand(-1, self.n_tokens, -1)
