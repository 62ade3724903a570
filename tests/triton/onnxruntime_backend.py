"""A stand-in for Triton's own ONNX Runtime backend, which the PyPI package lacks, as a Python-based
backend of that name: a model's config.pbtxt says `backend: "onnxruntime"` and runs unchanged. It knows
the settings that the native one knows, and no others."""

import json
import os
import site
import sys
from pathlib import Path

found = list(sys.path)
for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    site.addsitedir(folder)
sys.path[:] = [place for place in sys.path if place not in found] + found

import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

KNOWN = {"intra_op_thread_count", "inter_op_thread_count"}


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        given = {key: v["string_value"] for key, v in config["parameters"].items()}
        if unknown := set(given) - KNOWN:
            raise pb_utils.TritonModelException(f"the native backend has no {sorted(unknown)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(given.get("intra_op_thread_count", 0))
        options.inter_op_num_threads = int(given.get("inter_op_thread_count", 0))
        place = Path(args["model_repository"]) / args["model_version"]
        self.session = onnxruntime.InferenceSession(
            str(place / config["default_model_filename"]),
            options,
            providers=["CPUExecutionProvider"],
        )
        self.inputs = [port["name"] for port in config["input"]]
        self.outputs = [port["name"] for port in config["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {n: pb_utils.get_input_tensor_by_name(request, n).as_numpy() for n in self.inputs}
        try:
            found = self.session.run(self.outputs, feeds)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        tensors = [pb_utils.Tensor(n, a) for n, a in zip(self.outputs, found, strict=True)]
        return pb_utils.InferenceResponse(tensors)
