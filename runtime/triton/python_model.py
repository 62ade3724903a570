"""What the Python models of a repository share: requests in, responses or errors with our text out.

Triton's Python backend makes one object of a model per instance, calls initialize once and execute with
lists of requests. Its module triton_python_backend_utils exists only inside the server; a model gets it
as `server`.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays, GraphSpec, Manifest
from save_deploy.errors import BackendError, DataError, SaveDeployError
from save_deploy.runtime.pipeline import SavePipeline

Request = Any  # of triton_python_backend_utils, as Response
Response = Any


class PythonModel(ABC):
    """One instance of a model. arguments: what Triton says of it."""

    server: Any  # the module triton_python_backend_utils

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Reads manifest.json beside model.py. Raises errors that Triton prints, and then it does not
        serve the model."""
        self.folder = Path(arguments["model_repository"]) / arguments["model_version"]
        self.manifest = Manifest.read(self.folder)
        self.start(arguments)

    @abstractmethod
    def start(self, arguments: Mapping[str, str]) -> None:
        """Open what answers need."""

    @abstractmethod
    def execute(self, requests: list[Request]) -> list[Response] | None:
        """Return the responses, or None where they were sent already. Raises nothing."""

    def response(self, outputs: Arrays) -> Response:
        tensors = [self.server.Tensor(name, array) for name, array in outputs.items()]
        return self.server.InferenceResponse(tensors)

    def error_of(self, error: Exception) -> Any:
        """What a client gets: INVALID_ARG and our text for its input, INTERNAL for all else."""
        kinds = self.server.TritonError
        if isinstance(error, DataError):
            return kinds(str(error), kinds.INVALID_ARG)
        if isinstance(error, MemoryError):
            error = SaveDeployError("not enough memory for this request")
        if isinstance(error, SaveDeployError):
            return kinds(str(error), kinds.INTERNAL)
        self.server.Logger.log_error("".join(traceback.format_exception(error)))
        return kinds(f"a bug in save-deploy: {type(error).__name__}: {error}", kinds.INTERNAL)

    def array(self, request: Request, name: str) -> NDArray[Any]:
        """An input. Raises DataError where the request lacks it."""
        tensor = self.server.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise DataError(f"no input {name}", expected=name)
        return tensor.as_numpy()  # type: ignore[no-any-return]

    def content(self, request: Request, name: str) -> bytes:
        """The one element of an input of bytes, as in a file. Raises DataError."""
        array = self.array(request, name)
        if array.size != 1:
            raise DataError(
                f"wrong {name}", got=f"{array.size} elements", expected="the bytes of one"
            )
        return bytes(array.reshape(-1)[0])

    def pipeline(self) -> SavePipeline:
        """The two graphs where the server runs them."""
        audio = ServedGraph(self.server, "save_audio", self.manifest.audio)
        model = ServedGraph(self.server, "save_model", self.manifest.model)
        precision = self.manifest.precision["precision"]
        return SavePipeline(
            config=self.manifest.config, precision=precision, audio=audio, model=model
        )


class OneAnswer(PythonModel):
    """A model that answers each request once."""

    @abstractmethod
    def answer(self, request: Request) -> Arrays:
        """Outputs by name. Raises SaveDeployError for what cannot be answered."""

    def execute(self, requests: list[Request]) -> list[Response]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Request) -> Response:
        try:
            return self.response(self.answer(request))
        except Exception as error:  # an error of one request is no reason to end the model
            return self.server.InferenceResponse(error=self.error_of(error))


class ServedGraph:
    """A model of the same server as a session: its weights are in memory once, and the server's cache
    serves it."""

    backend = "triton"

    def __init__(self, server: Any, name: str, spec: GraphSpec) -> None:
        self.server, self.name, self.spec = server, name, spec

    def infer(self, inputs: Arrays) -> Arrays:
        """Raises DataError for inputs that are not the spec's, BackendError for what the model says."""
        self.spec.check_inputs(inputs)
        server, names = self.server, [output.name for output in self.spec.outputs]
        response = server.InferenceRequest(
            model_name=self.name,
            inputs=[server.Tensor(name, array) for name, array in inputs.items()],
            requested_output_names=names,
            preferred_memory=server.PreferredMemory(server.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise BackendError(f"{self.name} failed", got=response.error().message()[:500])
        found = {n: server.get_output_tensor_by_name(response, n).as_numpy() for n in names}
        return {name: np.array(array) for name, array in found.items()}  # not the server's memory

    def close(self) -> None: ...

    def __enter__(self) -> ServedGraph:
        return self

    def __exit__(self, *_: Any) -> None: ...
