"""The calibration of a model: what the table holds, that it can be taken up again, what is refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from save_deploy.bundle import model_spec
from save_deploy.calibration.channels import Channels
from save_deploy.calibration.histogram import Histogram
from save_deploy.calibration.methods import METHODS
from save_deploy.calibration.pairs import Pairs
from save_deploy.calibration.select import Selection
from save_deploy.calibration.table import CalibrationTable
from save_deploy.errors import DataError, ExportError
from save_deploy.export.graph import save_graph
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.forms import forms_for
from save_deploy.export.quantize import calibrate as module
from save_deploy.export.quantize import find_sites
from save_deploy.export.quantize.calibrate import Storage, calibrate, model_entry
from save_deploy.export.quantize.plan import QuantPlan, quantize_graph, units_of
from save_deploy.export.quantize.smooth import apply_smoothing
from save_deploy.export.trace import graph_from_module
from save_deploy.metrics.margin import sqnr_db
from save_deploy.model.save import SaveModel
from save_deploy.runtime.eager import eager_pipeline
from save_deploy.runtime.session import OrtSession
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
    names = [p.name for p in find_sites(deployed(make_tiny()))]
    assert sorted(table.tensors) == sorted(names)
    for found in table.tensors.values():
        assert set(found.amax) == set(METHODS)
        assert all(0 < v <= found.amax["minmax"] for v in found.amax.values())
    assert table.data["pairs"] == table.data["batches"] == 6
    assert table.data["source"] == "of:s4"  # no path of the machine it was made on
    assert table.model == model_entry(make_tiny())


@pytest.mark.slow
def test_range_of_a_smoothed_tensor(tmp_path: Path) -> None:
    """Of all methods as in a histogram of the smoothed model's own values: the maximum exactly, the
    others, from sampled rows, nearly."""
    model = loud_model()
    found = calibrate(model, deployed(model), selection())
    assert "blocks.0.norm1" in found.smoothing
    deploy, exact = deployed(model), Histogram("exact")
    apply_smoothing(deploy, found.smoothing)
    deploy.blocks[0].norm1.register_forward_hook(lambda m, a, out: exact.add(out.numpy()))
    pairs, pipeline = selection().pairs, eager_pipeline(model)
    with torch.inference_mode():
        for image, waveform in zip(pairs.image, pairs.waveform, strict=True):
            deploy(torch.from_numpy(image[None]), torch.from_numpy(pipeline.embed(waveform)))
    name = "blocks.0.attn.qkv"
    assert found.amax(name) == pytest.approx(exact.amax("minmax"), rel=1e-5)
    for method in METHODS:
        assert found.amax(name, method) == pytest.approx(exact.amax(method), rel=0.04), method
    entry = found.to_dict()["tensors"]
    assert entry[name]["sampled"] is True and "sampled" not in entry["blocks.0.attn.proj"]
    assert entry[name]["histogram"]["max"] == pytest.approx(found.amax(name), rel=1e-4)
    found.write(tmp_path / "t.json")
    assert CalibrationTable.read(tmp_path / "t.json") == found
    assert not calibrate(model, deployed(model), selection(), smooth=False).smoothing


def test_channel_maxima_are_no_row() -> None:
    """Channels that are loud at different times: no row has all of their maxima. (Entropy follows
    how far a normal tail was sampled.)"""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(64, 600, 48)).astype(np.float32)
    channels, exact = Channels("x", n_pairs=64), Histogram("x")
    for part in values:
        channels.add(part)
        exact.add(part)
    found = module._rescaled("x", channels, np.ones(48, np.float32))
    assert found.amax["minmax"] == pytest.approx(exact.amax("minmax"), rel=1e-5)
    for method in ("percentile", "mse"):
        assert found.amax[method] == pytest.approx(exact.amax(method), rel=0.05), method


@pytest.mark.thorough
@pytest.mark.parametrize("smooth", [True, False])
def test_smoothing_saves_a_model_with_loud_channels(tmp_path: Path, smooth: bool) -> None:
    """Logits of the quantized graph against eager: 20 dB and more between with and without."""
    model = loud_model()
    found = calibrate(model, deployed(model), selection(), smooth=smooth)
    deploy = deployed(model)
    apply_smoothing(deploy, found.smoothing)
    image = torch.from_numpy(selection(seed=1).pairs.image[:1])
    sound = torch.rand(1, 128, generator=torch.Generator().manual_seed(1))
    names = [s.name for s in model_spec(model.config).inputs]
    graph = graph_from_module(deploy, (image, sound), inputs=names, output="mask_logits")
    plan = QuantPlan("int8", found, find_sites(deploy), "minmax")
    assert len(quantize_graph(graph, plan)) == 9 * model.config.depth
    save_graph(graph, tmp_path / "m.onnx")
    with torch.inference_mode():
        expected = model.forward_embedding(image, sound).numpy()
    with OrtSession(tmp_path / "m.onnx", model_spec(model.config)) as session:
        feeds = {"image": image.numpy(), "audio_embedding": sound.numpy()}
        got = session.infer(feeds)["mask_logits"]
    db = sqnr_db(expected - expected.mean(), got - expected.mean())
    assert db > 33 if smooth else db < 30


@pytest.mark.thorough
def test_float_units_stay_float(table: CalibrationTable) -> None:
    deploy = deployed(make_tiny())
    image, sound = torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, 128)
    names = [s.name for s in model_spec(deploy.config).inputs]
    graph = graph_from_module(deploy, (image, sound), inputs=names, output="mask_logits")
    products = find_sites(deploy)
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
    centered = rows - rows.mean(0)
    assert not module._bias_helps(centered, weight, np.zeros(32), float(np.abs(centered).max()))


@pytest.mark.slow
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
        calibrate(model, deployed(model), selection(), storage=Storage(state=state), on_pair=stop)
    assert state.is_file()
    rest: list[int] = []
    found = calibrate(model, deployed(model), selection(), storage=Storage(state=state),
                      on_pair=lambda text="", n=1: rest.append(n))  # fmt: skip
    assert rest == [3, 1, 1, 1] and found.to_dict() == whole.to_dict()
    assert not state.exists()
    other = calibrate(model, deployed(model), selection(seed=3), storage=Storage(state=state))
    assert other.to_dict() != whole.to_dict()


def test_the_state_of_another_version_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Saver, "__call__", _save_always)
    model, state = make_tiny(), tmp_path / "a.npz"
    resumed: list[list[int]] = []

    def run(stop: bool) -> None:
        numbers: list[int] = []
        resumed.append(numbers)

        def on_pair(text: str = "", n: int = 1) -> None:
            numbers.append(n)
            if stop:
                raise KeyboardInterrupt

        calibrate(
            model, deployed(model), selection(), storage=Storage(state=state), on_pair=on_pair
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop=True)
    kept = state.read_bytes()
    run(stop=False)
    state.write_bytes(kept)
    monkeypatch.setattr(module, "version", lambda package: "0.0.1")
    run(stop=False)
    assert resumed == [[1], [1] * 6, [1] * 6]  # the second begins with the pair that was seen


def test_sounds_of_finished_pairs_are_not_embedded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[np.ndarray] = []

    class Pipeline:
        def embed(self, waveform: np.ndarray) -> np.ndarray:
            embedded.append(waveform)
            return np.zeros((1, 128), np.float32)

    monkeypatch.setattr(module, "eager_pipeline", lambda model: Pipeline())
    chosen = selection()
    rest = list(module._inputs(make_tiny(), chosen, 4))
    assert len(rest) == 2 and (rest[0][0].numpy() == chosen.pairs.image[4]).all()
    assert np.array_equal(embedded, chosen.pairs.waveform[4:])


@pytest.mark.parametrize("fault", ["folder", "disk"])
def test_a_state_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """A read-only cache or a full disk: the same table without a state, and one warning."""
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    model, state = make_tiny(), tmp_path / "cache" / "a.npz"
    if fault == "folder":
        (tmp_path / "cache").write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(np, "savez", _full_disk)
    found = calibrate(model, deployed(model), selection(), storage=Storage(state=state))
    assert found.data["pairs"] == 6
    said = capsys.readouterr().err
    assert said.count("cannot be resumed after an interrupt") == 1
    assert fault == "folder" or not list((tmp_path / "cache").iterdir())


def _full_disk(file: Any, **arrays: Any) -> None:
    file.write(b"PK")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_range_no_scale_holds_is_named() -> None:
    model = make_tiny()
    with torch.no_grad():
        model.image_encoder.blocks[1].norm1.weight *= 1e8
    with pytest.raises(ExportError, match=r"blocks\.1\.attn\.qkv is too large for INT8"):
        calibrate(model, deployed(model), selection(n=1))


@pytest.mark.slow
def test_a_finished_table_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To its last digit, of the same model, pairs, method and smoothing only; a damaged one is."""
    model = make_tiny()
    passes: list[int] = []
    observe = module.observe
    monkeypatch.setattr(
        module, "observe", lambda *args, **named: (passes.append(1), observe(*args, **named))
    )
    told: list[str] = []

    def run(**options: object) -> CalibrationTable:
        return calibrate(model, deployed(model), selection(), storage=Storage(kept=tmp_path / "kept"),
                         on_pair=lambda text="", n=1: told.append(text), **options)  # type: ignore[arg-type]  # fmt: skip

    first = run()
    assert (len(passes), set(told)) == (1, {""})
    assert run().sha256 == first.sha256 and len(passes) == 1
    assert told[-1] == "measured by an earlier run"
    assert run(method="mse").method == "mse" and len(passes) == 2
    run(smooth=False)
    assert len(passes) == 3 and len(list((tmp_path / "kept").iterdir())) == 3
    for file in (tmp_path / "kept").iterdir():
        file.write_text("{ not json")
    assert run().sha256 == first.sha256 and len(passes) == 4


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
