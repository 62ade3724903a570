"""Deploy forms of the audio modules: batched audio adapters, and a prompt MLP with folded scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from save_deploy.config import AUDIO_DIM
from save_deploy.export.merge.forms import REWRITES
from save_deploy.export.merge.proof import (
    RewriteProof,
    count_macs,
    count_parameters,
    in_double,
    relative_difference,
)
from save_deploy.model.adapters import AudioAdapters, AudioMlp, AudioPrompt


class DeployAudio(nn.Module):
    """Batched audio adapters: audio_embedding (B,128) -> injections (N,B,C), prompt source (B,C).

    Eq. 2 of the paper as printed needs 2N - 1 small MLPs in two levels. MLPs of one level are
    independent, so each of their linears is one batched product. audio_mode "recursive" cannot be
    batched: DeployModel keeps the eager module, and the proof lists "audio" as switched off.
    """

    def __init__(self, adapters: AudioAdapters) -> None:
        super().__init__()
        blocks: list[AudioMlp] = list(adapters.blocks)  # type: ignore[arg-type]
        self.mode, self.source, self.act = adapters.mode, adapters.source, blocks[0].act
        self.in_proj, self.shared_fc2 = adapters.in_proj, adapters.shared_fc2
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        layers = [[b.fc1, *b.hidden, *([b.fc2] if b.fc2 is not None else [])] for b in blocks]
        for level in zip(*layers, strict=True):
            weight = torch.stack([linear.weight.t() for linear in level])  # (N,in,out)
            bias = torch.stack([linear.bias for linear in level])[:, None]  # (N,1,out)
            self.weights.append(nn.Parameter(weight, requires_grad=False))
            self.biases.append(nn.Parameter(bias, requires_grad=False))

    def forward(self, audio_embedding: Tensor) -> tuple[Tensor, Tensor]:
        feature = audio_embedding if self.in_proj is None else self.in_proj(audio_embedding)
        first = self._mlps(feature[None])  # (N,B,C)
        if self.mode == "independent":
            injections = first
        else:
            first = first + feature
            previous = torch.cat([torch.zeros_like(first[:1]), first[:-1]])
            step = (
                feature + previous
            )  # (N,B,C); zeros stand for the predecessor of the first adapter
            injections = self._mlps(step) + step
        if self.source == "raw":
            prompt = audio_embedding
        else:
            prompt = injections[-1] if self.source == "last" else injections.sum(dim=0)
        if self.mode == "literal_running":
            injections = injections.cumsum(dim=0)
        return injections, prompt

    def _mlps(self, x: Tensor) -> Tensor:
        """Apply MLP i to row i: (1 or N,B,in) -> (N,B,C)."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if i < last or self.shared_fc2 is not None:
                x = self.act(x)
        return x if self.shared_fc2 is None else self.shared_fc2(x)


class DeployPrompt(nn.Module):
    """Prompt MLP with its 1/N scale folded into the first weight: (B,C) -> (B,P,256)."""

    def __init__(self, prompt: AudioPrompt) -> None:
        super().__init__()
        fc1: nn.Linear = prompt.layers[0]  # type: ignore[assignment]
        self.fc1_weight = nn.Parameter(fc1.weight * prompt.scale, requires_grad=False)
        self.fc1_bias, self.fc2, self.act = fc1.bias, prompt.layers[1], prompt.act
        self.n_tokens = prompt.n_tokens

    def forward(self, source: Tensor) -> Tensor:
        x = self.act(nn.functional.linear(source, self.fc1_weight, self.fc1_bias))
        x = self.fc2(x)[:, None, :]  # (B,1,256)
        return x if self.n_tokens == 1 else x.expand(-1, self.n_tokens, -1)


BATCHED_MODES = ("literal", "literal_running", "independent")  # values of audio_mode


def prove_audio(adapters: AudioAdapters, merged: DeployAudio) -> RewriteProof:
    """Compare all injections and the prompt source in float64, for two random audio embeddings."""
    eager = in_double(adapters)
    seeded = torch.Generator().manual_seed(0)
    audio = torch.randn(2, AUDIO_DIM, generator=seeded, dtype=torch.float64).abs()
    pairs = zip(eager(audio), DeployAudio(eager)(audio), strict=True)
    one = torch.empty(1, AUDIO_DIM)
    return RewriteProof(
        name="audio",
        folded=REWRITES["audio"],
        kept="the second level of Eq. 2 needs the first, so two products per linear remain",
        params_before=count_parameters([adapters]),
        params_after=count_parameters([merged]),
        macs_before=count_macs(adapters, one),
        macs_after=count_macs(merged, one),
        max_rel_diff=max(relative_difference(expected, got) for expected, got in pairs),
        compared="all injection vectors and the prompt source, two sounds",
    )
