"""Each rewrite equals the eager part in float64; a wrong rewrite differs from it."""

from __future__ import annotations

import json

import pytest
import torch

from save_deploy.config import SaveConfig
from save_deploy.errors import SaveDeployError
from save_deploy.export.merge.adapter import DeployAdapter
from save_deploy.export.merge.attention import DeployAttention
from save_deploy.export.merge.audio import DeployAudio
from save_deploy.export.merge.block import DeployBlock
from save_deploy.export.merge.decoder import DeployHead, EagerHead
from save_deploy.export.merge.deploy import DeployModel, merge
from save_deploy.export.merge.forms import REWRITES, Forms, forms_for
from save_deploy.export.merge.product import MatMul
from save_deploy.export.merge.proof import in_double, relative_difference
from save_deploy.model.image_encoder import Block
from save_deploy.model.save import SaveModel
from tests.conftest import TINY, randomise

SYSTEMS = {
    "default": {},
    "inject before": dict(audio_inject="before"),
    "running sum": dict(audio_mode="literal_running"),
    "recursive": dict(audio_mode="recursive", prompt_source="last"),
    "three layers": dict(audio_layers=3),
    "scaled prompt": dict(prompt_scale="1/N"),
    "prompt on every token": dict(prompt_tokens="hw"),
    "adapter at the end": dict(image_adapter_position="end"),
    "gated skip": dict(image_adapter_skip="gated"),
    "no skip": dict(image_adapter_skip="none"),
    "SAVE(*)": dict(image_adapter="off"),
    "SAMA-AVS": dict(
        audio_mode="independent", audio_in_proj=False, audio_share_out=True,
        audio_inject="before", image_adapter="off", prompt_source="off",
    ),
    "AP-SAM": dict(audio_mode="off", audio_inject="none", image_adapter="off", prompt_source="raw"),
    "SAM": dict(audio_mode="off", audio_inject="none", image_adapter="off", prompt_source="off"),
    "GAVS": dict(
        audio_mode="off", audio_inject="none", image_adapter="bottleneck", image_adapter_start=1,
        decoder_adapter="bottleneck", prompt_source="raw", prompt_act="relu", prompt_hidden=40,
    ),
    "AV-SAM": dict(
        audio_mode="off", audio_inject="none", image_adapter="off", prompt_source="fused",
        post_fusion="add",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("forms", [Forms(), forms_for("tensorrt")], ids=["default", "tensorrt"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_deploy_equals_eager(tiny, inputs, name: str, forms: Forms) -> None:  # type: ignore[no-untyped-def]
    """Mask logits of the whole model in float32, two frames: within 1e-4 of the range of logits.

    The twin: another sound gives other logits, but for SAM, which hears nothing.
    """
    model = tiny(**SYSTEMS[name])
    deploy, proof = merge(model, forms)
    frames, log_mel = inputs(model, 2)
    with torch.inference_mode():
        audio = model.audio_encoder(log_mel)
        expected = model(frames, log_mel)
        got, other = deploy(frames, audio), deploy(frames, audio + 1)
    assert proof.exact, proof
    spread = expected.max() - expected.min()
    assert (got - expected).abs().max() <= 1e-4 * spread
    assert ((other - got).abs().max() > 1e-3 * spread) == (name != "SAM")


ALL_FORMS = {
    "portable": forms_for("portable"),
    "portable 1024": forms_for("portable", res=1024),
    "portable 1024 matmul": forms_for("portable", res=1024).quantizable(),
    "tensorrt": forms_for("tensorrt"),
    "tensorrt 1024": forms_for("tensorrt", res=1024),
    "matmul": Forms(windows="real_queries", adapter="matmul"),
    "tensorrt matmul": forms_for("tensorrt").quantizable(),
    "joined alone": Forms(joined=True).without("windows", "scale", "rel_pos"),
    "joined rel_pos alone": Forms(joined=True).without("windows", "scale"),
    "for INT8": Forms(windows="real_queries").quantizable(),
    "late pad for INT8": Forms().quantizable(),
    "windows off for INT8": Forms().quantizable().without("windows"),
    "rel_pos in q and k": Forms(rel_pos="fold_global"),
    "joined real queries": Forms(windows="real_queries", joined=True),
    "late pad alone": Forms(windows="late_pad").without("scale", "rel_pos"),
    "real queries alone": Forms(windows="real_queries").without("scale", "rel_pos"),
    "scale alone": Forms().without("windows", "rel_pos"),
    "rel_pos alone": Forms().without("windows", "scale"),
    "rel_pos in q and k alone": Forms(rel_pos="fold_global").without("windows", "scale"),
    "strips alone": Forms(rel_pos="strips").without("windows", "scale"),
    "joined strips": Forms(rel_pos="strips", joined=True),
    "nothing": Forms().without("windows", "scale", "rel_pos"),
}


@pytest.mark.parametrize("forms", ALL_FORMS.values(), ids=ALL_FORMS)
@pytest.mark.parametrize("res", [224, 256])
@pytest.mark.parametrize("window", [14, 0])
def test_block_in_float64(res: int, window: int, forms: Forms) -> None:
    """Windows of 14 and global attention on 14x14 and 16x16 grids, two frames."""
    block = double_block(res, window)
    x = torch.randn(2, res // 16, res // 16, 32, dtype=torch.float64)
    with torch.inference_mode():
        got = DeployBlock(block, res // 16, forms)(x)
        torch.testing.assert_close(got, block(x), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("forms", ["portable", "portable 1024", "tensorrt 1024", "matmul"])
@pytest.mark.parametrize("window", [14, 0])
def test_block_at_1024_in_float64(window: int, forms: str) -> None:
    block = double_block(1024, window)
    x = torch.randn(1, 64, 64, 32, dtype=torch.float64)
    with torch.inference_mode():
        got = DeployBlock(block, 64, ALL_FORMS[forms])(x)
        torch.testing.assert_close(got, block(x), rtol=0, atol=1e-9)


ADAPTERS = {
    "off": Forms(),
    "tokens": Forms(adapter="tokens"),
    "matmul": Forms(adapter="matmul"),
    "matmul joined": Forms(adapter="matmul", joined=True),
    "winograd": Forms(adapter="winograd"),
}


@pytest.mark.parametrize("forms", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("skip", ["input", "gated", "none"])
def test_skip_of_the_adapter_in_every_form(skip: str, forms: Forms) -> None:
    """In float64; the twin: with another skip it is another function."""
    block = double_block(256, 14, image_adapter_skip=skip)
    deploy, x = DeployBlock(block, 16, forms), torch.randn(1, 16, 16, 32, dtype=torch.float64)
    with torch.inference_mode():
        expected = block(x)
        torch.testing.assert_close(deploy(x), expected, rtol=0, atol=1e-9)
        for other in {"input", "gated", "none"} - {skip}:
            deploy.adapter.skip = other
            assert (deploy(x) - expected).abs().max() > 1e-3


def double_block(res: int, window: int, **changes: str) -> Block:
    torch.manual_seed(0)
    config = SaveConfig(**{**TINY, "res": res, "window_size": window or 14, **changes})
    block = Block(config, 0 if window else 2)
    return randomise(block).double().eval()


@pytest.mark.parametrize(
    "breakage",
    [
        "padded keys masked",
        "swapped axes",
        "bias of q lost",
        "bias of v lost",
        "no scale",
        "wrong tap",
    ],
)
@pytest.mark.parametrize("windows", ["late_pad", "real_queries", "for INT8", "joined"])
def test_a_wrong_rewrite_is_caught(breakage: str, windows: str) -> None:
    """The twin of test_block_in_float64: each common mistake is far above the tolerance."""
    block = double_block(256, 14)
    forms = {
        "joined": Forms(adapter="matmul", joined=True),
        "for INT8": Forms(windows="real_queries").quantizable(),
    }.get(windows) or Forms(windows=windows, adapter="matmul")
    deploy = DeployBlock(block, 16, forms)
    attn: DeployAttention = deploy.attn
    if breakage == "padded keys masked":
        attend = attn._attend
        attn._attend = lambda q, k, v, *size: attend(q, without_padding(k), v, *size)
    elif breakage == "swapped axes":
        if attn.joined:
            attn.rel_both.data = attn.rel_both.data.roll(14, dims=0)
        else:
            attn.rel_h, attn.rel_w = attn.rel_w, attn.rel_h
    elif breakage == "bias of q lost":
        (attn.qkv_bias if attn.joined else attn.q_bias).data.zero_()
    elif breakage == "bias of v lost":
        attn.proj.bias = block.attn.proj.bias
    elif breakage == "no scale":
        q = attn.qkv if isinstance(attn.qkv, MatMul) else attn.qkv.products[0]
        q.weight.data[:32] /= 16**-0.5
    else:
        assert isinstance(deploy.adapter, DeployAdapter)
        deploy.adapter.up.index_0 = deploy.adapter.up.index_0.roll(1)
    x = torch.randn(1, 16, 16, 32, dtype=torch.float64)
    with torch.inference_mode():
        assert (deploy(x) - block(x)).abs().max() > 1e-3


@pytest.mark.parametrize("breakage", ["parities swapped", "skip lost", "gate open"])
def test_a_wrong_adapter_is_caught(breakage: str, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The twin for the other forms of the adapter: joined MatMuls, and convolutions on tokens."""
    block = double_block(256, 14)
    matmul = breakage == "parities swapped"
    forms = Forms(adapter="matmul" if matmul else "tokens", joined=True)
    deploy, x = DeployBlock(block, 16, forms), torch.randn(1, 16, 16, 32, dtype=torch.float64)
    difference = lambda: float((deploy(x) - block(x)).abs().max())
    with torch.inference_mode():
        assert difference() <= 1e-9
        if matmul:
            cut = DeployAdapter._parities
            monkeypatch.setattr(DeployAdapter, "_parities", lambda self, y: cut(self, y)[::-1])
        elif breakage == "skip lost":
            deploy.adapter.skip = "none"
        else:
            deploy.adapter.channel = deploy.adapter.channel[:-1]  # no sigmoid
        assert difference() > 1e-3


JOINED_DECODER = {
    "nothing": lambda t: None,
    "image positions": lambda t: t.layers[0].table.data.zero_(),
    "last image positions": lambda t: t.final_table.data.zero_(),
    "query of another row": lambda t: setattr(t, "row", 0),
    "token positions": lambda t: t.token_products.weight.data[768:].zero_(),
    "biases": lambda t: t.token_products.bias.data[768:].zero_(),
    "shares moved": lambda t: t.token_products.weight.data.copy_(
        t.token_products.weight.data.roll(128, dims=0)
    ),
    "k and v": lambda t: t.layers[1].token_kv.weight.data.copy_(
        t.layers[1].token_kv.weight.data.roll(128, dims=0)
    ),
}


@pytest.mark.parametrize("breakage", JOINED_DECODER)
def test_joined_decoder_in_float64(tiny, breakage: str) -> None:  # type: ignore[no-untyped-def]
    """Neck and decoder with joined products equal the eager ones; with one mistake they do not."""
    model = tiny()
    head = in_double(EagerHead(model))
    merged = DeployHead(head, joined=True)
    JOINED_DECODER[breakage](merged.decoder.transformer)
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 32, 4, 4), (2, 32), (2, 128))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    with torch.inference_mode():
        difference = relative_difference(head(*inputs), merged(*inputs))
    assert difference <= 1e-9 if breakage == "nothing" else difference > 1e-5


@pytest.mark.parametrize("target", ["portable", "onnxruntime", "openvino"])
def test_cpu_targets_join_nothing(target: str) -> None:
    """The fastest forms on CPUs (docs/benchmarks.md): separate products, the eager adapter.

    At 1024 px strips, for ONNX Runtime alone also Winograd. TensorRT has neither, nor has what is
    quantized Winograd.
    """
    for res in (224, 256, 1024):
        forms = forms_for(target, res=res)
        adapter = "winograd" if target == "onnxruntime" else "off"
        wide = dict(rel_pos="strips", adapter=adapter) if res == 1024 else {}
        assert forms == Forms(windows="real_queries", **wide) and not forms.joined
        assert forms.quantizable().adapter == "matmul" and not forms.quantizable().separate_qkv
        engine = forms_for("tensorrt", res=res)
        assert engine.rel_pos != "strips" and engine.adapter == "tokens"


def without_padding(k: torch.Tensor) -> torch.Tensor:
    """k with -1000 in the keys of padded tokens, which are zero: no query attends to them."""
    return k.masked_fill((k == 0).all(dim=-1, keepdim=True), -1e3)


def test_a_rewrite_can_be_switched_off() -> None:
    forms = forms_for("portable")
    assert forms.without("windows", "audio").windows == "off"
    assert forms.without("windows", "audio").audio is False
    with pytest.raises(SaveDeployError, match=r"unknown rewrite(.|\n)*windows"):
        forms.without("magic")
    with pytest.raises(SaveDeployError, match=r"unknown target(.|\n)*openvino"):
        forms_for("abacus")


@pytest.mark.slow
@pytest.mark.parametrize("name", REWRITES)
def test_any_rewrite_off_still_equals_eager(tiny, inputs, name: str) -> None:  # type: ignore[no-untyped-def]
    """A rewrite that is switched off has no proof, and the masks stay the same."""
    model = tiny()
    forms = Forms(windows="real_queries", adapter="matmul").without(name)
    deploy, proof = merge(model, forms)
    assert name in proof.switched_off and name not in {r.name for r in proof.rewrites}
    frames, log_mel = inputs(model, 2)
    with torch.inference_mode():
        expected = model(frames, log_mel)
        got = deploy(frames, model.audio_encoder(log_mel))
    assert proof.exact
    assert (got - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())


@pytest.mark.slow
def test_proof_says_what_is_not_exact(tiny, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The proof itself catches a wrong rewrite, and names it."""
    original = DeployAudio.forward

    def shifted(self, audio):  # type: ignore[no-untyped-def]
        injections, prompt = original(self, audio)
        return injections.roll(1, dims=0), prompt

    monkeypatch.setattr(DeployAudio, "forward", shifted)
    _, proof = merge(tiny())
    assert not proof.exact
    assert [r.name for r in proof.rewrites if not r.exact] == ["audio"]


@pytest.mark.slow
def test_nan_is_not_exact() -> None:
    """max(0.0, nan) is 0.0: a rewrite that gives NaN would be exact."""
    whole = torch.ones(2)
    assert relative_difference(whole, whole) == 0
    assert relative_difference(whole, torch.tensor([1.0, float("nan")])) == float("inf")


def test_proof_counts(tiny) -> None:  # type: ignore[no-untyped-def]
    """Parameters and multiplications of each rewrite, against counts by hand.

    A 4x4 grid with windows of 3 is padded to 6x6: late_pad saves 36 - 16 = 20 tokens in the linears.
    """
    model = tiny()
    _, proof = merge(model, Forms(windows="late_pad"))
    rows = {r.name: r for r in proof.rewrites}
    assert set(rows) == {"normalise", "windows", "scale", "rel_pos", "decoder", "audio"}
    assert proof.switched_off == ("adapter",)
    assert rows["audio"].params_before == rows["audio"].params_after
    assert rows["decoder"].params_after < rows["decoder"].params_before
    assert len(proof.blocks) == 3 and "alone in blocks 0 and 2" in rows["windows"].compared
    saved = rows["windows"].macs_before - rows["windows"].macs_after
    # two windowed blocks; qkv is 32 -> 96, proj 32 -> 32
    assert saved == 2 * 20 * 32 * (96 + 32)
    assert proof.macs_before > proof.macs_after > 0


@pytest.mark.slow
def test_proof_is_json(tiny) -> None:  # type: ignore[no-untyped-def]
    _, proof = merge(tiny())
    stored = json.loads(json.dumps(proof.to_dict()))
    assert stored["exact"] is True and len(stored["blocks"]) == 3


def test_a_grid_smaller_than_a_window() -> None:
    """10 x 10 tokens in a window of 14: one part, whose keys are padded on two sides."""
    block = double_block(160, 14)
    x = torch.randn(2, 10, 10, 32, dtype=torch.float64)
    with torch.inference_mode():
        for forms in ALL_FORMS.values():
            got = DeployBlock(block, 10, forms)(x)
            torch.testing.assert_close(got, block(x), rtol=0, atol=1e-9)


def test_unchanged_weights_are_shared(tiny) -> None:  # type: ignore[no-untyped-def]
    model: SaveModel = tiny()
    for forms in (forms_for("portable"), forms_for("tensorrt")):
        mine, theirs = DeployModel(model, forms).blocks[0], model.image_encoder.blocks[0]
        assert mine.attn.proj.weight is theirs.attn.proj.weight
        if forms.separate_qkv:  # q is scaled
            k, v = (product.weight for product in mine.attn.qkv.products[1:])
            start, size = theirs.attn.qkv.weight.data_ptr(), k.nbytes
            assert (k.data_ptr(), v.data_ptr()) == (start + size, start + 2 * size)
    deploy = DeployModel(model, forms_for("tensorrt"))
    convolution = deploy.blocks[0].adapter.spatial[0].weight
    assert convolution is model.image_encoder.blocks[0].adapter.spatial[0].weight
    deploy = DeployModel(model)
    mine, theirs = deploy.blocks[0].adapter, model.image_encoder.blocks[0].adapter
    assert mine is theirs
    assert deploy.blocks[0].mlp.lin1.weight is model.image_encoder.blocks[0].mlp.lin1.weight
