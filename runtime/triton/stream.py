"""Model save_stream: a live source, with one request per frame and the sound since the last frame.

Requests of one source form a Triton sequence, which the server sends to one instance of the model.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import WINDOW_SAMPLES, Arrays, GraphSpec, TensorSpec
from save_deploy.data.audio import Waveform, second
from save_deploy.data.pictures import decode_frame
from save_deploy.errors import DataError
from save_deploy.runtime.inputs import as_sound, check_window
from save_deploy.runtime.pipeline import SavePipeline
from save_deploy.runtime.triton.frame import MASKS, PICTURE, encoded
from save_deploy.runtime.triton.python_model import OneAnswer, Request

MAX_SEQUENCES = 1024  # per instance
IDLE_S = 60  # Triton ends an idle sequence after this time without a message to the model
SOUND = TensorSpec(
    "waveform", "float32", (-1,), "16 kHz mono, -1..1: the sound since the last frame"
)
HEARD = TensorSpec("seconds_heard", "int32", (1,), "whole seconds of sound so far")
SPEC = GraphSpec((PICTURE, SOUND), (*MASKS, HEARD))
BATCHING = (
    "sequence_batching {",
    f"  max_sequence_idle_microseconds: {IDLE_S * 1_000_000}",
    "  oldest { max_candidate_sequences: 64 }",
    "}",
)


@dataclass
class Hearing:
    """Sound of one source, received in pieces.

    An embedding is computed whenever a second of sound is complete. Before that, the first piece is
    padded with silence.
    """

    pieces: list[Waveform] = field(default_factory=list)
    n_samples: int = 0
    seconds: int = 0
    embedding: NDArray[np.float32] | None = None
    used_s: float = 0.0  # time.monotonic() of the last request

    def hear(self, pipeline: SavePipeline, samples: Waveform) -> NDArray[np.float32]:
        """Add samples (n,) and return the embedding (1,128) for the frame of the same request.

        Raises DataError for no sound and for more than a second of it.
        """
        piece = as_sound(samples)
        if piece.size > WINDOW_SAMPLES:
            raise DataError(
                "too much sound for one frame",
                got=f"{piece.size} samples",
                expected=f"at most {WINDOW_SAMPLES}, which is one second",
            )
        check_window(piece)
        self.pieces.append(piece)
        self.n_samples += piece.size
        if self.n_samples >= WINDOW_SAMPLES:
            sound = np.concatenate(self.pieces)
            self.embedding = pipeline.embed(sound[:WINDOW_SAMPLES])
            self.seconds += 1
            self.pieces, self.n_samples = [sound[WINDOW_SAMPLES:]], sound.size - WINDOW_SAMPLES
        elif self.embedding is None:
            self.embedding = pipeline.embed(second(piece))
        return self.embedding


class StreamModel(OneAnswer):
    """Sequences of one instance, ordered by their last use."""

    def start(self, arguments: Mapping[str, str]) -> None:
        self.graphs = self.pipeline()
        self.sequences: OrderedDict[object, Hearing] = OrderedDict()

    def answer(self, request: Request) -> Arrays:
        """Mask a frame. Raises DataError for an invalid frame or sound; the sequence continues."""
        flags, key = request.flags(), request.correlation_id()
        if flags & self.server.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self.sequences[key] = Hearing()
        ends = flags & self.server.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
        hearing = self.sequences.pop(key, None) or Hearing()
        if not ends:
            self._keep(key, hearing)
        embedding = hearing.hear(self.graphs, self.array(request, "waveform"))
        frame = decode_frame(self.content(request, "picture"))
        wanted = request.requested_output_names()
        outputs = encoded(self.graphs.mask(frame, embedding), wanted)
        if HEARD.name in wanted:
            outputs[HEARD.name] = np.array([hearing.seconds], np.int32)
        return outputs

    def _keep(self, key: object, hearing: Hearing) -> None:
        """Store a sequence as the last used one, and remove those that Triton ended as idle."""
        hearing.used_s = time.monotonic()
        self.sequences[key] = hearing
        while len(self.sequences) > 1:
            oldest = next(iter(self.sequences.values()))
            idle = hearing.used_s - oldest.used_s > 2 * IDLE_S
            if not idle and len(self.sequences) <= MAX_SEQUENCES:
                return
            self.sequences.popitem(last=False)
