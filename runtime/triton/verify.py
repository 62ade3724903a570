"""Run a bundle's conformance pack on a Triton server and compare with the eager model's outputs."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Manifest
from save_deploy.data.audio import Waveform, read_waveform, second
from save_deploy.data.log_mel import SAMPLE_RATE_HZ
from save_deploy.data.pictures import decode_frame, read_frame
from save_deploy.data.transforms import Frame, Mask, resize_frame
from save_deploy.errors import SaveDeployError
from save_deploy.runtime.enlarge import at_frame_size
from save_deploy.runtime.golden import FilePair, Pack, read_pack
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.session import as_batch
from save_deploy.runtime.triton.frame import mask_of
from save_deploy.runtime.triton.remote import PROTOCOLS, Remote, RemoteGraph
from save_deploy.runtime.verify import Masks, check_answer, check_conformance

PORTS = {"http": 8000, "grpc": 8001}


def main() -> None:
    """Entry point of verify_client.py. Exit codes are those of save-deploy verify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="source bundle of the repository")
    for protocol, port in PORTS.items():
        parser.add_argument(f"--{protocol}", default=f"localhost:{port}", metavar="HOST:PORT")
    given = parser.parse_args()
    try:
        for protocol in PROTOCOLS:
            with Remote(protocol, getattr(given, protocol)) as remote:
                for line in verify_server(given.bundle, remote):
                    print(f"{protocol}: {line}", flush=True)
    except SaveDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def verify_server(bundle: Path, remote: Remote) -> Iterator[str]:
    """Yield one line per model that conforms.

    Raises ParityError for a model that does not, BackendError for a model that does not respond.
    """
    manifest = Manifest.read(bundle)
    pack = read_pack(bundle, manifest)
    parts = SavePipeline(
        config=manifest.config,
        precision=manifest.precision["precision"],
        audio=RemoteGraph(remote, "save_audio", manifest.audio),
        model=RemoteGraph(remote, "save_model", manifest.model),
    )
    found = check_conformance(pack, parts)
    yield (
        f"save_audio, save_model: {found.n_cases} files, logits within {found.logits_err:.1e}, "
        f"mask agreement {found.mask_agreement:.5f}"
    )
    for name, ask in _ways(manifest, pack, remote):
        masks = Masks(pack)
        for i, pair in enumerate(pack.pairs):
            masks.add(pair, ask(i, pair))
        yield f"{name}: {len(pack.pairs)} files, mask agreement {masks.agreement():.5f}"


def _ways(
    manifest: Manifest, pack: Pack, remote: Remote
) -> Iterator[tuple[str, Callable[[int, FilePair], Mask]]]:
    """Yield each model that returns masks, with a function that requests the mask of a case."""

    def whole(i: int, pair: FilePair) -> Mask:
        frame = read_frame(pair.frame)
        image = as_batch(resize_frame(frame, manifest.config.res))
        inputs = {"image": image, "waveform": as_batch(_sound(pair))}
        logits = remote.infer("save", inputs, ["mask_logits"])["mask_logits"][0, 0]
        check_answer(pack, i, "mask_logits", logits)
        return at_frame_size(logits, frame.shape[:2]) > 0

    def frame(i: int, pair: FilePair) -> Mask:
        inputs = {"picture": _bytes(pair.frame.read_bytes()), "waveform": _sound(pair)}
        return _mask_of_png(remote.infer("save_frame", inputs, ["mask_png"])["mask_png"][0])

    def stream(i: int, pair: FilePair) -> Mask:
        """Send one picture for a second at 20 frames/s; the last frame uses the whole second."""
        picture, pieces, found = _bytes(pair.frame.read_bytes()), np.split(_sound(pair), 20), b""
        for k, piece in enumerate(pieces):
            inputs = {"picture": picture, "waveform": piece}
            ends = {"sequence_start": k == 0, "sequence_end": k == len(pieces) - 1}
            outputs = remote.infer("save_stream", inputs, ["mask_png"], sequence_id=i + 1, **ends)
            found = outputs["mask_png"][0]
        return _mask_of_png(found)

    def film(i: int, pair: FilePair) -> Mask:
        made = _bytes(film_of(read_frame(pair.frame), _sound(pair)))
        answers = remote.responses("save_video", {"film": made}, ["time_s", "mask_rle"])
        return mask_of(json.loads(next(answers)["mask_rle"][0]))

    yield "save", whole
    yield "save_frame", frame
    yield "save_stream", stream
    yield "save_video", film


def _sound(pair: FilePair) -> Waveform:
    return second(read_waveform(pair.sound))


def _bytes(content: bytes) -> NDArray[np.object_]:
    return np.array([content], object)


def _mask_of_png(content: bytes) -> Mask:
    return decode_frame(content)[..., 0] > 0


def film_of(frame: Frame, waveform: Waveform) -> bytes:
    """Return a lossless Matroska file of one frame uint8 (H,W,3) and its sound (n,) at 16 kHz."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        video: Any = container.add_stream("ffv1", rate=1)
        video.height, video.width, video.pix_fmt = *frame.shape[:2], "bgr0"
        audio: Any = container.add_stream("pcm_f32le", rate=SAMPLE_RATE_HZ, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
        sound = av.AudioFrame.from_ndarray(waveform[None], "flt", "mono")
        sound.sample_rate = SAMPLE_RATE_HZ
        for stream, one in ((video, picture), (audio, sound)):
            one.pts = 0
            container.mux(stream.encode(one))
            container.mux(stream.encode(None))
    return file.getvalue()
