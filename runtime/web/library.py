"""ONNX Runtime Web: a pinned and hashed archive of the npm registry, and the files a page needs.

It is not a dependency of save-deploy, because only this page needs its 33 MB. It is downloaded once,
on request, into the cache.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from save_deploy.errors import BackendError, DataError
from save_deploy.files import cache_root, keep_in_cache
from save_deploy.progress import progress
from save_deploy.runtime.web.options import VERSION

SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SIZE = 33_106_585  # bytes of the archive
ENV_REGISTRY = "npm_config_registry"  # npm's variable; any registry is safe, as the hash is checked
REGISTRY = "https://registry.npmjs.org/"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
# Files a page needs: script, loader, WebAssembly. A browser loads one of the two sets.
FOR_GPU = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
FOR_CPU = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
FILES = FOR_GPU + FOR_CPU
_TIMEOUT_S = 30
_PIECE = 1 << 20
_ELSEWHERE = (
    f"npm pack onnxruntime-web@{VERSION} on a machine with a network, then --runtime {ARCHIVE}"
)


def cached_archive() -> Path:
    return cache_root() / "web" / ARCHIVE


def archive(path: Path | None = None, *, fetch: bool = False) -> bytes:
    """Return the archive: the file at `path`, else the cached one, else a download.

    fetch: allow the download, which is then cached.
    Raises DataError for another file, BackendError if there is none.
    """
    if path is not None:
        return _read(path)
    kept = cached_archive()
    if kept.is_file():
        return _read(kept)
    if not fetch:
        raise BackendError(
            f"ONNX Runtime Web {VERSION} is not on this machine",
            got=f"no {kept}",
            expected="the page's runtime, which is not part of save-deploy",
            hint=f"add --fetch to download {SIZE / 1e6:.0f} MB from the npm registry once",
        )
    content = _download()
    keep_in_cache(kept, lambda partial: partial.write_bytes(content))
    return content


def members(content: bytes) -> dict[str, bytes]:
    """Return name -> content of FILES in an archive."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        wanted = {f"package/dist/{name}": name for name in FILES}
        return {
            wanted[member.name]: file.read()
            for member in tar
            if member.name in wanted and (file := tar.extractfile(member)) is not None
        }


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size == SIZE else b""
    except OSError as error:
        raise DataError(
            "the page's runtime cannot be read", got=str(error), expected=ARCHIVE, hint=_ELSEWHERE
        ) from error
    if not _is_it(content):
        raise DataError(
            "not the tested runtime of the page",
            got=f"{path} ({size} bytes)",
            expected=f"{ARCHIVE} of the npm registry, {SIZE} bytes, sha512 {SHA512[:12]}...",
            hint=_ELSEWHERE if path != cached_archive() else f"remove {path}, then add --fetch",
        )
    return content


def _is_it(content: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == SHA512


def _download() -> bytes:
    """Download the archive. Raises BackendError for a failed download or another file."""
    registry = os.environ.get(ENV_REGISTRY) or REGISTRY
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/{ARCHIVE}"
    if not url.startswith(("https://", "http://")):
        raise BackendError(
            "wrong npm registry",
            got=f"{ENV_REGISTRY}={registry}",
            expected="an https:// or http:// address",
        )
    content = bytearray()
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer,
            progress("MB of ONNX Runtime Web", SIZE // _PIECE + 1) as advance,
        ):
            while len(content) <= SIZE and (piece := answer.read(_PIECE)):
                content += piece
                advance()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BackendError(
            "ONNX Runtime Web cannot be downloaded", got=f"{url}: {error}", hint=_ELSEWHERE
        ) from error
    if not _is_it(bytes(content)):
        raise BackendError(
            "the npm registry returned another file",
            got=f"{url}: {len(content)} bytes or more",
            expected=f"{SIZE} bytes, sha512 {SHA512[:12]}...",
            hint=_ELSEWHERE,
        )
    return bytes(content)
