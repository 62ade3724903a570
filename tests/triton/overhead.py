"""What a call through the server costs over the session, interleaved, and eight clients at once:

python -m tests.triton.overhead BUNDLE [--rounds 40] [--seconds 60]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from save_deploy.bundle import Manifest
from save_deploy.data.pictures import decode_frame
from save_deploy.machine import cpu_name
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.pipeline import load
from save_deploy.runtime.triton.frame import png_of
from save_deploy.runtime.triton.options import TritonOptions
from save_deploy.runtime.triton.remote import PROTOCOLS, Remote
from save_deploy.runtime.triton.repository import write_repository
from tests.triton.server import Server, running

FRAME = (1280, 720)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        options = TritonOptions(bundle=given.bundle, out=folder / "repo", threads=1)
        write_repository(options)
        with running(folder / "repo", folder) as server:
            print(f"{cpu_name()}, 1 thread, {FRAME[0]}x{FRAME[1]} frames")
            for line in overhead(given.bundle, server, given.rounds):
                print(line, flush=True)
            print(clients(given.bundle, server, given.seconds))


def inputs_of(bundle: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Inputs of save_model, those of save_frame, and the frame."""
    golden = read_golden(bundle, Manifest.read(bundle))
    model = {"image": golden.image[:1], "audio_embedding": golden.answers.audio_embedding[:1]}
    frame = np.asarray(Image.fromarray(golden.image[0]).resize(FRAME))
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    picture = np.array([file.getvalue()], object)
    return model, {"picture": picture, "waveform": golden.answers.waveform[0]}, frame


def overhead(bundle: Path, server: Server, rounds: int) -> list[str]:
    """Median times, each call once a round."""
    model, whole, _ = inputs_of(bundle)
    http, grpc = (Remote(protocol, server.url(protocol)) for protocol in PROTOCOLS)
    with http, grpc, load(bundle, backend="onnxruntime", threads=1) as pipeline:
        sound = pipeline.embed(whole["waveform"])
        pixels: Callable[[], Any] = lambda: png_of(
            pipeline.mask(decode_frame(whole["picture"][0]), sound)
        )
        calls: dict[str, Callable[[], Any]] = {
            "session": lambda: pipeline.model.infer(model),
            "save_model, gRPC": lambda: grpc.infer("save_model", model, ["mask_logits"]),
            "save_model, HTTP": lambda: http.infer("save_model", model, ["mask_logits"]),
            "JPEG to PNG in this process": pixels,
            "save_frame, gRPC": lambda: grpc.infer("save_frame", whole, ["mask_png"]),
            "save_frame, HTTP": lambda: http.infer("save_frame", whole, ["mask_png"]),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(rounds + 3):
            for name, call in calls.items():
                begun = time.perf_counter()
                call()
                if i >= 3:
                    times[name].append(1000 * (time.perf_counter() - begun))
    return [
        f"{name:28} p50 {np.percentile(ms, 50):6.1f} ms, p90 {np.percentile(ms, 90):6.1f} ms"
        for name, ms in times.items()
    ]


def clients(bundle: Path, server: Server, seconds: float) -> str:
    """Eight at once, half over each protocol, each answer against the single client's."""
    _, whole, _ = inputs_of(bundle)
    with Remote("grpc", server.grpc) as single:
        expected = single.infer("save_frame", whole, ["mask_png"])["mask_png"][0]
    sent, right, until = [0] * 8, [0] * 8, time.monotonic() + seconds

    def client(n: int) -> None:
        protocol = PROTOCOLS[n % 2]
        with Remote(protocol, server.url(protocol)) as remote:
            while time.monotonic() < until:
                sent[n] += 1
                right[n] += (
                    remote.infer("save_frame", whole, ["mask_png"])["mask_png"][0] == expected
                )

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = sum(sent) / seconds
    return f"8 clients for {seconds:g} s: {sum(sent)} sent, {sum(right)} right, {rate:.1f} a second"


if __name__ == "__main__":
    main()
