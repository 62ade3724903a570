"""The Python interface: examples in docstrings are run as they stand; what it refuses, and when."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import save_deploy
from save_deploy.errors import BundleError, DataError, OutputError, SaveDeployError
from save_deploy.export.api import Bundle
from save_deploy.export.api import export as export_function
from save_deploy.export.options import ExportOptions
from save_deploy.runtime.compare.options import CompareOptions
from save_deploy.runtime.pipeline import SavePipeline, load

FRAME = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
SOUND = (0.2 * np.sin(np.arange(16_000))).astype(np.float32)
OBJECTS: dict[str, Any] = {
    "Bundle": Bundle,
    "export": export_function,
    "compare": save_deploy.compare,
    "load": load,
    "stream": save_deploy.stream,
    "segment": SavePipeline.__call__,
    "read_sound": save_deploy.read_sound,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_examples_of_docstrings(
    bundle_fp32: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(FRAME).save("frame.png")
    soundfile.write("sound.wav", SOUND, 16_000)
    with load(bundle_fp32) as segment:
        known = {
            **{key: getattr(save_deploy, key) for key in save_deploy.__all__},
            "np": np, "ExportOptions": ExportOptions, "CompareOptions": CompareOptions,
            "bundle": bundle_fp32, "checkpoint": tiny_checkpoint, "segment": segment,
            "frame": FRAME, "sound": SOUND, "sound_path": "sound.wav",
        }  # fmt: skip
        text = inspect.getdoc(OBJECTS[name])
        assert text is not None
        test = doctest.DocTestParser().get_doctest(text, known, name, None, None)
        assert test.examples, "a public name without an example"
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.slow
def test_names_and_words() -> None:
    """What tab shows is what is meant for users; a package that can be called is still a package."""
    assert dir(save_deploy) == save_deploy.__all__ == sorted(save_deploy.__all__)
    code = (
        "import sys, save_deploy\n"
        "from save_deploy import export, Bundle, compare, load, stream\n"
        "assert 'torch' not in sys.modules and callable(export)\n"
        "import save_deploy.export.engine\n"
        "assert callable(save_deploy.export) and save_deploy.export is export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_mistakes_are_named_before_torch(bundle_fp32: Path, tmp_path: Path) -> None:
    code = (
        "import sys, save_deploy\n"
        "sys.modules['torch'] = None\n"
        "for given in (dict(res=100), dict(precision='fp17'), dict(out=sys.argv[1]), dict(out='')):\n"
        "    try: save_deploy.export(**given)\n"
        "    except save_deploy.SaveDeployError as error: print(error.what)\n"
    )
    asked = [sys.executable, "-c", code, str(bundle_fp32)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == 4 and "unknown precision" in done.stdout


def test_a_bundle_goes_wherever_its_path_goes(bundle_fp32: Path, tmp_path: Path) -> None:
    made = Bundle(bundle_fp32)
    with save_deploy.load(made) as segment, made.load(threshold=0.9) as strict:
        assert segment(FRAME, SOUND).share >= strict(FRAME, SOUND).share
        assert "threshold 0.9" in repr(strict) and "vit_t at 224 px" in repr(segment)
    assert made.report["rows"] and made.precision == "fp32" and made.engines == ()
    for wrong in (tmp_path, None, ""):
        with pytest.raises(BundleError):
            Bundle(wrong)  # type: ignore[arg-type]
    with pytest.raises(SaveDeployError, match="unknown library"):
        made.build("cuda")
    with pytest.raises((OutputError, DataError, SaveDeployError)):
        save_deploy.compare(made, data="nonsense")
