"""save-deploy web: what is written, what is refused, and where ONNX Runtime Web comes from."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from save_deploy.bundle import Manifest
from save_deploy.errors import BackendError, BundleError, DataError, OutputError
from save_deploy.runtime.web import library
from save_deploy.runtime.web.options import SiteOptions
from save_deploy.runtime.web.site import write_site
from tests.command import run


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ONNX Runtime Web, pinned in its place; the cache is empty."""
    import base64
    import hashlib

    path = tmp_path / library.ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        for name in (*library.FILES, "ort.other.mjs"):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    content = path.read_bytes()
    monkeypatch.setattr(library, "SIZE", len(content))
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    monkeypatch.setattr(library, "SHA512", digest)
    monkeypatch.setenv("SAVE_DEPLOY_CACHE", str(tmp_path / "cache"))
    return path


@pytest.fixture
def registry(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A registry on this machine; its answer may be changed, and its requests are kept."""
    state: dict[str, Any] = {"answer": archive.read_bytes(), "paths": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["paths"].append(self.path)
            self.send_response(200 if state["answer"] else 404)
            self.end_headers()
            self.wfile.write(state["answer"])

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv(library.ENV_REGISTRY, f"http://127.0.0.1:{server.server_address[1]}/npm/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield state
    server.shutdown()
    server.server_close()


def test_site_holds_what_its_page_reads(bundle_fp32: Path, archive: Path, tmp_path: Path) -> None:
    done = run("web", bundle_fp32, "-o", tmp_path / "site", "--runtime", archive)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert f"site: {size / 1e6:.0f} MB" in done.stdout
    about, manifest = json.loads((site / "site.json").read_text()), Manifest.read(bundle_fp32)
    assert {"model.onnx", "audio.onnx", "golden/image.npy"} < about["files"].keys()
    for name, record in about["files"].items():
        assert (site / "bundle" / name).read_bytes() == (bundle_fp32 / name).read_bytes()
        assert record == vars(manifest.files[name])
    copied = {p.relative_to(site / "bundle").as_posix() for p in (site / "bundle").rglob("*.*")}
    assert copied == about["files"].keys()
    held = sorted(p.name for p in (site / "ort" / library.VERSION).iterdir())
    assert held == sorted(library.FILES)
    worker = (site / "sw.js").read_text()
    page = (site / "index.html").read_text()
    (own,) = site.glob("page-*")
    assert f'src="{own.name}/app.js"' in page and f'"{own.name}/app.js"' in worker
    for text in (worker, page, *(path.read_text() for path in own.glob("*.js"))):
        assert "{{" not in text and "http:" not in text and "https:" not in text


def test_what_a_browser_loads(bundle_fp32: Path, archive: Path, tmp_path: Path) -> None:
    """Everything but the other runtime and the conformance pack."""
    site = write_site(bundle_fp32, SiteOptions(out=tmp_path / "site", runtime=archive))
    sizes = {p: p.stat().st_size for p in (tmp_path / "site").rglob("*") if p.is_file()}
    assert site.size == sum(sizes.values())
    for loaded, other in zip(site.loaded, (library.FOR_CPU, library.FOR_GPU), strict=True):
        left = [p for p in sizes if p.name in other or "conformance" in p.parts]
        assert any("conformance" in p.parts for p in left) and loaded < site.size
        assert loaded == sum(size for p, size in sizes.items() if p not in left)


def test_page_changes_its_name_in_the_browsers_cache(
    bundle_fp32: Path, archive: Path, tmp_path: Path
) -> None:
    """The same bundle gives the same bytes; another precision would be another page."""
    names = []
    for out in (tmp_path / "a", tmp_path / "b"):
        write_site(bundle_fp32, SiteOptions(out=out, runtime=archive))
        names.append((out / "sw.js").read_text())
    assert names[0] == names[1]
    (tmp_path / "a" / "mine.txt").write_text("mine")
    write_site(bundle_fp32, SiteOptions(out=tmp_path / "a", runtime=archive, force=True))
    assert not (tmp_path / "a" / "mine.txt").exists()


def test_refused(bundle_fp32: Path, archive: Path, tmp_path: Path) -> None:
    options = SiteOptions(out=tmp_path / "site", runtime=archive)
    with pytest.raises(BundleError, match="not a bundle"):
        write_site(tmp_path, options)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="output exists"):
        write_site(bundle_fp32, options)
    done = run("web", bundle_fp32, "-o", tmp_path / "site", "--runtime", archive, "--force")
    assert done.returncode == 1 and "refusing to replace" in done.stderr
    assert [p.name for p in (tmp_path / "site").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("precision", {"precision": "fp8"}, "cannot run this bundle"),
        ("batch", 4, "one frame per call"),
        ("size", 3_000_000_000, "too large for a browser"),
    ],
)
def test_bundles_that_no_browser_runs(
    bundle_fp32: Path, archive: Path, tmp_path: Path, key: str, value: Any, text: str
) -> None:
    values = json.loads((bundle_fp32 / "manifest.json").read_text())
    if key == "batch":
        graph = values["graphs"]["model"]
        for tensor in (*graph["inputs"], *graph["outputs"]):
            tensor["shape"][0] = value
    elif key == "size":
        values["files"]["model.onnx"]["size"] = value
    else:
        values[key] = value
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=text):
        write_site(bundle, SiteOptions(out=tmp_path / "site", runtime=archive))


def test_altered_bundle_is_refused(bundle_fp32: Path, archive: Path, tmp_path: Path) -> None:
    import shutil

    bundle = shutil.copytree(bundle_fp32, tmp_path / "bundle")
    (bundle / "golden" / "image.npy").write_bytes(b"x")
    with pytest.raises(BundleError, match="altered"):
        write_site(bundle, SiteOptions(out=tmp_path / "site", runtime=archive))
    assert not (tmp_path / "site").exists()


def test_runtime_is_fetched_only_when_asked_for(registry: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="--fetch") as refused:
        library.archive()
    assert refused.value.exit_code == 3 and registry["paths"] == []
    content = library.archive(fetch=True)
    assert registry["paths"] == [f"/npm/onnxruntime-web/-/{library.ARCHIVE}"]
    assert library.archive() == content and len(registry["paths"]) == 1  # kept
    assert library.members(content) == {name: name.encode() for name in library.FILES}


def test_another_file_is_not_the_runtime(registry: dict[str, Any], tmp_path: Path) -> None:
    good = registry["answer"]
    for answer in (good[:-1] + bytes([good[-1] ^ 1]), good[:100], good + b"more"):
        registry["answer"] = answer
        with pytest.raises(BackendError, match="another file"):
            library.archive(fetch=True)
    registry["answer"] = b""
    with pytest.raises(BackendError, match="cannot be downloaded"):
        library.archive(fetch=True)
    assert not library.cached_archive().exists()
    (tmp_path / "other.tgz").write_bytes(b"other")
    with pytest.raises(DataError, match="not the tested runtime"):
        library.archive(tmp_path / "other.tgz")
    with pytest.raises(DataError, match="cannot be read"):
        library.archive(tmp_path / "missing.tgz")


def test_registry_is_an_address(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ENV_REGISTRY, "file:///etc")
    with pytest.raises(BackendError, match="wrong npm registry"):
        library.archive(fetch=True)
