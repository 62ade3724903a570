"""A repository on the real tritonserver, by HTTP and gRPC, against the bundle's pack and a session."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from save_deploy.bundle import Manifest
from save_deploy.data.audio import read_waveform
from save_deploy.data.pictures import decode_frame, read_frame
from save_deploy.errors import BackendError
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.pipeline import Listener, SavePipeline, load
from save_deploy.runtime.triton.frame import mask_of
from save_deploy.runtime.triton.options import TritonOptions
from save_deploy.runtime.triton.remote import PROTOCOLS, Remote, tensors
from save_deploy.runtime.triton.repository import write_repository
from save_deploy.runtime.video.source import VideoSource
from tests.data.picture_files import png_header, saved, scene
from tests.runtime.films import tone, write_film
from tests.triton.server import Server, running, triton_files

InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    """A repository of a bundle, its server, and the bundle in this process."""

    bundle: Path
    repository: Path
    server: Server
    pipeline: SavePipeline

    def remote(self, protocol: str) -> Remote:
        return Remote(protocol, self.server.url(protocol))


@pytest.fixture(scope="module")
def served(bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("tritonclient.grpc")
    triton_files()
    folder = tmp_path_factory.mktemp("triton")
    write_repository(TritonOptions(bundle=bundle_fp32, out=folder / "repo", threads=1))
    with (
        running(folder / "repo", folder) as server,
        load(bundle_fp32, backend="onnxruntime", threads=1) as pipeline,
    ):
        yield Served(bundle_fp32, folder / "repo", server, pipeline)


@pytest.fixture(params=PROTOCOLS)
def remote(request: pytest.FixtureRequest, served: Served) -> Iterator[Remote]:
    with served.remote(request.param) as made:
        yield made


def picture(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A frame uint8 (H,W,3), and an input with the bytes of its PNG."""
    frame = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return frame, content(saved(Image.fromarray(frame), "PNG"))


def content(data: bytes) -> np.ndarray:
    return np.array([data], object)


def mask_in(output: np.ndarray) -> np.ndarray:
    """bool (H,W) of the PNG in an output."""
    return np.asarray(Image.open(io.BytesIO(output[0])))


def sound(seed: int, n: int = 16_000) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


def verify_client(served: Served, bundle: Path) -> subprocess.CompletedProcess[str]:
    """The client of the repository, as a user starts it."""
    server = served.server
    command = [
        sys.executable, served.repository / "verify_client.py", bundle, "--http", server.http,
        "--grpc", server.grpc,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.thorough
def test_conformance_pack(served: Served) -> None:
    done = verify_client(served, served.bundle)
    assert done.returncode == 0, done.stderr
    said = [line.split(", mask")[0].split(":")[:2] for line in done.stdout.splitlines()]
    models = ["save_audio, save_model", "save", "save_frame", "save_stream", "save_video"]
    assert said == [[protocol, f" {model}"] for protocol in PROTOCOLS for model in models]
    agreements = re.findall(r"mask agreement ([\d.]+)", done.stdout)
    assert agreements == ["1.00000"] * 10


def test_conformance_pack_that_differs(served: Served, tmp_path: Path) -> None:
    """The twin: one expected mask is another one."""
    bundle = tmp_path / "bundle"
    shutil.copytree(served.bundle, bundle)
    mask = bundle / "conformance/normal_mask.png"
    decided = np.asarray(Image.open(mask))
    Image.fromarray(np.where(decided == 128, 128, 255 - decided).astype(np.uint8)).save(mask)
    done = verify_client(served, bundle)
    assert done.returncode == 2
    assert done.stderr.startswith("error: masks differ from the conformance pack")


def test_whole_is_the_session(served: Served, remote: Remote) -> None:
    golden = read_golden(served.bundle, Manifest.read(served.bundle))
    for i in range(len(golden.image)):
        inputs = {"image": golden.image[i : i + 1], "waveform": golden.answers.waveform[i : i + 1]}
        found = remote.infer("save", inputs, ["mask_logits"])["mask_logits"]
        heard = served.pipeline.audio.infer({"waveform": inputs["waveform"]})
        expected = served.pipeline.model.infer({"image": inputs["image"], **heard})
        assert np.array_equal(found, expected["mask_logits"])


def test_sound_is_embedded_once(served: Served, remote: Remote) -> None:
    """11 requests of three sounds: the cache answers the other eight. A second time all of them."""

    def ask(seeds: list[int]) -> tuple[int, int]:
        before = [count("save_audio") for count in counts]
        for k in seeds:
            image = np.full((1, 224, 224, 3), k, np.uint8)  # other pictures, the same sound
            inputs = {"image": image, "waveform": sound(k % 3 + SEEDS[remote.protocol])[None]}
            remote.infer("save", inputs, ["mask_logits"])
        return tuple(count("save_audio") - n for count, n in zip(counts, before, strict=True))

    server = served.server
    counts = [
        lambda model: server.count("nv_inference_exec_count", model),
        lambda model: server.count("nv_cache_num_hits_per_model", model),
    ]
    assert ask(list(range(11))) == (3, 8)
    assert ask([0, 1, 2]) == (0, 3)


SEEDS = {"http": 100, "grpc": 200}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_frame(served: Served, remote: Remote, kind: str) -> None:
    """The mask of a file as the pipeline gives it, as a PNG and as run lengths."""
    data = saved(scene((130, 70)), kind)
    expected = served.pipeline(decode_frame(data), sound(1))
    inputs = {"picture": content(data), "waveform": sound(1)}
    found = remote.infer("save_frame", inputs, ["mask_png", "mask_rle"])
    as_png = np.asarray(Image.open(io.BytesIO(found["mask_png"][0])))
    assert as_png.dtype == bool and np.array_equal(as_png, expected)
    assert np.array_equal(mask_of(json.loads(found["mask_rle"][0])), expected)


def test_stream_hears_each_second_once(served: Served, remote: Remote) -> None:
    """Two sources at once, 30 frames each with 50 ms of their own sound: until a second is whole, its
    first piece is heard; then the last whole second."""
    executed = served.server.count("nv_inference_exec_count", "save_audio")
    seed = SEEDS[remote.protocol]
    sounds = {key: sound(seed + key, 24_000) for key in (7, 8)}
    frames = [picture(k, (40, 30)) for k in range(30)]
    embed = served.pipeline.embed
    for k, (frame, data) in enumerate(frames):
        for key, whole in sounds.items():
            piece = whole[800 * k : 800 * (k + 1)]
            found = remote.infer(
                "save_stream", {"picture": data, "waveform": piece}, ["mask_png", "seconds_heard"],
                sequence_id=key, sequence_start=k == 0, sequence_end=k == 29,
            )  # fmt: skip
            heard = whole[:16_000] if k >= 19 else whole[:800]
            assert np.array_equal(
                mask_in(found["mask_png"]), served.pipeline.mask(frame, embed(heard))
            )
            assert found["seconds_heard"].tolist() == [1 if k >= 19 else 0]
    assert served.server.count("nv_inference_exec_count", "save_audio") - executed == 4


def test_stream_begins_anew(served: Served, remote: Remote) -> None:
    """After its end, and where a start comes without one."""
    _, data = picture(3, (40, 30))

    def ask(seed: int, n: int, **flags: bool) -> list[int]:
        inputs = {"picture": data, "waveform": sound(seed, n)}
        outputs = ["seconds_heard"]
        found = remote.infer("save_stream", inputs, outputs, sequence_id=5, **flags)
        return found["seconds_heard"].tolist()

    assert ask(1, 16_000, sequence_start=True) == [1]
    assert ask(2, 15_999) == [1]
    assert ask(3, 1, sequence_end=True) == [2]
    assert ask(1, 11_025, sequence_start=True) == [0]  # not a second at 11 kHz
    assert ask(1, 800, sequence_start=True, sequence_end=True) == [0]
    with pytest.raises(BackendError, match="must specify the START flag"):
        ask(1, 800)


def test_video(served: Served, remote: Remote, tmp_path: Path) -> None:
    """Every frame of a film with the second of sound under it, in order."""
    film = write_film(tmp_path / "film.mp4", seconds=3, fps=5, sound=tone(3, (0, 2)))
    source = VideoSource(film)
    listener = Listener(served.pipeline, source.sound_seconds())
    expected = [(f.time_s, listener(f.picture, f.time_s)) for f in source.frames()]
    answers = remote.responses(
        "save_video", {"film": content(film.read_bytes())}, ["time_s", "mask_rle"]
    )
    found = [(a["time_s"][0], mask_of(json.loads(a["mask_rle"][0]))) for a in answers]
    assert [time_s for time_s, _ in found] == [time_s for time_s, _ in expected]
    assert len(found) == 15
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))


def test_video_rate(remote: Remote, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", seconds=2, fps=10, sound=tone(2, (0,)))
    inputs = {"film": content(film.read_bytes()), "fps": np.array([2], np.float32)}
    answers = remote.responses("save_video", inputs, ["time_s"])
    assert [a["time_s"][0] for a in answers] == pytest.approx([0.0, 0.5, 1.0, 1.5])


GOOD = {"picture": content(saved(scene((60, 40)), "PNG")), "waveform": sound(0)}
BOMB = content(png_header(60_000, 60_000) + b"\0" * 64)
NAN = np.where(np.arange(16_000) == 5, np.nan, sound(0)).astype(np.float32)
BAD_FRAMES = {
    "no picture": ({"picture": content(b"")}, "image cannot be read"),
    "text": ({"picture": content(b"hello")}, "neither PNG nor JPEG"),
    "cut picture": ({"picture": content(GOOD["picture"][0][:300])}, "image cannot be read"),
    "bomb": ({"picture": BOMB}, "image of a size that cannot be used"),
    "not a number": ({"waveform": NAN}, "sound contains NaN or infinite samples"),
    "too loud": ({"waveform": 1000 * sound(0)}, "sound is far too loud"),
    "no sound": ({"waveform": sound(0, 0)}, "sound without samples"),
}


@pytest.mark.parametrize("what", BAD_FRAMES)
@pytest.mark.parametrize("model", ["save_frame", "save_stream"])
def test_bad_frame(served: Served, remote: Remote, model: str, what: str) -> None:
    """An error of the client's with our text; the next request is answered as ever."""
    changed, text = BAD_FRAMES[what]
    more = {"sequence_id": 9, "sequence_start": True, "sequence_end": True}
    flags = more if model == "save_stream" else {}
    with pytest.raises(InferenceServerException, match=text) as caught:
        asked(remote, model, {**GOOD, **changed}, flags)
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert "Traceback" not in str(caught.value)
    assert served.server.alive
    expected = served.pipeline(decode_frame(GOOD["picture"][0]), GOOD["waveform"])
    found = remote.infer(model, GOOD, ["mask_png"], **flags)
    assert np.array_equal(mask_in(found["mask_png"]), expected)


def asked(remote: Remote, model: str, inputs: dict[str, np.ndarray], flags: dict[str, Any]) -> Any:
    """With the library's own error, which has the status."""
    return remote.client.infer(model, tensors(remote.library, inputs), **flags)


@pytest.mark.parametrize(
    ("model", "inputs", "text"),
    [
        ("save", {"image": np.zeros((1, 9, 9, 3), "u1"), "waveform": sound(0)[None]}, "shape"),
        ("save", {"image": np.zeros((1, 224, 224, 3), "f4"), "waveform": sound(0)[None]}, "type"),
        ("save", {"image": np.zeros((1, 224, 224, 3), "u1")}, "inputs"),
        ("save_frame", {**GOOD, "waveform": sound(0)[None]}, "shape"),
        ("save_frame", {**GOOD, "picture": content(b"") .repeat(2)}, "shape"),
    ],
)  # fmt: skip
def test_malformed_tensor(
    served: Served, remote: Remote, model: str, inputs: dict[str, np.ndarray], text: str
) -> None:
    """Refused by Triton itself, which knows the shapes from the config."""
    with pytest.raises(InferenceServerException, match=text) as caught:
        asked(remote, model, inputs, {})
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert served.server.alive


def films(folder: Path) -> dict[str, tuple[bytes, str]]:
    whole = write_film(folder / "whole.mp4", sound=tone(3, (0,))).read_bytes()
    mkv = write_film(folder / "whole.mkv", sound=tone(3, (0,))).read_bytes()
    silent = write_film(folder / "silent.mp4", sound=None).read_bytes()
    return {
        "cut mp4": (whole[: len(whole) // 2], "cannot be read"),
        "cut mkv": (mkv[: len(mkv) // 2], "the film is truncated"),
        "text": (b"hello", "video cannot be read"),
        "playlist": (b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", "video cannot be read"),
        "nothing": (b"", "video cannot be read"),
        "no sound": (silent, "no sound in the film"),
    }


@pytest.mark.parametrize("what", ["cut mp4", "cut mkv", "text", "playlist", "nothing", "no sound"])
def test_bad_film(served: Served, remote: Remote, tmp_path: Path, what: str) -> None:
    data, text = films(tmp_path)[what]
    with pytest.raises(BackendError, match=text) as caught:
        list(remote.responses("save_video", {"film": content(data)}, ["mask_rle"]))
    assert "save-deploy-film" not in str(caught.value)
    assert served.server.alive


def test_clients_at_once(served: Served) -> None:
    """Eight clients for two seconds get what one client gets, and nothing is lost."""
    asked_n, answered_n = at_once(served, seconds=2)
    assert asked_n == answered_n >= 8


@pytest.mark.thorough
def test_clients_at_once_for_a_minute(served: Served) -> None:
    asked_n, answered_n = at_once(served, seconds=60)
    assert asked_n == answered_n >= 8


def at_once(served: Served, seconds: float) -> tuple[int, int]:
    """Requests sent and answered rightly, by eight clients that share four pairs of files."""
    pairs = [
        {"picture": content(saved(scene((60 + 10 * k, 40)), "PNG")), "waveform": sound(k)}
        for k in range(4)
    ]
    with served.remote("grpc") as single:
        expected = [single.infer("save_frame", pair, ["mask_rle"])["mask_rle"][0] for pair in pairs]
    assert len(set(expected)) == 4
    sent, right, until = [0] * 8, [0] * 8, time.monotonic() + seconds

    def client(n: int) -> None:
        with served.remote(PROTOCOLS[n % 2]) as remote:
            while time.monotonic() < until:
                k = (sent[n] + n) % 4
                sent[n] += 1
                found = remote.infer("save_frame", pairs[k], ["mask_rle"])["mask_rle"][0]
                right[n] += found == expected[k]

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(sent) > 0
    return sum(sent), sum(right)


def test_client(served: Served, tmp_path: Path) -> None:
    """client.py, at the address of this server: the mask of the pipeline."""
    text = (served.repository / "client.py").read_text()
    assert "localhost:8000" in text
    client = tmp_path / "client.py"
    client.write_text(text.replace("localhost:8000", served.server.http))
    files = served.bundle / "conformance"
    command = [sys.executable, client, files / "normal.png", files / "normal.wav", "mask.png"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=60)
    expected = served.pipeline(
        read_frame(files / "normal.png"), read_waveform(files / "normal.wav")
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected)


@pytest.mark.thorough
def test_python_engine(bundle_fp32: Path, tmp_path: Path) -> None:
    """Both graphs in sessions of this package: eager's answers, and our text for sound that is NaN."""
    triton_files()
    options = TritonOptions(bundle=bundle_fp32, out=tmp_path / "repo", threads=1, engine="python")
    write_repository(options)
    golden = read_golden(bundle_fp32, Manifest.read(bundle_fp32))
    with running(tmp_path / "repo", tmp_path) as server, Remote("grpc", server.grpc) as remote:
        inputs = {"image": golden.image[:1], "waveform": golden.answers.waveform[:1]}
        found = remote.infer("save", inputs, ["mask_logits"])["mask_logits"]
        assert np.abs(found[0, 0] - golden.answers.mask_logits[0]).max() < 1e-3
        with pytest.raises(InferenceServerException, match="NaN or infinite") as caught:
            asked(remote, "save", {**inputs, "waveform": NAN[None]}, {})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert server.alive
