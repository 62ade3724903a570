"""A bundle with several fixed batches: which graph runs how many frames, and with what result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from save_deploy.bundle import GraphSpec, Manifest, model_spec
from save_deploy.errors import BackendError, BundleError, ParityError
from save_deploy.runtime.batches import batch_plan, every_slot
from save_deploy.runtime.lanes import open_lanes
from save_deploy.runtime.pipeline import SavePipeline, load
from save_deploy.runtime.self_test import golden_parity
from save_deploy.runtime.session import Session, available_backends
from save_deploy.runtime.session.base import LazySession
from save_deploy.runtime.verify import verify_bundle
from tests.command import run
from tests.conftest import make_tiny
from tests.runtime.cpp import infer
from tests.runtime.films import masks_in, tone, write_film


@pytest.mark.parametrize(
    ("n", "batches", "plan"),
    [
        (1, (1,), [1]),
        (3, (1,), [1, 1, 1]),
        (7, (5,), [5, 5]),  # the last call is padded
        (45, (1, 8, 32), [32, 8, 1, 1, 1, 1, 1]),
        (64, (1, 8, 32), [32, 32]),
        (7, (1, 8, 32), [1] * 7),
        (7, (32, 1, 8), [1] * 7),  # in any order
        (3, (4, 8), [4]),
        (13, (4, 8), [8, 4, 4]),
        (12, (4, 8), [8, 4]),
    ],
)
def test_plan(n: int, batches: tuple[int, ...], plan: list[int]) -> None:
    assert batch_plan(n, batches) == plan


def test_plans_hold_every_frame_once() -> None:
    for n in range(1, 70):
        for batches in ((1, 8, 32), (3, 7), (5,)):
            plan = batch_plan(n, batches)
            assert sum(plan[:-1]) < n <= sum(plan) < n + min(batches)
            assert plan == sorted(plan, reverse=True)


def test_every_slot() -> None:
    assert every_slot(3, 4).tolist() == [0, 1, 2, 0]
    assert every_slot(5, 2).tolist() == [0, 1, 2, 3, 4, 0]


class Counting:
    """A session that counts its calls; the logits of a frame are its first value."""

    backend = "none"

    def __init__(self, spec: GraphSpec) -> None:
        self.spec, self.calls, self.is_open = spec, 0, True

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.spec.check_inputs(inputs)
        assert self.is_open
        self.calls += 1
        first = (
            inputs["image"][:, :1, :1, :1].astype(np.float32)
            + inputs["audio_embedding"][:, :1, None, None]
        )
        return {"mask_logits": np.broadcast_to(first, self.spec.outputs[0].shape)}

    def close(self) -> None:
        self.is_open = False

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_frames_keep_their_order_in_every_graph() -> None:
    config, opened = make_tiny().config, list[Counting]()

    def opener() -> Session:
        opened.append(Counting(model_spec(config, 4)))
        return opened[-1]

    one = Counting(model_spec(config))
    four = LazySession("none", model_spec(config, 4), opener)
    pipeline = SavePipeline(
        config=config, precision="fp32", audio=one, model=one, further={4: four}
    )
    images = (
        np.zeros((11, 64, 64, 3), np.uint8) + np.arange(11, dtype=np.uint8)[:, None, None, None]
    )
    sounds = np.arange(11, dtype=np.float32)[:, None].repeat(128, axis=1)
    assert pipeline.run(images[:3], sounds[:3])[:, 5, 5].tolist() == [0, 2, 4]
    assert opened == [] and one.calls == 3
    assert pipeline.run(images, sounds)[:, 5, 5].tolist() == list(range(0, 22, 2))
    pipeline.run(images, sounds)
    assert (len(opened), opened[0].calls, one.calls) == (1, 4, 9)
    pipeline.close()
    assert not opened[0].is_open
    with pytest.raises(BackendError, match="no twin"):
        four.twin().infer({})


def frames(bundle: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng, side = np.random.default_rng(0), Manifest.read(bundle).config.res
    return (
        rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
        rng.random((n, 128), dtype=np.float32),
    )


@pytest.mark.parametrize("backend", available_backends())
def test_several_frames_as_one_by_one(bundle_batches: Path, backend: str) -> None:
    images, heard = frames(bundle_batches, 7)
    with load(bundle_batches, backend=backend, threads=1, streams=2) as pipeline:
        assert pipeline.batches == (1, 2, 4)
        alone = [pipeline.run(images[i : i + 1], heard[i : i + 1])[0] for i in range(7)]
        assert all(session._session is None for session in pipeline.further.values())  # type: ignore[attr-defined]
        found = pipeline.run(images, heard)
        assert all(session._session is not None for session in pipeline.further.values())  # type: ignore[attr-defined]
        np.testing.assert_allclose(found, alone, atol=1e-3)
        with pipeline.twin() as twin:
            np.testing.assert_array_equal(twin.run(images, heard), found)
        np.testing.assert_array_equal(pipeline.run(images, heard), found)


def test_lanes_of_a_film(bundle_batches: Path, bundle_fp32: Path, tmp_path: Path) -> None:
    """The same masks as of a bundle with one graph, but for pixels at the margin."""
    film = write_film(tmp_path / "film.mp4", sound=tone(3, (0, 1)))
    found = []
    for bundle in (bundle_fp32, bundle_batches):
        masks = tmp_path / bundle.name
        done = run("run", bundle, film, "--masks", masks, "--backend", "onnxruntime")
        assert done.returncode == 0, done.stderr
        found.append(np.stack(masks_in(masks)))
    assert found[0].shape == found[1].shape and len(found[0]) == 30
    assert (found[0] != found[1]).mean() < 1e-3


def test_a_graph_that_changed_before_its_first_use(bundle_batches: Path, tmp_path: Path) -> None:
    images, heard = frames(bundle_batches, 4)
    for change in ("other", "gone"):
        folder = tmp_path / change
        shutil.copytree(bundle_batches, folder)
        graph = folder / "model_x4.onnx"
        with load(folder, backend="onnxruntime", threads=1) as pipeline:
            graph.unlink()
            if change == "other":
                shutil.copy(folder / "model_x2.onnx", graph)
            with pytest.raises(BundleError, match="changed while"):
                pipeline.run(images, heard)
            assert np.isfinite(pipeline.run(images[:3], heard[:3])).all()  # two and one
        with pytest.raises(BundleError, match="altered" if change == "other" else "incomplete"):
            load(folder)


def test_a_graph_with_another_batch_than_its_name(bundle_batches: Path, tmp_path: Path) -> None:
    from tests.runtime.strange import rehash

    folder = tmp_path / "bundle"
    shutil.copytree(bundle_batches, folder)
    shutil.copy(folder / "model_x2.onnx", folder / "model_x4.onnx")
    rehash(folder, "model_x4.onnx")
    with load(folder, backend="onnxruntime", threads=1) as pipeline:
        with pytest.raises(BundleError, match="other inputs than the manifest"):
            pipeline.run(*frames(folder, 4))


@pytest.fixture
def spoiled(bundle_batches: Path) -> Iterator[SavePipeline]:
    """A pipeline whose graph of four frames gives the third one the mask of the second."""
    with load(bundle_batches, backend="onnxruntime", threads=1) as pipeline:
        four = pipeline.further[4]
        infer = four.infer
        four.infer = lambda inputs: {  # type: ignore[method-assign]
            name: array[[0, 1, 1, 3]] for name, array in infer(inputs).items()
        }
        yield pipeline


def test_golden_samples_run_in_every_graph(bundle_batches: Path, spoiled: SavePipeline) -> None:
    assert verify_bundle(bundle_batches, backend="onnxruntime", threads=1).parity.n_frames == 2
    manifest = Manifest.read(bundle_batches)
    with pytest.raises(ParityError, match=r"with 4 frames a call(.|\n)*do that"):
        golden_parity(spoiled, bundle_batches, manifest, hint="do that")


def test_streams_share_a_graph(bundle_batches: Path) -> None:
    def opened(threads: int | None, streams: int) -> SavePipeline:
        return load(bundle_batches, backend="onnxruntime", threads=threads, streams=streams)

    images, heard = frames(bundle_batches, 4)
    with open_lanes(opened, 1, 2) as lanes:
        waiting = [lanes.submit(images, heard) for _ in range(4)]
        found = [answer.result()[0] for answer in waiting]
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


def test_inspect(bundle_batches: Path) -> None:
    done = run("inspect", bundle_batches)
    assert done.returncode == 0 and "224 px, 1 or 2 or 4 frames a call" in done.stdout


def test_cpp_runs_the_first_graph(build: Path, bundle_batches: Path) -> None:
    done = infer(build, "verify", bundle_batches)
    assert done.returncode == 0, done.stderr
