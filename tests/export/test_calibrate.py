"""The calibration of a model: what the table holds, that it can be taken up again, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from save_deploy.calibration.histogram import METHODS
from save_deploy.calibration.pairs import Pairs
from save_deploy.calibration.select import Selection
from save_deploy.calibration.table import CalibrationTable
from save_deploy.errors import DataError
from save_deploy.export.merge import DeployModel, forms_for
from save_deploy.export.onnx_export import graph_from_module
from save_deploy.export.quantize import calibrate as module
from save_deploy.export.quantize import find_products
from save_deploy.export.quantize.calibrate import calibrate, model_entry
from save_deploy.export.quantize.plan import QuantPlan, quantize_graph, units_of
from save_deploy.export.quantize.smooth import apply_smoothing
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.specs import model_spec
from tests.conftest import make_tiny

FORMS = forms_for("portable").quantizable()


def selection(n: int = 6, seed: int = 0) -> Selection:
    rng = np.random.default_rng(seed)
    pairs = Pairs(
        rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8),
        rng.normal(0, 0.2, (n, 16000)).astype(np.float32),
        np.zeros((n, 64, 64), bool),
        tuple(f"clip{i}_1" for i in range(n)),
    )
    return Selection(pairs, "folder/of:s4", "train", {"loudness": {"loud": n}}, ("category",))


def deployed(model: SaveModel) -> DeployModel:
    return DeployModel(model, FORMS).eval().requires_grad_(False)


def loud_model() -> SaveModel:
    """The tiny model with three channels of every norm 40 times louder, and what reads them quieter:
    the same function, hard to quantize. Not its adapters: nothing is read from a loud channel there."""
    model = make_tiny(image_adapter_position="end")
    with torch.no_grad():
        for block in model.image_encoder.blocks:
            for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.lin1)):
                norm.weight[:3] *= 40
                norm.bias[:3] *= 40
                linear.weight[:, :3] /= 40
    return model


@pytest.fixture(scope="module")
def table() -> CalibrationTable:
    model = make_tiny()
    return calibrate(model, deployed(model), selection())


def test_every_product_has_a_range(table: CalibrationTable) -> None:
    names = [p.name for p in find_products(deployed(make_tiny()))]
    assert sorted(table.tensors) == sorted(names)
    for found in table.tensors.values():
        assert set(found.amax) == set(METHODS)
        assert all(0 < v <= found.amax["minmax"] for v in found.amax.values())
    assert table.data["pairs"] == table.data["batches"] == 6
    assert table.data["source"] == "of:s4"  # no path of the machine it was made on
    assert table.model == model_entry(make_tiny())


def test_range_of_a_smoothed_tensor(table: CalibrationTable) -> None:
    """Equals the maximum of the smoothed model's own values."""
    model = loud_model()
    found = calibrate(model, deployed(model), selection())
    assert "blocks.0.norm1" in found.smoothing
    deploy = deployed(model)
    apply_smoothing(deploy, found.smoothing)
    seen: list[float] = []
    deploy.blocks[0].norm1.register_forward_hook(lambda m, a, out: seen.append(out.abs().max()))
    pairs, pipeline = selection().pairs, eager_pipeline(model)
    with torch.inference_mode():
        for image, waveform in zip(pairs.image, pairs.waveform, strict=True):
            deploy(torch.from_numpy(image[None]), torch.from_numpy(pipeline.embed(waveform)))
    assert found.amax("blocks.0.attn.qkv") == pytest.approx(float(max(seen)), rel=1e-5)
    assert not calibrate(model, deployed(model), selection(), smooth=False).smoothing


@pytest.mark.parametrize("smooth", [True, False])
def test_smoothing_saves_a_model_with_loud_channels(tmp_path: Path, smooth: bool) -> None:
    """Logits of the quantized graph against eager: 20 dB and more between with and without."""
    import onnxruntime as ort

    from save_deploy.export.onnx_export import save_graph
    from save_deploy.metrics.margin import sqnr_db

    model = loud_model()
    found = calibrate(model, deployed(model), selection(), smooth=smooth)
    deploy = deployed(model)
    apply_smoothing(deploy, found.smoothing)
    image = torch.from_numpy(selection(seed=1).pairs.image[:1])
    sound = torch.rand(1, 128, generator=torch.Generator().manual_seed(1))
    names = [s.name for s in model_spec(model.config).inputs]
    graph = graph_from_module(deploy, (image, sound), inputs=names, output="mask_logits")
    plan = QuantPlan("int8", found, find_products(deploy), "minmax")
    assert len(quantize_graph(graph, plan)) == 9 * model.config.depth
    save_graph(graph, tmp_path / "m.onnx")
    with torch.inference_mode():
        expected = model.forward_embedding(image, sound).numpy()
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {"image": image.numpy(), "audio_embedding": sound.numpy()})[0]
    db = sqnr_db(expected - expected.mean(), got - expected.mean())
    assert db > 33 if smooth else db < 30


def test_float_units_stay_float(table: CalibrationTable) -> None:
    deploy = deployed(make_tiny())
    image, sound = torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, 128)
    names = [s.name for s in model_spec(deploy.config).inputs]
    graph = graph_from_module(deploy, (image, sound), inputs=names, output="mask_logits")
    products = find_products(deploy)
    floats = ("blocks.1.mlp", "blocks.2.adapter")
    assert set(floats) < set(units_of(products))
    nodes = quantize_graph(graph, QuantPlan("int8", table, products, "minmax", floats))
    assert not [n for n in nodes if n.startswith(floats)]
    assert len(nodes) == 9 * deploy.config.depth - 2 - 5


def test_bias_correction_takes_the_mean_error_away() -> None:
    """A layer whose input is far from zero: corrected, its outputs are right on average."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(400, 32)) * 0.05 + 3).astype(np.float32)
    weight = rng.normal(size=(32, 16)).astype(np.float32)
    amax = float(np.abs(rows).max())
    assert module._bias_helps(rows, weight, rows.mean(0, dtype=np.float64), amax)
    centred = rows - rows.mean(0)
    assert not module._bias_helps(centred, weight, np.zeros(32), float(np.abs(centred).max()))


def test_interrupted_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(module._Saver, "__call__", _save_always)
    model, state = make_tiny(), tmp_path / "state" / "a.npz"
    whole = calibrate(model, deployed(model), selection())
    done: list[int] = []

    def stop(text: str = "", n: int = 1) -> None:
        done.append(n)
        if sum(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, deployed(model), selection(), state=state, on_pair=stop)
    assert state.is_file()
    rest: list[int] = []
    found = calibrate(model, deployed(model), selection(), state=state,
                      on_pair=lambda text="", n=1: rest.append(n))  # fmt: skip
    assert rest == [3, 1, 1, 1] and found.to_dict() == whole.to_dict()
    assert not state.exists()
    other = calibrate(model, deployed(model), selection(seed=3), state=state)
    assert other.to_dict() != whole.to_dict()


def _save_always(self: module._Saver) -> None:
    if self.path is not None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.observer.save(self.path, self.key)


def test_weights_make_another_model() -> None:
    model, other = make_tiny(), make_tiny()
    assert model_entry(model) == model_entry(other)
    with torch.no_grad():
        other.image_encoder.blocks[0].norm1.bias[0] += 1e-6
    assert model_entry(model)["sha256"] != model_entry(other)["sha256"]


def test_a_dead_product_is_named() -> None:
    model = make_tiny()
    with torch.no_grad():
        for block in model.image_encoder.blocks:
            block.norm1.weight.zero_()
            block.norm1.bias.zero_()
    with pytest.raises(DataError, match=r"blocks\.0\.attn\.qkv was zero"):
        calibrate(model, deployed(model), selection())
