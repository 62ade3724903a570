"""Base of the repository's Python models: requests -> responses, or errors with our text.

Triton's Python backend creates one object per instance, calls initialize once, then execute with
lists of requests. Its module triton_python_backend_utils exists only inside the server; a model
accesses it as `server`.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays, GraphSpec, Manifest, model_spec
from save_deploy.errors import BackendError, DataError, SaveDeployError
from save_deploy.runtime.pipeline import SavePipeline

Request = Any  # of triton_python_backend_utils, as Response
Response = Any


class PythonModel(ABC):
    """One instance of a model. `arguments`: Triton's description of the instance."""

    server: Any  # the module triton_python_backend_utils

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Read the manifest.json next to model.py and start.

        Triton prints an error raised here and does not serve the model.
        """
        self.folder = Path(arguments["model_repository"]) / arguments["model_version"]
        self.manifest = Manifest.read(self.folder)
        self.start(arguments)

    @abstractmethod
    def start(self, arguments: Mapping[str, str]) -> None:
        """Open the sessions."""

    @abstractmethod
    def execute(self, requests: list[Request]) -> list[Response] | None:
        """Return the responses, or None if they were already sent. Raises nothing."""

    def response(self, outputs: Arrays) -> Response:
        tensors = [self.server.Tensor(name, array) for name, array in outputs.items()]
        return self.server.InferenceResponse(tensors)

    def failed(self, error: Exception) -> Response:
        return self.server.InferenceResponse(error=self.error_of(error))

    def error_of(self, error: Exception) -> Any:
        """Return Triton's error: INVALID_ARG with our text for bad input, INTERNAL for the rest."""
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
        """Return an input of the request. Raises DataError if it is missing."""
        tensor = self.server.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise DataError(f"no input {name}", expected=name)
        return tensor.as_numpy()  # type: ignore[no-any-return]

    def content(self, request: Request, name: str) -> bytes:
        """Return the single element of a bytes input. Raises DataError for another number."""
        array = self.array(request, name)
        if array.size != 1:
            raise DataError(
                f"wrong {name}", got=f"{array.size} elements", expected="one element with the bytes"
            )
        return bytes(array.reshape(-1)[0])

    def pipeline(self, batches: Iterable[int] = ()) -> SavePipeline:
        """Return a pipeline over the server's own models save_audio and save_model.

        batches: further ones, of the models save_model_x8 ...
        """
        config, server = self.manifest.config, self.server
        return SavePipeline(
            config=config,
            precision=self.manifest.precision["precision"],
            audio=ServedGraph(server, "save_audio", self.manifest.audio),
            model=ServedGraph(server, "save_model", self.manifest.model),
            further={
                batch: ServedGraph(server, f"save_model_x{batch}", model_spec(config, batch))
                for batch in batches
            },
        )


class OneAnswer(PythonModel):
    """A model with one response per request."""

    @abstractmethod
    def answer(self, request: Request) -> Arrays:
        """Return outputs by name. Raises SaveDeployError."""

    def execute(self, requests: list[Request]) -> list[Response]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Request) -> Response:
        try:
            return self.response(self.answer(request))
        except Exception as error:  # an error of one request must not end the model
            return self.failed(error)


class ServedGraph:
    """Session that calls another model of the same server.

    The weights are in memory once, and the server's response cache applies.
    """

    backend = "triton"

    def __init__(self, server: Any, name: str, spec: GraphSpec) -> None:
        self.server, self.name, self.spec = server, name, spec

    def infer(self, inputs: Arrays) -> Arrays:
        """Run the model. Raises DataError for inputs that differ from the spec, BackendError."""
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
        return {
            name: np.array(array) for name, array in found.items()
        }  # copies: the server reuses it

    def close(self) -> None: ...

    def __enter__(self) -> ServedGraph:
        return self

    def __exit__(self, *_: Any) -> None: ...
