"""Model save_video: bytes of a video file -> one response per frame."""

from __future__ import annotations

import base64
import binascii
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from save_deploy.bundle import Arrays, GraphSpec, TensorSpec
from save_deploy.errors import DataError
from save_deploy.runtime.pipeline import Listener
from save_deploy.runtime.triton.frame import MASKS, encoded
from save_deploy.runtime.triton.python_model import PythonModel, Request
from save_deploy.runtime.video.options import Section
from save_deploy.runtime.video.source import VideoSource

FILM = TensorSpec("film", "bytes", (1,), "bytes of a video file, or a base64 data: URI")
FPS = TensorSpec("fps", "float32", (1,), "upper limit of frames per second; omitted: all frames")
TIME = TensorSpec("time_s", "float64", (1,), "time of the frame in seconds")
SPEC = GraphSpec((FILM, FPS), (TIME, MASKS[1]))
DECOUPLED = ("model_transaction_policy { decoupled: true }",)
_DATA = b"data:"


class FilmModel(PythonModel):
    """Masks one video at a time; stops when the client disconnects."""

    def start(self, arguments: Mapping[str, str]) -> None:
        self.graphs = self.pipeline()

    def execute(self, requests: list[Request]) -> None:
        """Send each response when it is ready (decoupled model)."""
        final = self.server.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        for request in requests:
            sender = request.get_response_sender()
            try:
                for outputs in self.answers(request):
                    if sender.is_cancelled():
                        break
                    sender.send(self.response(outputs))
            except Exception as error:  # one bad video must not end the model
                sender.send(self.failed(error), flags=final)
            else:
                sender.send(flags=final)

    def answers(self, request: Request) -> Iterator[Arrays]:
        """Yield the outputs of each frame.

        Raises DataError for bytes that are not a video, and after the last frame of a truncated one.
        """
        wanted = request.requested_output_names()
        with _stored(film_of(self.content(request, "film"))) as path:
            source = VideoSource(path, Section(fps=self._fps(request)))
            if not source.has_sound:
                raise DataError(
                    "no sound in the film", expected="an audio stream, even a silent one"
                )
            listener, end_s = Listener(self.graphs, source.sound_seconds()), 0.0
            for frame in source.frames():
                end_s = frame.time_s
                outputs = encoded(listener(frame.picture, frame.time_s), wanted)
                if TIME.name in wanted:
                    outputs[TIME.name] = np.array([frame.time_s])
                yield outputs
            check_whole(source, end_s)

    def _fps(self, request: Request) -> float | None:
        tensor: Any = self.server.get_input_tensor_by_name(request, FPS.name)
        return None if tensor is None else float(tensor.as_numpy().reshape(-1)[0])


@contextmanager
def _stored(content: bytes) -> Iterator[Path]:
    """Yield a temporary file with this content. Errors do not contain its path."""
    with tempfile.TemporaryDirectory(prefix="save-deploy-film-") as folder:
        path = Path(folder) / "film"
        path.write_bytes(content)
        try:
            yield path
        except DataError as error:
            got = error.got.replace(f"file:{path}", "the film").replace(str(path), "the film")
            raise DataError(
                error.what, got=got, expected=error.expected, hint=error.hint
            ) from error


def film_of(content: bytes) -> bytes:
    """Return the video, decoded if it is a data: URI (for text requests). Raises DataError."""
    if not content.startswith(_DATA):
        return content
    try:
        return base64.b64decode(content.partition(b",")[2], validate=True)
    except binascii.Error as error:
        raise DataError(
            "film cannot be read", got=f"a data: URI: {error}", expected="data:video/mp4;base64,..."
        ) from error


def check_whole(source: VideoSource, end_s: float) -> None:
    """Raise DataError if the frames end at least a second before the stated length of the video."""
    length = source.length_s or 0.0
    last_s = 1 / min(float(source.rate), source.section.most_fps or math.inf)
    if source.damage["video"].broken_off or end_s + last_s < length - 1:
        raise DataError(
            "the film is truncated",
            got=f"frames for {end_s:.1f} s",
            expected=f"{length:.1f} s" if length else "a complete file",
        )
