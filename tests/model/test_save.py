"""The whole eager model: audio adapters by hand, batches, injection, the B^2 trap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from segment_anything.modeling.mask_decoder import MaskDecoder as SamMaskDecoder
from torch import nn

from save_deploy.config import SaveConfig
from save_deploy.errors import CheckpointError, SaveDeployError
from save_deploy.fields import Fields, parse_json
from save_deploy.model.adapters import AudioAdapters, ImageAdapter


def adapters(make, **changes) -> AudioAdapters:  # type: ignore[no-untyped-def]
    return make(**changes).audio_adapter.double()


def pe(module: AudioAdapters, i: int, x: torch.Tensor) -> torch.Tensor:
    block = module.blocks[i]
    return block.fc2(nn.functional.gelu(block.fc1(x))) + x


def test_literal_is_equation_2(tiny) -> None:  # type: ignore[no-untyped-def]
    """e_1 = PE_1(F), e_i = PE_i(F + PE_{i-1}(F)), prompt = e_1 + ... + e_N."""
    module = adapters(tiny)
    audio = torch.rand(2, 128, dtype=torch.float64)
    f = module.in_proj(audio)
    e = [pe(module, 0, f), pe(module, 1, f + pe(module, 0, f)), pe(module, 2, f + pe(module, 1, f))]
    injections, prompt = module(audio)
    torch.testing.assert_close(injections, torch.stack(e), rtol=0, atol=1e-12)
    torch.testing.assert_close(prompt, e[0] + e[1] + e[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "source", "injected", "prompt"),
    [
        ("literal", "sum", [1, 2, 2], 5),  # 2N - 1
        ("literal_running", "sum", [1, 3, 5], 5),
        ("recursive", "last", [1, 2, 3], 3),  # N
        ("recursive", "sum", [1, 2, 3], 6),  # N(N+1)/2
    ],
)
def test_coefficient_of_the_audio_feature(tiny, mode, source, injected, prompt) -> None:  # type: ignore[no-untyped-def]
    """SPEC 1.4 table: with the MLPs at zero, every output is a multiple of F."""
    module = adapters(tiny, audio_mode=mode, prompt_source=source)
    for block in module.blocks:
        block.fc2.weight.zero_()
        block.fc2.bias.zero_()
    audio = torch.rand(1, 128, dtype=torch.float64)
    f = module.in_proj(audio)
    got, token = module(audio)
    for vector, times in zip(got, injected, strict=True):
        torch.testing.assert_close(vector, times * f)
    torch.testing.assert_close(token, prompt * f)


@pytest.mark.parametrize(
    ("skip", "output"), [("input", "output"), ("none", "output_without_skip"), ("gated", "")]
)
def test_image_adapter_is_sam_med2ds(tiny, skip: str, output: str) -> None:  # type: ignore[no-untyped-def]
    """Inputs, weights and outputs of SAM-Med2D's own Adapter_Layer, run in float64. The twin: with
    the gated input added the outputs are others."""
    numbers = json.loads(Path(__file__).with_name("med2d_adapter.json").read_text())
    double = lambda values: torch.tensor(values, dtype=torch.float64)
    config = tiny(embed_dim=8).config.replace(image_adapter_skip=skip)
    adapter = ImageAdapter(config).double().requires_grad_(False)
    adapter.load_state_dict({key: double(value) for key, value in numbers["state"].items()})
    got = adapter(double(numbers["tokens"]))
    if output:
        torch.testing.assert_close(got, double(numbers[output]), rtol=0, atol=1e-5)
    else:
        assert (got - double(numbers["output"])).abs().max() > 0.1


def test_frames_do_not_see_each_other(tiny, inputs) -> None:  # type: ignore[no-untyped-def]
    """Three frames with three sounds equal three single calls (guards the B^2 trap)."""
    model = tiny()
    frames, log_mel = inputs(model, 3)
    with torch.inference_mode():
        together = model(frames, log_mel)
        alone = torch.cat([model(f[None], a[None]) for f, a in zip(frames, log_mel, strict=True)])
    assert together.shape == (3, 1, 64, 64)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_upstream_decoder_has_the_trap(tiny, inputs) -> None:  # type: ignore[no-untyped-def]
    """The twin: segment-anything's own predict_masks fails on the same batch."""
    model = tiny()
    model.mask_decoder.predict_masks = SamMaskDecoder.predict_masks.__get__(model.mask_decoder)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        model(*inputs(model, 3))


def test_sound_reaches_the_mask_by_both_ways(tiny, inputs) -> None:  # type: ignore[no-untyped-def]
    """Injection alone and prompt alone each change the mask; without both nothing does."""
    for changes, heard in [
        (dict(prompt_source="off"), True),
        (dict(audio_inject="none"), True),
        (dict(audio_inject="none", prompt_source="off"), False),
    ]:
        model = tiny(**changes)
        frames, log_mel = inputs(model, 1)
        with torch.inference_mode():
            a, b = model(frames, log_mel), model(frames, log_mel.flip(2))
        assert bool((a != b).any()) == heard


@pytest.mark.parametrize(
    "changes",
    [
        dict(audio_inject="before"),
        dict(
            audio_mode="independent", audio_in_proj=False, audio_share_out=True, prompt_source="off"
        ),
        dict(image_adapter_position="end"),
        dict(image_adapter_skip="gated"),
        dict(
            image_adapter_spatial="depthwise", image_adapter_skip="none", image_adapter_norm=False
        ),
        dict(image_adapter_down_kernel=5, image_adapter_up_kernel=2),
        dict(audio_layers=3, audio_act="relu"),
        dict(prompt_tokens="hw"),
        dict(prompt_scale="1/N"),
        dict(prompt_source="raw"),
        dict(image_adapter="off", audio_mode="off", audio_inject="none", prompt_source="off"),
    ],
)
def test_every_knob_changes_the_model(tiny, inputs, changes) -> None:  # type: ignore[no-untyped-def]
    """A1..A7: each alternative builds, runs, and is not the default in disguise."""
    model, default = tiny(**changes), tiny()
    frames, log_mel = inputs(model, 2)
    with torch.inference_mode():
        out, reference = model(frames, log_mel), default(frames, log_mel)
    assert torch.isfinite(out).all()
    assert (out - reference).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(res=100), "resolution"),
        (dict(audio_mode="off"), "audio_mode is off"),
        (dict(audio_in_proj=False), "projection"),
        (dict(audio_mode="sideways"), "audio_mode"),
        (dict(global_blocks=(9,)), "global block"),
        (dict(num_heads=5), "divide"),
        (dict(res=1 << 31), "^res out of range(.|\n)*2147483648(.|\n)*1 to 8192"),
        (dict(res=8192 + 32), "^res out of range"),
        (dict(res=0), "^res out of range"),
        (dict(depth=0), "^depth out of range"),
        (dict(depth=1 << 20), "^depth out of range"),
        (dict(embed_dim=0), "^embed_dim out of range"),
        (dict(num_heads=0), "^num_heads out of range"),
        (dict(embed_dim=1 << 30), "^embed_dim out of range"),
        (dict(window_size=1 << 20), "^window_size out of range"),
        (dict(audio_hidden=0), "^audio_hidden out of range"),
        (dict(prompt_hidden=1 << 30), "^prompt_hidden out of range"),
        (dict(audio_channels=(4, 4, 8, 8, 8, 0)), "^audio_channels out of range"),
        (dict(audio_channels=(4, 4, 8, 8, 8, 1 << 30)), "^audio_channels out of range"),
        (dict(global_blocks=(-1,)), "^global_blocks out of range"),
        (dict(image_adapter_start=-1), "^image_adapter_start out of range"),
        (dict(image_adapter_ratio=1e9), "^image_adapter_ratio out of range"),
        (dict(image_adapter_ratio=float("nan")), "^image_adapter_ratio out of range"),
        (dict(image_adapter_ratio=0.001), "image adapter without a channel"),
    ],
)
def test_bad_configurations_are_refused(tiny, changes, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SaveDeployError, match=message):
        tiny(**changes)


def test_config_round_trip(tiny) -> None:  # type: ignore[no-untyped-def]
    config = tiny().config
    assert SaveConfig.from_fields(parse_json(config.to_json(), "configuration")) == config


@pytest.mark.parametrize(
    ("said", "meant"), [(True, "gated"), (False, "none"), ("input", "input"), (None, "gated")]
)
def test_skip_in_files(tiny, said: bool | str | None, meant: str) -> None:  # type: ignore[no-untyped-def]
    """Files have said true or false; they keep their meaning, and are written as they were."""
    values = json.loads(tiny().config.to_json()) | {"image_adapter_skip": said}
    if said is None:
        del values["image_adapter_skip"]
    config = SaveConfig.from_fields(Fields(values, "c.json"))
    assert config.image_adapter_skip == meant
    assert config.to_dict()["image_adapter_skip"] == (True if said is None else said)
    assert tiny().config.image_adapter_skip == "input"  # of new models


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("novelty", 1),
        ("depth", 1 << 20),
        ("num_heads", 0),
        ("res", 256.0),
        ("res", True),
        ("image_adapter_ratio", "big"),
        ("image_adapter_skip", 1),
        ("audio_mode", "loud"),
        ("global_blocks", [1, "a"]),
        ("global_blocks", [-1]),
        ("depth", 256),
        ("audio_layers", 64),
        ("audio_channels", 64),
    ],
)
def test_config_from_a_file_is_checked(tiny, key: str, value: object) -> None:  # type: ignore[no-untyped-def]
    config = tiny().config
    values = json.loads(config.to_json()) | {key: value}
    with pytest.raises(CheckpointError, match=rf"^c\.json: (unknown key )?{key}"):
        SaveConfig.from_fields(Fields(values, "c.json", error=CheckpointError))


def test_config_from_a_file_must_make_sense(tiny) -> None:  # type: ignore[no-untyped-def]
    """What __post_init__ refuses is refused with the name of the file."""
    for change, said in (
        (dict(num_heads=7), "heads"),
        (dict(audio_channels=[1] * 100_000), "100000 audio_channels"),
        (dict(global_blocks=[0] * 100_000), "more global blocks"),
        (dict(image_adapter_up_kernel=1), "kernels"),
        (dict(name="a\x1b[31mb"), "invalid model name"),
    ):
        values = json.loads(tiny().config.to_json()) | change
        with pytest.raises(CheckpointError, match=rf"c\.json(.|\n)*{said}"):
            SaveConfig.from_fields(Fields(values, "c.json", error=CheckpointError))
