"""A small report with everything in it, and a headless Chromium to open it with."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from save_deploy.metrics.latency import LatencyResult
from save_deploy.metrics.margin import MarginMeter
from save_deploy.metrics.parity import parity
from save_deploy.metrics.segmentation import score_videos
from save_deploy.runtime.compare.rows import Row, TimeSplit
from save_deploy.runtime.html import (
    Check,
    Figure,
    Report,
    ReportFrame,
    Section,
    Table,
)

NASTY = "<script>alert('x')</script>"
BACKENDS = ("onnxruntime fp16", "openvino fp16", "tensorrt int8", "tensorrt fp8", "ort int8")
SAMPLES = (10.0, 30.0, 20.0, 50.0, 40.0)


def clip(index: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """frames uint8 (2,S,S,3), truth (2,S,S), logits of eager (2,S,S): a disc that moves."""
    rng = np.random.default_rng(index)
    ys, xs = np.mgrid[:side, :side] / side
    frames, truth, logits = [], [], []
    for k in range(2):
        distance = np.hypot(ys - 0.3 - 0.05 * index % 0.4, xs - 0.3 - 0.3 * k)
        truth.append(distance < 0.2)
        logits.append(20 * (0.21 - distance))
        color = np.stack([ys, xs, distance], -1) * 200 + rng.integers(0, 40, (side, side, 3))
        frames.append(color.astype(np.uint8))
    return np.stack(frames), np.stack(truth), np.stack(logits).astype(np.float32)


def disturbed(logits: np.ndarray, seed: int) -> np.ndarray:
    """The logits with noise that grows with the seed."""
    noise = np.random.default_rng(seed).normal(size=logits.shape)
    return (logits + 0.1 * seed * noise).astype(np.float32)


def sample_row(
    name: str, dataset: str, eager: np.ndarray, logits: np.ndarray, truth: np.ndarray, speed: float
) -> Row:
    """Scores and parity of clips (N,2,S,S); speed divides the latencies."""
    flat = (-1, *eager.shape[-2:])
    reference = logits is eager
    meter = MarginMeter()
    meter.add(eager.reshape(flat), logits.reshape(flat))
    return Row(
        backend=name,
        precision="fp32",
        name=name,
        dataset=dataset,
        latency=LatencyResult(tuple(s / speed for s in SAMPLES), 1),
        speedup=speed,
        score=score_videos(zip(logits, truth, strict=True)),
        size_mb=50.0 / speed,
        parity=None if reference else parity(eager.reshape(flat), logits.reshape(flat)),
        margin=None if reference else meter.result(),
        peak_memory_mib=1330.0 if reference else None,
        time_split=TimeSplit(2.0, 6.0, 30.0 / speed, 1.0) if speed < 3 else None,
    )


def sample_report(
    *,
    n_clips: int = 2,
    side: int = 64,
    n_backends: int = 2,
    datasets: tuple[str, ...] = ("scenes",),
) -> Report:
    """A row for eager and each backend, two frames a clip, a section of each kind, two checks."""
    rows: list[Row] = []
    frames: list[ReportFrame] = []
    names = BACKENDS[:n_backends]
    for d, dataset in enumerate(datasets):
        clips = [clip(10 * d + i, side) for i in range(n_clips)]
        truth, eager = np.stack([c[1] for c in clips]), np.stack([c[2] for c in clips])
        ours = {name: disturbed(eager, i) for i, name in enumerate(names, start=1)}
        rows.append(sample_row("eager fp32", dataset, eager, eager, truth, 1.0))
        rows += [
            sample_row(name, dataset, eager, logits, truth, 1.5 * i)
            for i, (name, logits) in enumerate(ours.items(), start=1)
        ]
        for i in range(n_clips):
            for k in range(2):
                frames.append(
                    ReportFrame(
                        name=f"{dataset}_{i}_{k}",
                        dataset=dataset,
                        frame=clips[i][0][k],
                        reference=eager[i, k],
                        masks={name: logits[i, k] > 0 for name, logits in ours.items()},
                        truth=truth[i, k],
                        waveform=tone(0.5),
                    )
                )
    return Report(
        title="demo against eager",
        note="a note",
        machine={"cpu": "some CPU", "cores": 2},
        versions={"python": "3.11"},
        protocol="avsbench",
        rows=tuple(rows),
        frames=tuple(frames),
        sections=(
            Section("merge", Table(("rewrite", "error"), (("conv + norm", "1e-14"),))),
            Section("receipts", "first\n\nsecond"),
            Section("sensitivity", Figure(png(), "a red pixel")),
        ),
        checks=(Check("M_J drop", "0.1", "at most 0.5", True),),
    )


def tone(amplitude: float) -> np.ndarray:
    """One second of 440 Hz, float32 (16000,)."""
    wave = amplitude * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    return wave.astype(np.float32)


def png() -> bytes:
    import io

    file = io.BytesIO()
    Image.new("RGB", (1, 1), (255, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def unpack(text: str, n: int) -> np.ndarray:
    """The viewer's decoder, written again: base64 of varints (length << 2 | value) -> (n,)."""
    import base64

    values: list[int] = []
    number = shift = 0
    for byte in base64.b64decode(text):
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values += [number & 3] * (number >> 2)
            number = shift = 0
    assert len(values) == n
    return np.array(values, np.uint8)


# ---- a browser through the W3C WebDriver protocol, with the standard library alone


def browser_missing() -> str | None:
    """What is to be installed, or None."""
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    return None if chrome and shutil.which("chromedriver") else "chromium chromium-driver"


class Browser:
    """One window of a headless Chromium."""

    def __init__(self, url: str, profile: Path, *more: str) -> None:
        chrome = shutil.which("chromium") or shutil.which("google-chrome")
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync "
            "--disable-dev-shm-usage --allow-file-access-from-files --hide-scrollbars"
        ).split()
        capabilities = {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {
                "binary": chrome,
                "args": [*flags, *more, f"--user-data-dir={profile}", "--window-size=1280,900"],
            },
        }
        found = _call(f"{url}/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = f"{url}/session/{found['sessionId']}"
        self.post("url", url="about:blank")
        self.requests()  # those of the browser's own first page

    def post(self, path: str, **body: Any) -> Any:
        return _call(f"{self.session}/{path}", body)

    def open(self, place: Path | str) -> None:
        """A file, or an address."""
        self.post("url", url=place if isinstance(place, str) else place.resolve().as_uri())

    def choose(self, css: str, file: Path) -> None:
        """A file in an <input type=file>, which may be hidden."""
        (element,) = self.post("element", using="css selector", value=css).values()
        self.post(f"element/{element}/value", text=str(file.resolve()))

    def js(self, script: str, *args: Any) -> Any:
        """The value of an expression."""
        return self.post("execute/sync", script=f"return ({script})", args=list(args))

    def until(self, script: str, expected: Any = True, *, seconds: float = 10) -> None:
        """Wait until the expression has the value; frames are decoded in the background."""
        for _ in range(round(20 * seconds)):
            if self.js(script) == expected:
                return
            time.sleep(0.05)
        raise AssertionError(f"{script} is {self.js(script)!r}, not {expected!r}")

    def keys(self, *keys: str) -> None:
        """Press keys where the focus is: characters, or WebDriver's code points."""
        steps = [{"type": kind, "value": k} for k in keys for kind in ("keyDown", "keyUp")]
        self.post("actions", actions=[{"type": "key", "id": "keyboard", "actions": steps}])

    def click(self, css: str) -> None:
        """A click with the pointer on the middle of the element, scrolled into view."""
        found = self.post("element", using="css selector", value=css)
        (element,) = found.values()
        # not to the edge, where what sticks to the top would lie over it
        self.post(
            "execute/sync",
            script="arguments[0].scrollIntoView({block: 'center'})",
            args=[found],
        )
        self.post(f"element/{element}/click")

    def cdp(self, command: str, **params: Any) -> Any:
        return self.post("goog/cdp/execute", cmd=command, params=params)

    def size(self, width: int, height: int) -> None:
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def media(self, **features: str) -> None:
        """prefers_color_scheme="dark" and the like."""
        found = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.cdp("Emulation.setEmulatedMedia", features=found)

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self.post("se/log", type=kind)

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, data: and blob: left out."""
        found = []
        for line in self.log("performance"):
            message = json.loads(line["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("data:", "blob:"))]

    def close(self) -> None:
        _call(self.session, None, method="DELETE")


@contextmanager
def open_browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """chromedriver on a free port, ended with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                if _call(f"{url}/status", None, method="GET")["ready"]:
                    break
            except OSError:
                time.sleep(0.1)
        browser = Browser(url, profile, *flags)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(timeout=30)


def _call(url: str, body: Mapping[str, Any] | None, *, method: str = "POST") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()[:600]) from None
