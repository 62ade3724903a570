"""Bundles from strangers: a graph that is not the manifest's, weights out of the list, links, races."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper
from PIL import Image

from save_deploy import bundle_files
from save_deploy.errors import BundleError
from save_deploy.onnx_files import weight_files
from save_deploy.runtime import pipeline as pipeline_module
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.session.compiled import read_kept
from save_deploy.runtime.session.openvino import OpenVinoSession
from tests.runtime.cpp import infer
from tests.runtime.strange import SIDE, honest, of_links, rehash, strange_bundle

BACKENDS = ("onnxruntime", "openvino")
NAMES = "abdefghij"
OPEN = ("a", "b", "c", "d")  # sides that the graph does not fix
OTHER: tuple[dict[str, Any], ...] = (
    {"side": 16, "dims": OPEN},
    {"side": 16},  # it declares what it does not give
    {"side": 1024, "dims": OPEN},
    {"dtype": TensorProto.FLOAT16},
    {"dtype": TensorProto.DOUBLE},
    {"extra": "more"},
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(folder: Path, backend: str, **options: Any) -> np.ndarray:
    """Of a black picture."""
    with load(folder, backend=backend, threads=1, **options) as pipeline:
        assert pipeline.backend == backend
        for session in (pipeline.model, pipeline.audio):
            for buffer in session.buffers.values():  # type: ignore[attr-defined]
                buffer.fill(-7)  # what is in memory before
        heard = pipeline.embed(np.zeros(16_000, np.float32))
        return pipeline.logits(np.zeros((SIDE, SIDE, 3), np.uint8), heard)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_that_fit(tmp_path: Path, backend: str) -> None:
    """Shapes that the graph leaves open are fine when they come out as the manifest says."""
    for name, dims in (("fixed", (1, 1, SIDE, SIDE)), ("open", OPEN)):
        assert (logits(strange_bundle(tmp_path / name, dims=dims), backend) == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OTHER, ids=str)
def test_other_interfaces_are_refused(tmp_path: Path, backend: str, options: Any) -> None:
    folder = strange_bundle(tmp_path / "b", **options)
    with pytest.raises(BundleError, match=r"other (inputs|outputs)|another mask_logits|cannot run"):
        logits(folder, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_outside_the_list(tmp_path: Path, backend: str) -> None:
    listed = strange_bundle(tmp_path / "listed", weights="model.onnx.data")
    assert (logits(listed, backend) == 7.25).all()
    for name in ("weights.bin", "./weights.bin"):
        folder = strange_bundle(
            tmp_path / name.replace("/", "_"), weights=name, unlisted=["weights.bin"]
        )
        for verify in (True, False):
            with pytest.raises(BundleError, match=r"does not list(.|\n)*weights\.bin"):
                load(folder, backend=backend, verify=verify)


def test_every_place_of_weights_is_found(tmp_path: Path) -> None:
    """Initializers, sparse ones, constants, graphs inside nodes, functions."""

    def outside(name: str) -> TensorProto:
        tensor = TensorProto(name=name, data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        return tensor

    node = helper.make_node
    inner = helper.make_graph(
        [node("Constant", [], ["x"], value=outside("d"))], "g", [], [], [outside("e")]
    )
    graph = helper.make_graph(
        [node("Constant", [], ["y"], value=outside("b")), node("If", ["c"], ["z"], then_branch=inner)],
        "main", [], [], [outside("a")],
    )  # fmt: skip
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(outside("f"))
    sparse.indices.CopyFrom(outside("g"))
    model = helper.make_model(graph)
    function = model.functions.add(name="fn")
    function.node.append(node("Constant", [], ["w"], value=outside("h")))
    listed = node("Constant", [], ["v"])
    attribute = listed.attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(outside("i"))
    graph_list = listed.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS)
    graph_list.graphs.append(helper.make_graph([], "q", [], [], [outside("j")]))
    model.graph.node.append(listed)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert weight_files(path, NAMES) == tuple(NAMES)
    for missing in NAMES:
        with pytest.raises(BundleError, match=f"'{missing}'"):
            weight_files(path, NAMES.replace(missing, ""))


def test_what_is_no_model(tmp_path: Path) -> None:
    good = helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()
    code = helper.make_graph([helper.make_node("EPContext", [], ["y"], embed_mode=0)], "g", [], [])
    path = tmp_path / "m.onnx"
    contents = [
        b"",
        b"<net/>",
        good[:-1],
        good + b"\x3a\xff\xff\xff\x7f",
        b"\xff" * 99,
        b"\x08\x01",
    ]
    for content in (*contents, helper.make_model(code).SerializeToString()):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="is not an ONNX model"):
            weight_files(path, ())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hard", [True, False], ids=["hard links", "copies"])
def test_a_bundle_of_links(
    tmp_path: Path, cache: Path, backend: str, hard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Hugging Face's cache: every file is a link to ../blobs/HASH."""
    folder = of_links(strange_bundle(tmp_path / "b", weights="model.onnx.data"))
    if not hard:
        monkeypatch.setattr("os.link", _refuse)
    assert (logits(folder, backend) == 7.25).all()
    left = [p for p in (*cache.rglob("*"), *tmp_path.glob("bundle-*")) if "links" in p.parts]
    assert [p for p in left if p.is_file()] == []


def _refuse(*_: object, **__: object) -> None:
    raise OSError(18, "Invalid cross-device link")


@pytest.mark.slow
def test_compiled_models_belong_to_all_weights(tmp_path: Path, cache: Path) -> None:
    folder = strange_bundle(tmp_path / "b", weights="model.onnx.data")
    for value in (7.25, 9.5, -2.0):
        (folder / "model.onnx.data").write_bytes(np.float32(value).tobytes())
        rehash(folder, "model.onnx.data")
        for _ in range(2):  # compiled, then taken from the cache
            assert (logits(folder, "openvino") == value).all()
    assert len(list(cache.glob("openvino/*/*.blob"))) == 4  # and that of audio.onnx


@pytest.mark.slow
def test_a_compiled_model_is_whole_or_not_used(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other content is never given to OpenVINO, whose reader may crash; another version of it
    compiles anew."""
    import openvino

    folder = strange_bundle(tmp_path / "b")
    logits(folder, "openvino")
    blobs = sorted(cache.glob("openvino/*/*.blob"))
    good = {blob: blob.read_bytes() for blob in blobs}
    imported: list[int] = []

    class Core(openvino.Core):  # type: ignore[misc]
        def import_model(self, content: Any, *rest: Any) -> Any:
            whole = [bytes(found) for blob in cache.glob("openvino/*/*.blob")
                     if (found := read_kept(blob)) is not None]  # fmt: skip
            assert content.data.tobytes() in whole
            imported.append(content.size)
            return super().import_model(content, *rest)

    monkeypatch.setattr(openvino, "Core", Core)
    for damage in (
        lambda b: b"",
        lambda b: b[:-1],
        lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:],
        lambda b: b"x" * 99,
    ):
        for blob in blobs:
            blob.write_bytes(damage(good[blob]))
        imported.clear()
        assert (logits(folder, "openvino") == 1).all()
        assert len(imported) == 2  # as written again
        assert all(read_kept(blob) for blob in blobs)
    monkeypatch.setattr(Core, "compile_model", lambda *_: pytest.fail("compiled again"))
    logits(folder, "openvino")
    assert len(imported) == 4
    monkeypatch.delattr(Core, "compile_model")
    monkeypatch.setattr(openvino, "get_version", lambda: "2027.0")
    logits(folder, "openvino")
    assert len(imported) == 6 and len(list(cache.glob("openvino/*/*.blob"))) == 4


@pytest.mark.slow
def test_workers_never_see_half_of_a_compiled_model(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name appears with the whole content behind it."""
    folder, seen = strange_bundle(tmp_path / "b"), list[bytes | None]()
    put = os.replace

    def watched(source: Any, target: Any) -> None:
        if Path(target).suffix == ".blob":
            assert not Path(target).exists()
            seen.append(read_kept(Path(source)))
        put(source, target)

    monkeypatch.setattr("os.replace", watched)
    logits(folder, "openvino")
    assert len(seen) == 2 and all(seen)
    kept = [path for path in (cache / "openvino").rglob("*") if path.is_file()]
    assert sorted(kept) == sorted(cache.glob("openvino/*/*.blob")) and len(kept) == 2


@pytest.mark.parametrize("how", ["written", "replaced"])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_file_that_changes_after_its_hash(
    tmp_path: Path, how: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = strange_bundle(tmp_path / "b", weights="model.onnx.data")
    check = bundle_files.check_files

    def slow(*args: Any) -> None:
        check(*args)
        content = (folder / name).read_bytes()
        target = folder / name if how == "written" else tmp_path / "new"
        target.write_bytes(content)
        target.replace(folder / name)

    monkeypatch.setattr(bundle_files, "check_files", slow)
    with pytest.raises(BundleError, match=f"changed while it was opened(.|\n)*{name}"):
        load(folder, backend="onnxruntime")


def test_reports_are_for_people(tmp_path: Path) -> None:
    """A bundle runs without them and with other line ends; `verify` says so. Others are needed."""
    folder = strange_bundle(tmp_path / "b")
    for name in ("report.md", "report.json", "notes.txt"):
        (folder / name).write_text("a\nb\n")
    honest(folder)
    (folder / "report.json").unlink()
    (folder / "report.md").write_text("a\r\nb\r\n", newline="")
    assert (logits(folder, "onnxruntime") == 1).all()
    notes = bundle_files.notes_on_reports(folder, pipeline_module.Manifest.read(folder).files)
    assert [note.split(":")[0] for note in notes] == ["report.md", "report.json"]
    (folder / "notes.txt").unlink()
    with pytest.raises(BundleError, match=r"incomplete(.|\n)*notes\.txt"):
        load(folder)


def test_nothing_is_allocated_for_a_graph_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = strange_bundle(tmp_path / "b", dtype=TensorProto.DOUBLE)
    refuse: Callable[..., Any] = lambda *_: pytest.fail("memory for outputs")
    monkeypatch.setattr("numpy.empty", refuse)
    spec = pipeline_module.Manifest.read(folder).model
    with pytest.raises(BundleError, match="other outputs"):
        OpenVinoSession(folder / "model.onnx", spec)


# --- the same in C++ (openvino) ---


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A black picture of the network's size, and a second of silence."""
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "frame.png")
    soundfile.write(tmp_path / "sound.wav", np.zeros(16_000), 16_000)
    return tmp_path / "frame.png", tmp_path / "sound.wav"


def cpp(build: Path, folder: Path, files: tuple[Path, Path], *options: str | Path) -> Any:
    """(exit code, logits or the error's text)."""
    out = folder.with_name("cpp.npy")
    done = infer(
        build, "run", folder, *files, "-o", folder.with_name("cpp.png"), "--logits", out,
        "--any-sound", *options,
    )  # fmt: skip
    return done.returncode, np.load(out) if done.returncode == 0 else done.stderr


def test_cpp_refuses_other_graphs(build: Path, tmp_path: Path, files: tuple[Path, Path]) -> None:
    code, found = cpp(build, strange_bundle(tmp_path / "open", dims=OPEN), files)
    assert code == 0 and (found == 1).all()
    for i, options in enumerate(OTHER):
        code, text = cpp(build, strange_bundle(tmp_path / f"{i}", **options), files)
        assert code == 1 and ("does not fit" in text or "another mask_logits" in text), options


def test_cpp_reads_listed_weights_alone(
    build: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    folder, kept = strange_bundle(tmp_path / "b", weights="model.onnx.data"), tmp_path / "kept"
    for value in (7.25, 9.5):
        (folder / "model.onnx.data").write_bytes(np.float32(value).tobytes())
        rehash(folder, "model.onnx.data")
        for damage in (None, b"", b"x" * 99):  # compiled, taken from the cache, damaged there
            for blob in kept.rglob("*.blob") if damage is not None else ():
                blob.write_bytes(damage)
            for _ in range(2):
                code, found = cpp(build, folder, files, "--cache", kept)
                assert code == 0 and (found == value).all(), found
    assert not [p for p in kept.rglob("*") if "partial" in p.name]
    for name in ("weights.bin", "../weights.bin"):
        folder = strange_bundle(tmp_path / f"{len(name)}", weights=name, unlisted=["weights.bin"])
        for option in ([], ["--no-hashes"]):
            code, text = cpp(build, folder, files, *option)
            assert code == 1 and "the manifest does not list" in text and "weights.bin" in text


def test_cpp_opens_a_bundle_of_links(
    build: Path, tmp_path: Path, cache: Path, files: tuple[Path, Path]
) -> None:
    folder = of_links(strange_bundle(tmp_path / "b", weights="model.onnx.data"))
    code, found = cpp(build, folder, files)
    assert code == 0 and (found == 7.25).all(), found
    assert not list(cache.glob("bundle-*"))


def test_cpp_needs_no_report(build: Path, tmp_path: Path, files: tuple[Path, Path]) -> None:
    folder = strange_bundle(tmp_path / "b")
    for name in ("report.md", "notes.txt"):
        (folder / name).write_text("a\n")
    honest(folder)
    (folder / "report.md").unlink()
    assert cpp(build, folder, files)[0] == 0
    (folder / "notes.txt").write_text("b\n")
    code, text = cpp(build, folder, files)
    assert code == 1 and "altered" in text and "notes.txt" in text
