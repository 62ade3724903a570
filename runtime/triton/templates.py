"""Templates of a repository's files that differ between bundles only in names and numbers."""

from __future__ import annotations

_MODEL = '''"""{name}: written by save-deploy triton; runs the save-deploy of Triton's Python."""

import os
import site
import sys

found = list(sys.path)  # Triton's Python ignores PYTHONPATH; add its folders in front
for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    site.addsitedir(folder)
sys.path[:] = [place for place in sys.path if place not in found] + found

import triton_python_backend_utils as pb_utils  # noqa: E402

from save_deploy.runtime.triton.{module} import {kind}  # noqa: E402


class TritonPythonModel({kind}):
    server = pb_utils
'''
_MODULES = {
    "GraphModel": "graph", "BatchModel": "batch", "FrameModel": "frame", "StreamModel": "stream",
    "FilmModel": "film",
}  # fmt: skip
_VERIFY = '''"""Run the bundle's conformance pack on this server and compare with its expected outputs.

pip install "save-deploy[triton]"
python verify_client.py BUNDLE [--http HOST:PORT] [--grpc HOST:PORT]
"""

from save_deploy.runtime.triton.verify import main

if __name__ == "__main__":
    main()
'''


_CLIENT = '''"""Request the mask of a picture and a sound. pip install tritonclient[http] soundfile"""

import sys

import numpy as np
import soundfile
import tritonclient.http as triton

picture, sound, mask = sys.argv[1:]  # a PNG or JPEG, 16 kHz mono, and the PNG to write
inputs = [triton.InferInput("picture", [1], "BYTES")]
inputs[0].set_data_from_numpy(np.array([open(picture, "rb").read()], object))
waveform = soundfile.read(sound, dtype="float32")[0]
inputs.append(triton.InferInput("waveform", list(waveform.shape), "FP32"))
inputs[1].set_data_from_numpy(waveform)
answer = triton.InferenceServerClient("localhost:8000").infer("save_frame", inputs)
open(mask, "wb").write(answer.as_numpy("mask_png")[0])
'''
_KSERVE = """# Written by save-deploy triton, never applied to a cluster: NOT RUN.
# image: tritonserver with save-deploy installed in its Python, which the models save_frame, save_stream
# and save_video import. storageUri: this folder.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: save
spec:
  predictor:
    model:
      runtime: kserve-tritonserver
      protocolVersion: v2
      modelFormat:
        name: triton
      storageUri: pvc://models/repo
      image: registry.example/tritonserver-save-deploy:latest
      args: ["--cache-config=local,size=16777216"]
      resources:
        requests: {{cpu: "{cores}", memory: {memory}}}
        limits: {{cpu: "{cores}", memory: {memory}{gpus}}}
"""


def model_py(name: str, kind: str) -> str:
    """Return model.py of one of save-deploy's Python models."""
    return _MODEL.format(name=name, kind=kind, module=_MODULES[kind])


def beside(*, cores: int, memory_gib: int, n_gpus: int) -> dict[str, str]:
    """Return file name -> text of the files next to the models. cores, memory_gib: of the server."""
    gpus = f', nvidia.com/gpu: "{n_gpus}"' if n_gpus else ""
    kserve = _KSERVE.format(cores=cores, memory=f"{memory_gib}Gi", gpus=gpus)
    return {"client.py": _CLIENT, "verify_client.py": _VERIFY, "kserve.yaml": kserve}
