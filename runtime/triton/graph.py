"""Models save_audio, save_model ... on the python engine: a graph in a session of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping

from save_deploy.bundle import Arrays, model_spec
from save_deploy.onnx_files import weight_files
from save_deploy.runtime.inputs import check_window
from save_deploy.runtime.session import open_session
from save_deploy.runtime.session.open import Content
from save_deploy.runtime.triton.python_model import OneAnswer, Request

FILE = "model.onnx"


class GraphModel(OneAnswer):
    """Runs the model.onnx next to model.py, on OpenVINO if Triton's Python has it, else on ONNX
    Runtime."""

    def start(self, arguments: Mapping[str, str]) -> None:
        manifest, config = self.manifest, json.loads(arguments["model_config"])
        first = config["input"][0]
        self.is_audio = first["name"] == manifest.audio.inputs[0].name
        path = self.folder / FILE
        self.session = open_session(
            "auto",
            path,
            manifest.audio if self.is_audio else model_spec(manifest.config, int(first["dims"][0])),
            threads=int(config["parameters"]["threads"]["string_value"]),
            content=Content(None, weight_files(path, manifest.files), manifest.small_weights),
            precision=manifest.precision["precision"],
        )

    def answer(self, request: Request) -> Arrays:
        names = [tensor.name for tensor in self.session.spec.inputs]
        inputs = {name: self.array(request, name) for name in names}
        if self.is_audio:
            check_window(inputs["waveform"])
        return self.session.infer(inputs)

    def finalize(self) -> None:
        self.session.close()
