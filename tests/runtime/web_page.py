"""A page that `save-deploy web` wrote, served as `python -m http.server` does, and a browser on it."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from save_deploy.errors import BackendError
from save_deploy.runtime.web import library
from tests.conftest import made_once
from tests.runtime.html_samples import Browser, browser_missing

needs_browser = pytest.mark.skipif(
    browser_missing() is not None, reason=f"not installed: apt-get install {browser_missing()}"
)
READY = "document.querySelector('#check').disabled"
LOGITS = """(async () => {
  const film = document.querySelector('#film');
  const wanted = arguments[0];
  film.pause();
  await new Promise((done) => { film.onseeked = done; film.currentTime = wanted; });
  await new Promise((done) => setTimeout(done, 200));
  const bitmap = await createImageBitmap(film);
  const {logits} = await save.ask('frame', {bitmap, time: wanted}, [bitmap]);
  let text = '';
  for (const byte of new Uint8Array(logits.buffer)) text += String.fromCharCode(byte);
  return btoa(text);
})()"""


def runtime_archive() -> Path:
    """ONNX Runtime Web from the npm registry, once for all runs; the test is skipped without it."""
    with made_once("onnxruntime-web") as place:
        kept = place / library.ARCHIVE
        if not kept.exists():
            try:
                content = library._download()
            except BackendError as error:
                pytest.skip(str(error).splitlines()[0])
            place.mkdir(exist_ok=True)
            kept.write_bytes(content)
        return kept


@dataclass
class Served:
    """A running server of files; paths: what was asked for since it started."""

    url: str
    paths: list[str]
    server: http.server.ThreadingHTTPServer

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            paths.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    running = Served(f"http://127.0.0.1:{server.server_address[1]}/", paths, server)
    try:
        yield running
    finally:
        running.stop()


def open_page(browser: Browser, url: str) -> None:
    """Wait until the model is ready."""
    browser.open(url)
    browser.until(READY, False, seconds=60)


def logits_at(browser: Browser, time_s: float, side: int) -> np.ndarray:
    """Of the frame that the film shows at a time, float32 (S,S)."""
    text = browser.js(LOGITS, time_s)
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(side, side)


def write_lossless(path: Path, images: np.ndarray, sound: np.ndarray, *, fps: int = 5) -> Path:
    """An mp4 that shows each of images uint8 (N,S,S,3) for a second, with sound float32 (N,16000):
    VP9 in RGB and FLAC at 16 kHz, so that every reader has the same pixels and samples."""
    with av.open(str(path), "w", options={"strict": "experimental"}) as container:
        video: Any = container.add_stream("libvpx-vp9", rate=fps, options={"lossless": "1"})
        video.height, video.width = images.shape[1:3]
        video.pix_fmt = "gbrp"
        audio: Any = container.add_stream("flac", rate=16_000, layout="mono")
        samples = (sound.reshape(1, -1) * 32767).round().astype(np.int16)
        for k in range(len(images) * fps):
            frame = av.VideoFrame.from_ndarray(images[k // fps], "rgb24")
            frame.pts = k
            container.mux(video.encode(frame))
            begin, end = (16_000 * at // fps for at in (k, k + 1))
            piece = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, begin:end]), "s16", "mono"
            )
            piece.rate, piece.pts = 16_000, begin
            container.mux(audio.encode(piece))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path
