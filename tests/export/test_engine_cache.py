"""Engines in the cache and in bundles: built once, never half there, whoever is killed when."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from save_deploy.bundle import FileRecord, Manifest, audio_spec, model_spec, record_files, sha256_of
from save_deploy.cli.cache import cache_ls, cache_rm
from save_deploy.cli.inspect import inspect_bundle
from save_deploy.errors import BundleError, ExportError, OutputError, ParityError
from save_deploy.export.engine import cache
from save_deploy.export.engine.add import add_engine, engine_file, plan_engine
from save_deploy.export.engine.graph import read_graph
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Allow
from save_deploy.partials import partial_folder
from save_deploy.runtime.engine_check import engine_refusals, probe_machine
from tests.command import run
from tests.conftest import make_tiny
from tests.export.test_engine_build import attention_graph

pytest.importorskip("tensorrt_rtx", reason='no tensorrt_rtx: pip install "save-deploy[rtx]"')
L4 = BuildOptions(library="rtx", targets=("L4",))
ENTRY = {
    "file", "library", "library_version", "targets", "hardware_compatibility", "version_compatible",
    "os", "gpu", "driver", "cuda", "onnx_sha256", "onnx_data_sha256", "engine_bytes",
    "activation_bytes", "weights_bytes", "header", "options", "receipt",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def make_bundle(folder: Path, **graph: Any) -> Path:
    """A bundle whose model.onnx is one attention: quick to build."""
    folder.mkdir()
    attention_graph(folder / "model.onnx", **graph)
    (folder / "audio.onnx").write_bytes(b"not read here")
    config = make_tiny().config
    source = {"files": [{"name": "a.safetensors", "sha256": "0" * 64, "size": 1}]}
    Manifest(
        config=config, precision={"precision": "fp16", "islands": []}, model=model_spec(config),
        audio=audio_spec(), files=record_files(folder), golden={}, merge={}, source=source, versions={},
    ).write(folder)  # fmt: skip
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "b")


def test_entry_and_file(bundle: Path) -> None:
    entry = add_engine(bundle, L4)
    manifest, engine = Manifest.read(bundle), bundle / "model.rtx.plan"
    manifest.verify(bundle)
    assert manifest.engines == (json.loads(json.dumps(entry)),) and set(entry) == ENTRY
    assert entry["file"] == engine.name and entry["targets"] == ["SM89"]
    assert entry["onnx_sha256"] == manifest.files["model.onnx"].sha256
    assert entry["engine_bytes"] == engine.stat().st_size == manifest.files[engine.name].size
    assert bytes.fromhex(entry["header"]) == engine.read_bytes()[:32]
    assert entry["options"]["targets"] == ["SM89"] and entry["receipt"]["fused"] == 1
    assert engine.stat().st_mode & 0o777 == 0o644
    names = {"model.onnx", "audio.onnx", "manifest.json", "model.rtx.plan"}
    assert {p.name for p in bundle.iterdir()} == names


def test_engines_of_other_gpus_stay(bundle: Path) -> None:
    """One file per set of targets; the same set is built anew in its place."""
    for target in ("8.9", "8.6", "8.9"):
        add_engine(bundle, BuildOptions(library="rtx", targets=(target,)))
        Manifest.read(bundle).verify(bundle)
    found = {entry["file"]: entry["targets"] for entry in Manifest.read(bundle).engines}
    assert found == {"model.sm86.rtx.plan": ["SM86"], "model.rtx.plan": ["SM89"]}


def test_names_of_engines(bundle: Path) -> None:
    """Full TensorRT builds for one GPU model, unless it is told to be compatible with others."""
    manifest = Manifest.read(bundle)
    assert engine_file(manifest, "tensorrt", ["SM86"], "none", "NVIDIA A10") == "model.plan"
    entry = add_engine(bundle, L4) | {
        "library": "tensorrt", "targets": ["SM86"], "gpu": "NVIDIA A10", "file": "model.plan"
    }  # fmt: skip
    manifest = replace(
        manifest, engines=(entry,), files={**manifest.files, "model.plan": FileRecord("0" * 64, 1)}
    )
    name = lambda *given: engine_file(manifest, "tensorrt", *given)
    assert name(["SM86"], "none", "NVIDIA A10") == "model.plan"
    assert name(["SM86"], "none", "NVIDIA RTX 3090") == "model.sm86_nvidia_rtx_3090.plan"
    assert name(["SM89"], "none", "NVIDIA L4") == "model.sm89_nvidia_l4.plan"
    assert name(["SM86"], "ampere_plus", "NVIDIA A10") == "model.sm86_ampere_plus.plan"


def test_the_portable_form_is_named_before_a_build(bundle: Path) -> None:
    said: list[str] = []
    manifest = Manifest.read(bundle)
    for target, word in (("portable", "portable form"), ("tensorrt", ""), (None, "")):
        replace(manifest, merge={} if target is None else {"target": target}).write(bundle)
        notes = plan_engine(bundle, L4).notes
        assert bool(notes) == bool(word) and all("--target tensorrt" in note for note in notes)
        assert all(word in note for note in notes)
    replace(manifest, merge={"target": "portable"}).write(bundle)
    add_engine(bundle, L4, on_line=said.append)
    assert said[0].startswith("note: this bundle has the portable form")
    split = read_graph(bundle / "model.onnx")
    assert not split.splits_windows
    twice = replace(split, attentions=split.attentions * 2)
    assert twice.splits_windows, "bundles of earlier versions do not say their form"


def test_a_failed_receipt_changes_nothing(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "unfused", v_width=48)
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}
    with pytest.raises(ParityError, match=r"m\.attn/softmax \(--allow-unfused\)") as caught:
        add_engine(bundle, L4)
    assert caught.value.exit_code == 2
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before
    add_engine(bundle, L4, allow=Allow(unfused=True))
    Manifest.read(bundle).verify(bundle)


def test_an_altered_bundle_is_refused(bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="altered"):
        add_engine(bundle, L4)


def test_second_build_is_taken_from_the_cache(bundle: Path, own_cache: Path) -> None:
    assert not plan_engine(bundle, L4).cached
    add_engine(bundle, L4)
    engine = (bundle / "model.rtx.plan").read_bytes()
    said: list[str] = []
    add_engine(bundle, L4, on_line=said.append)
    assert len(said) == 1 and "from the cache" in said[0]
    assert (bundle / "model.rtx.plan").read_bytes() == engine and plan_engine(bundle, L4).cached
    add_engine(bundle, L4, use_cache=False, on_line=said.append)
    assert "optimizing" in said and len(cache.entries()) == 1


def test_key_follows_everything_that_decides(bundle: Path, tmp_path: Path) -> None:
    plan = plan_engine(bundle, L4)
    key = lambda options=plan.options, module="tensorrt_rtx", version="1", gpu="": cache.key_of(
        bundle / "model.onnx", options, module, version, gpu
    )
    other = make_bundle(tmp_path / "other", dtype=TensorProto.FLOAT)
    keys = [
        key(),
        key(version="2"),
        key(module="tensorrt"),
        key(gpu="H200"),
        key(BuildOptions(library="rtx", targets=("8.6",))),
        key(BuildOptions(library="rtx", targets=("L4",), workspace_mib=9)),
        plan_engine(other, L4).key,
    ]
    assert len(set(keys)) == len(keys) and key() == keys[0]


@pytest.mark.parametrize("damage", ["engine", "entry.json", "missing"])
def test_damaged_entry_is_built_again(bundle: Path, own_cache: Path, damage: str) -> None:
    add_engine(bundle, L4)
    (entry,) = cache.entries()
    place = own_cache / entry.key
    if damage == "missing":
        (place / "engine").unlink()
    else:
        data = bytearray((place / damage).read_bytes())
        data[len(data) // 2 :] = b"\0" * (len(data) - len(data) // 2)
        (place / damage).write_bytes(data)
    said: list[str] = []
    add_engine(bundle, L4, on_line=said.append)
    assert "damaged" in said[0] and "optimizing" in said
    found = cache.lookup(entry.key)
    assert found is not None
    assert sha256_of(found.engine) == sha256_of(bundle / "model.rtx.plan")


def builder(bundle: Path, *, wait_for: Path | None = None) -> subprocess.Popen[str]:
    """Another process that builds; it stops at `optimizing` until `wait_for` exists."""
    code = (
        "import pathlib, sys, time; from save_deploy.export.engine.add import add_engine\n"
        "from save_deploy.export.engine.options import BuildOptions\n"
        f"go = {str(wait_for) if wait_for else None!r}\n"
        "def say(line):\n"
        "    print(line, flush=True)\n"
        "    while line == 'optimizing' and go and not pathlib.Path(go).exists():\n"
        "        time.sleep(0.02)\n"
        f"add_engine(pathlib.Path({str(bundle)!r}), BuildOptions(library='rtx', targets=('L4',)),"
        " on_line=say)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], word: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if word in line:
            return lines
    raise AssertionError(f"{word} not in {lines}")


def test_two_processes_build_once(bundle: Path, tmp_path: Path) -> None:
    other, go = make_bundle(tmp_path / "b2"), tmp_path / "go"
    first = builder(bundle, wait_for=go)
    read_until(first, "optimizing")
    second = builder(other)
    read_until(second, "waiting")  # the first holds the lock
    go.touch()
    assert second.communicate(timeout=120)[0].count("taken from the cache") == 1
    first.communicate(timeout=120)
    assert first.returncode == second.returncode == 0
    assert len(cache.entries()) == 1
    for made in (bundle, other):
        Manifest.read(made).verify(made)
    assert sha256_of(bundle / "model.rtx.plan") == sha256_of(other / "model.rtx.plan")


def test_killed_builder(bundle: Path, own_cache: Path, tmp_path: Path) -> None:
    """Its lock is free, its leftovers go, its bundle is as it was."""
    import psutil

    process = builder(bundle, wait_for=tmp_path / "never")
    read_until(process, "optimizing")
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    for child in children:
        child.suspend()  # it cannot end by being done
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive  # no orphan goes on building
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    assert manifest.engines == () and list(own_cache.glob(".*.partial-*"))
    add_engine(bundle, L4)
    Manifest.read(bundle).verify(bundle)
    assert not [p for p in (*own_cache.iterdir(), *bundle.iterdir()) if ".partial-" in p.name]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_manifest_matches_wherever_it_stops(
    bundle: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each of the renames that replace an engine."""
    add_engine(bundle, L4)
    real, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target).parent == bundle:
            calls.append(Path(target).name)
            if len(calls) == step:
                raise KeyboardInterrupt
        real(source, target)

    other = BuildOptions(library="rtx", targets=("8.9",), workspace_mib=512)
    monkeypatch.setattr(os, "replace", replace)
    if step < 4:
        with pytest.raises(KeyboardInterrupt):
            add_engine(bundle, other)
    else:
        add_engine(bundle, other)
        assert calls == ["manifest.json", "model.rtx.plan", "manifest.json"]
    Manifest.read(bundle).verify(bundle)
    assert not list(bundle.glob(".*"))


def test_full_disk(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {p.name for p in bundle.iterdir()}
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        add_engine(bundle, L4)
    assert {p.name for p in bundle.iterdir()} == before


def test_list_and_remove(bundle: Path, own_cache: Path) -> None:
    for target in ("8.6", "8.9", "12.0"):
        add_engine(bundle, BuildOptions(library="rtx", targets=(target,)))
    found = cache.entries()
    assert {e.targets for e in found} == {("SM86",), ("SM89",), ("SM120",)}
    old = time.time() - 40 * 86400
    os.utime(own_cache / found[0].key, (old, old))
    assert [e.key for e in cache.remove(older_than_days=30)] == [found[0].key]
    with pytest.raises(ExportError, match="no cached engine"):
        cache.remove("zz")
    assert len(cache.remove(found[1].key[:10])) == 1
    assert len(cache.remove()) == 1 and cache.entries() == []


def test_verb_build_and_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("build", bundle, "--for", "RTX 4090,8.6", "--library", "rtx")
    text = run(*asked, "--dry-run").stdout
    assert "SM86, SM89" in text and "not in the cache" in text and "x fp16 (1, 2, 48, 32)" in text
    assert not (bundle / "model.rtx.plan").exists()
    text = run(*asked).stdout
    assert "1 of 1 are one kernel" in text and "tactics of MatMuls" in text
    inspect_bundle(bundle, kernels=True)
    text = capsys.readouterr().out
    assert "model.rtx.plan" in text and "_gemm_mha_v2" in text and "files as recorded" in text
    values = json.loads(run("inspect", bundle, "--json").stdout)
    assert values["engines"][0]["receipt"]["fused"] == 1
    assert "kernels" not in values["engines"][0]["receipt"]
    cache_ls()
    assert "1 engines" in capsys.readouterr().out
    cache_rm()
    assert "removed 1 engines" in capsys.readouterr().out and cache.entries() == []


def test_inspect_refuses_an_altered_engine(bundle: Path) -> None:
    add_engine(bundle, L4)
    data = np.fromfile(bundle / "model.rtx.plan", np.uint8)
    data[1000] ^= 1
    data.tofile(bundle / "model.rtx.plan")
    with pytest.raises(BundleError, match="altered"):
        inspect_bundle(bundle)


@pytest.mark.parametrize("gpu", ["H100", "H200", "SM90", "NVIDIA H200"])
def test_hopper_is_refused(bundle: Path, gpu: str) -> None:
    done = run("build", bundle, "--for", gpu)
    assert done.returncode == 1 and "no such target" in done.stderr
    assert "--library tensorrt" in done.stderr
    assert not (bundle / "model.rtx.plan").exists()


def test_what_killed_builds_left(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listed, counted and removed at any age; the folder of a build that runs is left alone."""
    dead = own_cache / f".{'ab' * 16}.partial-0a1b2c3d"
    dead.mkdir(parents=True)
    (dead / "engine").write_bytes(b"half")
    with partial_folder(own_cache / ("cd" * 16)) as alive:
        (found,) = cache.unfinished()
        assert (found.key, found.size, cache.entries()) == ("ab" * 16, 4, [])
        cache_ls()
        assert "unfinished" in capsys.readouterr().out
        with pytest.raises(ExportError, match="no cached engine"):
            cache.remove("cd")
        cache_rm(older_than=30)
        assert "removed 1 engines" in capsys.readouterr().out
        assert [p.name for p in own_cache.glob(".*")] == [alive.name]


def test_an_engine_removed_before_it_is_copied(
    bundle: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By someone who asks no lock: it is built again."""
    add_engine(bundle, L4)
    lookup = cache.lookup

    def then_removed(key: str) -> Any:
        found = lookup(key)
        shutil.rmtree(own_cache / key, ignore_errors=True)
        return found

    monkeypatch.setattr(cache, "lookup", then_removed)
    said: list[str] = []
    add_engine(bundle, L4, on_line=said.append)
    assert "optimizing" in said and "from the cache" not in said[0]
    Manifest.read(bundle).verify(bundle)


def test_external_weights_are_in_the_entry(bundle: Path) -> None:
    """An engine belongs to the graph and its weights."""
    assert add_engine(bundle, L4)["onnx_data_sha256"] is None
    path = bundle / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data",
              size_threshold=64)  # fmt: skip
    manifest = replace(Manifest.read(bundle), engines=(), files=record_files(bundle))
    manifest.write(bundle)
    entry = add_engine(bundle, L4)
    manifest = Manifest.read(bundle)
    assert entry["onnx_data_sha256"] == manifest.files["model.onnx.data"].sha256
    found = lambda files: [
        r.rule for r in engine_refusals(entry, bundle, files, probe_machine(()), hashed=True)
    ]
    assert "onnx" not in found(manifest.files)
    other = {**manifest.files, "model.onnx.data": FileRecord("1" * 64, 1)}
    assert "onnx" in found(other)
