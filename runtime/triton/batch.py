"""Model save_batch: requests that wait at the same time, in the bundle's graphs with fixed batches.

Triton's dynamic batcher needs a batch dimension that varies, which the graphs do not have. It fills
this model instead, which divides the frames among save_model, save_model_x8 ... of the same server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.runtime.inputs import as_embeddings, as_images
from save_deploy.runtime.triton.python_model import PythonModel, Request, Response

# Clients that were answered together ask again together; a frame takes much longer than this wait.
WAIT_US = 2000
Frames = tuple[NDArray[np.uint8], NDArray[np.float32]]  # images (F,S,S,3), embeddings (F,128)


def batching(batches: Iterable[int]) -> tuple[str, ...]:
    """Return the lines of config.pbtxt that make Triton collect requests for these batches."""
    return (
        "dynamic_batching {",
        f"  preferred_batch_size: {sorted(batches)}",
        f"  max_queue_delay_microseconds: {WAIT_US}",
        "}",
    )


def without_batch(spec: GraphSpec) -> GraphSpec:
    """Return the spec with the shapes of one frame; a request has the number of frames in front."""
    one = lambda tensors: tuple(replace(t, shape=t.shape[1:]) for t in tensors)
    return GraphSpec(one(spec.inputs), one(spec.outputs))


class BatchModel(PythonModel):
    """Masks the frames of all requests of a call; every request gets its own logits or error."""

    def start(self, arguments: Mapping[str, str]) -> None:
        self.graphs = self.pipeline(self.manifest.batches)

    def execute(self, requests: list[Request]) -> list[Response]:
        responses: dict[int, Response] = {}
        frames: dict[int, Frames] = {}
        for i, request in enumerate(requests):
            try:
                frames[i] = self._frames(request)
            except Exception as error:  # an error of one request must not end the model
                responses[i] = self.failed(error)
        try:
            answers = self._masked(list(frames.values())) if frames else []
            responses |= {i: self.response(a) for i, a in zip(frames, answers, strict=True)}
        except Exception as error:
            responses |= {i: self.failed(error) for i in frames}
        return [responses[i] for i in range(len(requests))]

    def _frames(self, request: Request) -> Frames:
        images = as_images(self.array(request, "image"), self.manifest.config.res)
        return images, as_embeddings(self.array(request, "audio_embedding"), len(images))

    def _masked(self, frames: Sequence[Frames]) -> list[Arrays]:
        images, embeddings = map(np.concatenate, zip(*frames, strict=True))
        logits = self.graphs.run(images, embeddings)[:, None]  # (F,1,S,S)
        ends = np.cumsum([len(own) for own, _ in frames])[:-1]
        return [{"mask_logits": own} for own in np.split(logits, ends)]
