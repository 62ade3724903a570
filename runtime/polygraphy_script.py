"""Writes a script that compares the backends of a bundle with NVIDIA's Polygraphy.

Optional: parity itself is measured by save-compare and the self-test. The script is for people who
already work with Polygraphy and want its runners and its debugging tools beside ours.
"""

from __future__ import annotations

import os
from pathlib import Path

from save_deploy.bundle import Manifest

_SCRIPT = '''"""Compare the backends of a save-deploy bundle on its golden samples with Polygraphy.

Usage: python THIS [BUNDLE]. Needs save-deploy[polygraphy]. Exit 2 when a backend is over the budget.
The TensorRT part runs where there is a GPU and an engine; it was not run on a GPU yet.
"""

import importlib.util
import os
import sys
from collections import OrderedDict
from pathlib import Path

os.environ.setdefault("POLYGRAPHY_AUTOINSTALL_DEPS", "0")
BUNDLE = Path(sys.argv[1] if len(sys.argv) > 1 else {bundle!r})
ENGINES = {engines!r}  # library -> file of the bundle
LIBRARY = next((name for name in ENGINES if importlib.util.find_spec(name)), "")
if LIBRARY == "tensorrt_rtx":  # read when polygraphy is imported
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator

from save_deploy.bundle import Manifest
from save_deploy.libraries import import_onnxruntime
from save_deploy.metrics.parity import ParityBudget, ParityMeter
from save_deploy.runtime.engine_check import probe_machine
from save_deploy.runtime.golden import read_golden
from save_deploy.runtime.session import open_session

# Relative errors mean nothing where logits are near 0: the budget is in logits and in masks.
BUDGET = ParityBudget(**{budget!r})
MANIFEST = Manifest.read(BUNDLE)
SPEC = MANIFEST.model
BATCH = SPEC.inputs[0].shape[0]
GOLDEN = read_golden(BUNDLE, MANIFEST)
IMAGE, EMBEDDING = GOLDEN.image, GOLDEN.answers.audio_embedding
LOGITS = GOLDEN.answers.mask_logits
# the last batch is completed with its last sample
ROWS = [
    np.minimum(np.arange(start, start + BATCH), len(IMAGE) - 1)
    for start in range(0, len(IMAGE), BATCH)
]
FEEDS = [
    {{"image": np.ascontiguousarray(IMAGE[rows]),
      "audio_embedding": np.ascontiguousarray(EMBEDDING[rows])}}
    for rows in ROWS
]


class SpecRunner(BaseRunner):
    """A runner whose inputs are those of the bundle's manifest."""

    def get_input_metadata_impl(self):
        metadata = TensorMetadata()
        for tensor in SPEC.inputs:
            metadata.add(tensor.name, np.dtype(tensor.dtype), tensor.shape)
        return metadata


class Recorded(SpecRunner):
    """The logits of the eager model, as recorded in the bundle, in the order of FEEDS."""

    def activate_impl(self):
        self.rows = iter(ROWS)

    def infer_impl(self, feed_dict):
        self.inference_time = 0.0
        return OrderedDict(mask_logits=np.ascontiguousarray(LOGITS[next(self.rows)][:, None]))


class OurSession(SpecRunner):
    """The session save-deploy itself would use on the CPU."""

    def activate_impl(self):
        self.session = open_session("auto", BUNDLE / "model.onnx", SPEC)

    def deactivate_impl(self):
        self.session.close()

    def infer_impl(self, feed_dict):
        import time

        started = time.perf_counter()
        outputs = self.session.infer(dict(feed_dict))
        self.inference_time = time.perf_counter() - started
        return OrderedDict(outputs)


def onnxruntime_session():
    return import_onnxruntime().InferenceSession(
        str(BUNDLE / "model.onnx"), providers=["CPUExecutionProvider"]
    )


METERS = {{}}


def compare(expected, got):
    """Logits of one batch against the budget; masks are pooled over all of them, as in the budget."""
    meter = METERS.setdefault(got.runner_name, ParityMeter())
    meter.add(expected["mask_logits"], got["mask_logits"])
    return OrderedDict(mask_logits=BUDGET.max_abs_err is None or meter.worst <= BUDGET.max_abs_err)


def main():
    runners = [Recorded("eager-recorded"), OnnxrtRunner(onnxruntime_session, "onnxruntime"),
               OurSession("save-deploy")]
    if LIBRARY and probe_machine().gpus:
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        engine = EngineFromBytes(BytesFromPath(str(BUNDLE / ENGINES[LIBRARY])))
        runners.append(TrtRunner(engine, "tensorrt"))
    elif ENGINES:
        print("TensorRT is left out: no usable GPU" if LIBRARY else
              f"TensorRT is left out: none of {{', '.join(ENGINES)}} is installed")
    results = Comparator.run(runners, data_loader=FEEDS)
    others = [(0, i) for i in range(1, len(runners))]
    good = bool(Comparator.compare_accuracy(results, compare_func=compare, comparisons=others))
    for name, meter in METERS.items():
        result = meter.result()
        good = good and result.within(BUDGET)
        print(
            f"{{name}}: {{result.n_frames}} frames, mask agreement {{result.mask_agreement:.5f}}, "
            f"max abs logit error {{result.max_abs_err:.1e}}"
        )
    print("within the budget" if good else "over the budget")
    return 0 if good else 2


if __name__ == "__main__":
    sys.exit(main())
'''


def write_script(bundle: Path, out: Path) -> Path:
    """Write the script for this bundle, its engines and its budget; returns its path.

    It names the bundle by its absolute path and takes another one as its argument. Raises BundleError
    when `bundle` is none.
    """
    manifest = Manifest.read(bundle)
    text = _SCRIPT.format(
        bundle=str(bundle.resolve()),
        engines={engine["library"]: engine["file"] for engine in manifest.engines},
        budget=manifest.golden["budget"],
    )
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text)
    os.replace(partial, out)
    return out
