"""Every key of a manifest with every type of value: our error, or it works; never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from save_deploy import bundle as bundle_module
from save_deploy.bundle import MANIFEST, Manifest
from save_deploy.cli.inspect import inspect_bundle
from save_deploy.errors import SaveDeployError
from save_deploy.fields import Fields
from save_deploy.runtime.engine_check import engine_refusals, estimated_bytes
from save_deploy.runtime.engine_trust import trust_refusals
from save_deploy.runtime.golden import read_golden, read_pack
from save_deploy.runtime.session.choose import choose, require_machine
from tests.runtime.engines import crafted_engine, entry_of, machine
from tests.runtime.strange import honest, strange_bundle
from tests.test_manifest import PACK, manifest

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e300, 2**70, "", "x" * 10_000, [], {}, [[[{"a": [None]}]]], {"a": {"b": [1]}},
    "\x1b[2J\x07", [5], [None], ["x"],
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with everything a manifest may speak of: an engine, golden samples, a pack."""
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    made = strange_bundle(tmp_path / "b")
    for name in (*PACK, "model.rtx.plan", "model_x2.onnx"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(crafted_engine())
    honest(made)
    found = Manifest.read(made)
    graph = {"onnx_sha256": found.files["model.onnx"].sha256}
    entry = entry_of(crafted_engine(), **graph)
    pack = manifest().conformance
    replace(found, engines=(entry,), conformance=pack, batches=(2,)).write(made)
    return made


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    for key, inner in (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    ):  # fmt: skip
        yield from paths(inner, (*at, key))


def changed(
    values: dict[str, Any], at: tuple[Any, ...], value: Any, then: Callable[[], object]
) -> None:
    """Put a value in its place while `then` runs."""
    inner: Any = values
    for key in at[:-1]:
        inner = inner[key]
    before, inner[at[-1]] = inner[at[-1]], value
    try:
        then()
    finally:
        inner[at[-1]] = before


def used(folder: Path) -> None:
    """What the verbs do with a manifest, one part after the other: each may refuse it."""
    found = Manifest.read(folder)
    here = machine()
    parts: list[Callable[[], object]] = [
        lambda: inspect_bundle(folder),
        lambda: inspect_bundle(folder, json_out=Path("/dev/null")),
        lambda: read_golden(folder, found),
        lambda: read_pack(folder, found),
        lambda: require_machine("tensorrt_rtx", found),
        lambda: choose("tensorrt_rtx", folder, found, hashed=True),
    ]
    for entry in found.engines:
        parts += [
            lambda e=entry: engine_refusals(e, folder, found.files, here, hashed=True),  # type: ignore[misc]
            lambda e=entry: trust_refusals(e, found.files),  # type: ignore[misc]
            lambda e=entry: estimated_bytes(e),  # type: ignore[misc]
        ]
    for part in parts:
        with contextlib.suppress(SaveDeployError), contextlib.redirect_stdout(io.StringIO()):
            part()


@pytest.mark.slow
def test_every_key_of_every_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    origin = str(folder / MANIFEST)
    as_read = lambda *_, **how: Fields(values, origin, error=how["error"], hint=how["hint"])
    monkeypatch.setattr(bundle_module, "read_json", as_read)
    monkeypatch.setattr(bundle_module.bundle_files, "check_files", lambda *_: None)  # hashed below
    refused = accepted = 0
    for at in list(paths(values)):
        for value in VALUES:

            def look(at: tuple[Any, ...] = at, value: Any = value) -> None:
                nonlocal refused, accepted
                try:
                    Manifest.read(folder)
                except SaveDeployError as error:
                    refused += 1
                    assert len(str(error)) < 3000 and "\x1b" not in str(error)
                    return
                accepted += 1
                if at[0] not in ("preprocessing", "versions", "config"):
                    used(folder)

            try:
                changed(values, at, value, look)
            except Exception as error:
                pytest.fail(f"{at} = {value!r:.40}: {error!r:.300}")
    assert refused > 1500 and accepted > 100


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a": "\xff"}',
        b'{"format": "\\ud800"}',
        b'{"format_version": ' + b"1" * 5000 + b"}",
        b'{"format": NaN}',
        b"\xef\xbb\xbf{}",
        b"",
        b"5",
    ],
    ids=range(8),
)
def test_texts_that_are_no_manifest(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(SaveDeployError) as caught:
        Manifest.read(folder)
    str(caught.value).encode()


def test_unhashed_sizes_and_names(folder: Path) -> None:
    """check_files meets names of any length, folders and pipes."""
    values = json.loads((folder / MANIFEST).read_text())
    for name in ("golden", "none/such/file", "y" * 200):
        with_it = {**values, "files": {**values["files"], name: {"sha256": "0" * 64, "size": 1}}}
        (folder / MANIFEST).write_text(json.dumps(with_it))
        with pytest.raises(SaveDeployError, match="incomplete"):
            Manifest.read(folder).verify(folder)
