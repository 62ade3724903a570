"""Golden samples of a bundle as files for NVIDIA's Polygraphy, with commands that use them.

Optional: save-compare and the self-test measure parity. The files are for users of Polygraphy's
runners and debugging tools. They are in the format of polygraphy.json.save_json, so writing them
does not need Polygraphy.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from save_deploy.bundle import Manifest
from save_deploy.errors import OutputError
from save_deploy.files import check_folder_target, new_folder
from save_deploy.runtime.golden import read_golden

INPUTS, OUTPUTS = "inputs.json", "outputs.json"
_RUNNER = "eager"  # that recorded the outputs
_ONE_LIBRARY = {"tensorrt": "", "tensorrt_rtx": "POLYGRAPHY_USE_TENSORRT_RTX=1 "}


def write_samples(bundle: Path, out: Path, *, force: bool = False) -> list[str]:
    """Write inputs.json and outputs.json to the new folder `out`; return shell commands.

    There is one command for model.onnx and one for each engine. No code of the bundle is executed.
    The last batch is filled with its last sample. Raises BundleError for a bundle without golden
    samples, and OutputError for a folder that cannot or may not be written.
    """
    manifest = Manifest.read(bundle)
    golden = read_golden(bundle, manifest)
    check_folder_target(out, force=force, is_ours=_check_ours)
    batch = manifest.model.inputs[0].shape[0]
    inputs, outputs = [], []
    for start in range(0, len(golden.image), batch):
        rows = np.minimum(np.arange(start, start + batch), len(golden.image) - 1)
        inputs.append(
            {
                "image": _array(golden.image[rows]),
                "audio_embedding": _array(golden.answers.audio_embedding[rows]),
            }
        )
        outputs.append(_iteration(golden.answers.mask_logits[rows][:, None]))
    is_ours: Callable[[Path], object] | None = _check_ours if force else None
    with new_folder(out, what="the samples", is_ours=is_ours) as folder:
        (folder / INPUTS).write_text(json.dumps(inputs))
        recorded = {"lst": [[_RUNNER, outputs]], "polygraphy_class": "RunResults"}
        (folder / OUTPUTS).write_text(json.dumps(recorded))
    return _commands(bundle, out, manifest)


def _commands(bundle: Path, out: Path, manifest: Manifest) -> list[str]:
    files = ["--load-inputs", str(out / INPUTS), "--load-outputs", str(out / OUTPUTS)]
    limit = manifest.golden["budget"].get("max_abs_err")
    if limit is not None:  # in logits: a relative error means nothing where they are near 0
        files += ["--atol", f"mask_logits:{limit:g}", "--rtol", "mask_logits:0"]
    commands = [shlex.join(["polygraphy", "run", str(bundle / "model.onnx"), "--onnxrt", *files])]
    for engine in manifest.engines:
        before = _ONE_LIBRARY.get(str(engine.get("library")))
        if before is not None and engine["file"] in manifest.files:
            place = str(bundle / engine["file"])
            commands.append(before + shlex.join(["polygraphy", "run", place, "--trt", *files]))
    return commands


def _array(values: NDArray[Any]) -> dict[str, str]:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    text = base64.b64encode(file.getvalue()).decode()
    return {"array": text, "polygraphy_class": "ndarray"}


def _iteration(mask_logits: NDArray[np.float32]) -> dict[str, Any]:
    lazy = {"values": _array(mask_logits), "polygraphy_class": "LazyArray"}
    return {
        "outputs": {"mask_logits": lazy},
        "runtime": None,
        "runner_name": _RUNNER,
        "polygraphy_class": "IterationResult",
    }


def _check_ours(folder: Path) -> None:
    if others := sorted({path.name for path in folder.iterdir()} - {INPUTS, OUTPUTS}):
        raise OutputError(f"it holds {others[0]}, which this verb does not write")
