"""Client for the models of a Triton server, over HTTP or gRPC."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Arrays, GraphSpec
from save_deploy.errors import BackendError
from save_deploy.extras import named_extras

PROTOCOLS = ("http", "grpc")
SAID = "Triton answered with an error"
_TYPES = {
    "uint8": "UINT8",
    "int32": "INT32",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}


class Remote:
    """Connection to a server over one protocol. Context manager; for one thread."""

    @named_extras()
    def __init__(self, protocol: str, url: str) -> None:
        """url: HOST:PORT. Raises BackendError without tritonclient (exit 3)."""
        import importlib

        self.protocol, self.url = protocol, url
        self.library: Any = importlib.import_module(f"tritonclient.{protocol}")
        self.client: Any = self.library.InferenceServerClient(url)

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], **more: Any
    ) -> Arrays:
        """Send one request and return the outputs.

        more: sequence_id, sequence_start, sequence_end.
        Raises BackendError for an error of the server and for a server that does not respond.
        """
        library = self.library
        wanted = [library.InferRequestedOutput(name) for name in outputs]
        with answered(self):
            result = self.client.infer(model, tensors(library, inputs), outputs=wanted, **more)
        return {name: result.as_numpy(name) for name in outputs}

    def responses(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        """Send one request to a decoupled model and yield its responses.

        Raises BackendError as infer does, after the responses before the error.
        """
        ask = self._http_responses if self.protocol == "http" else self._grpc_responses
        with answered(self):
            yield from ask(model, inputs, outputs)

    def _grpc_responses(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        library, came = self.library, SimpleQueue[tuple[Any, Any]]()
        self.client.start_stream(callback=lambda result, error: came.put((result, error)))
        try:
            self.client.async_stream_infer(
                model,
                tensors(library, inputs),
                outputs=[library.InferRequestedOutput(name) for name in outputs],
                enable_empty_final_response=True,
            )
            while True:
                result, error = came.get()
                if error is not None:
                    raise error
                message = result.get_response()
                if message.outputs:
                    yield {name: result.as_numpy(name) for name in outputs}
                if message.parameters["triton_final_response"].bool_param:
                    return
        finally:
            self.client.stop_stream(cancel_requests=True)

    def _http_responses(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        """Use Triton's generate extension. Requests are text, so bytes are sent as a data: URI."""
        body = json.dumps({name: _as_text(array) for name, array in inputs.items()}).encode()
        url = f"http://{self.url}/v2/models/{model}/generate_stream"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as events:
                for line in events:
                    if line.startswith(b"data:"):
                        found = json.loads(line.partition(b":")[2])
                        _raise_error(found)
                        yield {name: _as_array(found[name]) for name in outputs}
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").removeprefix("data:").strip()
            _raise_error(
                json.loads(said) if said.startswith("{") else {"error": said or str(error)}
            )

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _as_text(array: NDArray[Any]) -> Any:
    """Return the single element of an input, for JSON."""
    value = array.reshape(-1)[0]
    if isinstance(value, bytes):
        return f"data:;base64,{base64.b64encode(value).decode()}"
    return value.item()


def _as_array(value: Any) -> NDArray[Any]:
    return np.array([value.encode()], object) if isinstance(value, str) else np.array([value])


def _raise_error(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise BackendError(SAID, got=str(answer["error"]))


class RemoteGraph:
    """Session that calls a model of the server."""

    def __init__(self, remote: Remote, name: str, spec: GraphSpec) -> None:
        self.remote, self.name, self.spec = remote, name, spec
        self.backend = f"triton over {remote.protocol}"

    def infer(self, inputs: Arrays) -> Arrays:
        self.spec.check_inputs(inputs)
        return self.remote.infer(self.name, inputs, [t.name for t in self.spec.outputs])

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None: ...


def tensors(library: Any, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Convert arrays to inputs of a request; bytes become Triton's BYTES."""
    made = []
    for name, array in inputs.items():
        tensor = library.InferInput(name, list(array.shape), _TYPES[array.dtype.name])
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        made.append(tensor)
    return made


class answered:
    """Context manager that converts errors of a call to BackendError with the server's text."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        from tritonclient.utils import InferenceServerException

        if isinstance(error, InferenceServerException):
            raise BackendError(
                SAID,
                got=error.message() or str(error),
                expected=f"a response of {self.remote.url}",
            ) from error
        if isinstance(error, OSError):
            raise BackendError(
                "no Triton server responds", got=f"{self.remote.url}: {error}",
                hint="tritonserver --model-repository=DIR",
            ) from error  # fmt: skip
