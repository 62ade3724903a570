"""The main job from the command line: what it writes, and what it leaves behind when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from save_deploy import progress
from save_deploy.checkpoints import load_model, save_checkpoint
from save_deploy.config import SaveConfig
from save_deploy.errors import BackendError, OutputError, ParityError
from save_deploy.export import prove
from save_deploy.export.estimate import estimate
from save_deploy.export.export import export
from save_deploy.export.options import ExportOptions
from save_deploy.files import check_folder_target, new_folder
from tests.command import run
from tests.runtime.strange import strange_bundle

CLI = [sys.executable, "-m", "save_deploy"]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.slow
def test_main_job(tiny_checkpoint: Path, tmp_path: Path) -> None:
    few = ["--res", "224", "--golden", "2", "--rounds", "3"]
    done = run("export", tiny_checkpoint, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert leftovers(tmp_path) == ["tiny_224_fp32"]
    for text in ("eager", "onnxruntime", "mask agreement", "exact rewrites"):
        assert text in done.stdout
    for part in ("eager model 2/2", "blocks compared 2/2", "prove: graphs "):
        assert part in done.stderr
    verified = run("verify", "tiny_224_fp32", cwd=tmp_path)
    assert verified.returncode == 0 and "files intact" in verified.stdout
    again = run("export", tiny_checkpoint, "--res", "224", cwd=tmp_path)
    assert again.returncode == 1 and "output exists" in again.stderr and "--force" in again.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["export", "missing.safetensors"], "checkpoint not found"),
        (["export", "--data", "nothing"], "no dataset in this folder"),
        (["eval", "--sound", "loud", "--clips", "1"], "unknown sound"),
    ],
)
def test_user_errors(tmp_path: Path, args: list[str], message: str) -> None:
    """Exit 1, one message, no traceback, nothing written."""
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert leftovers(tmp_path) == []


AT_ONCE = [
    (["export", "--res", "300"], "unsupported resolution"),
    (["export", "-o", "/proc/nowhere/b"], "not writable"),
    (["export", "--nonsense"], "No such option"),
    (["export", "--no-merge", "magic"], "unknown rewrite"),
    (["export", "--target", "abacus"], "unknown target"),
    (["export", "--engine", "steam"], "unknown engine"),
    (["merge", "--no-merge", "magic"], "unknown rewrite"),
    (["calibrate", "--res", "300"], "unsupported resolution"),
    (["bench", "--what", "magic"], "unknown entry"),
    (["compare", "nothing"], "not a bundle"),
    (["train", "--data", "scenes=much"], "unreadable data mixture"),
    (["train", "--data", "empty"], "no dataset in this folder"),
    (["train", "--val-data", "empty"], "no dataset in this folder"),
    (["train", "--sam", "cut.pth"], "truncated or damaged"),
    (["train", "--init", "cut.safetensors"], "checkpoint cannot be read"),
    (["eval", "cut.safetensors"], "checkpoint cannot be read"),
    (["eval", "--vggish", "page.pth"], "a web page"),
    (["calibrate", "cut.safetensors"], "checkpoint cannot be read"),
    (["calibrate", "--calib-data", "empty"], "no dataset in this folder"),
    (["bench", "text.pth"], "not a weight file"),
    (["bench", "-o", "measured"], "output exists"),
    (["bench", "--what", "bundle:bundle"], "bundle file was altered"),
    (["merge", "cut.pth"], "truncated or damaged"),
    (["checkpoint", "convert", "cut.pth", "-o", "out.pth"], "truncated or damaged"),
    (["checkpoint", "inspect", "cut.safetensors"], "checkpoint cannot be read"),
    (["compare", "bundle", "--report", "report"], "bundle file was altered"),
    (["compare", "intact", "--checkpoint", "cut.safetensors"], "checkpoint cannot be read"),
    (["export", "cut.safetensors", "--res", "256", "--fp16"], "checkpoint cannot be read"),
    (["export", "wrong.safetensors"], "config: audio_mode"),
    (["export", "trained.safetensors"], "only the trained parts"),
    (["eval", "trained.safetensors"], "the SAM (vit_t) on which it was trained"),
    (["export", "--sam", "none.pth"], "SAM checkpoint not found"),
    (["export", "--int8", "--calib-data", "empty"], "no dataset in this folder"),
    (["export", "--int8", "--calibration-table", "text.pth"], "calibration table"),
    (["export", "--int8", "--precision-from", "empty"], "not a bundle"),
]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Weight files, a bundle and a folder that cannot be used, beside an intact one of each."""
    config = SaveConfig.preset("vit_t").to_dict()
    header = {"format": "save-deploy", "format_version": "1", "kind": "full"}
    weights = {"w": torch.zeros(1000)}
    for name, mode in (("good", "literal"), ("wrong", "loud")):
        metadata = {**header, "config": json.dumps({**config, "audio_mode": mode})}
        save_file(weights, tmp_path / f"{name}.safetensors", metadata=metadata)
    trained = {**header, "kind": "adapter", "config": json.dumps(config)}
    save_file(weights, tmp_path / "trained.safetensors", metadata=trained)
    torch.save({"w": torch.zeros(1000)}, tmp_path / "good.pth")
    for suffix in (".safetensors", ".pth"):
        content = (tmp_path / f"good{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    (tmp_path / "text.pth").write_text("Dear reader")
    (tmp_path / "empty").mkdir()
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "bench.json").write_text("{}")
    for name in ("intact", "bundle"):
        strange_bundle(tmp_path / name)
    with (tmp_path / "bundle" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    return tmp_path


@pytest.mark.slow
def test_user_errors_are_told_at_once(damaged: Path) -> None:
    """The same without the seconds that importing torch takes: one process that has none."""
    before = leftovers(damaged)
    code = (
        "import contextlib, io, json, sys; sys.modules['torch'] = None\n"
        "from save_deploy.cli import main\n"
        "told = []\n"
        "for arguments in json.loads(sys.argv.pop()):\n"
        "    sys.argv[1:] = arguments\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as error:\n"
        "        try: main()\n"
        "        except SystemExit as end: told.append((end.code, error.getvalue()))\n"
        "print(json.dumps(told))"
    )
    intact = (
        ["export", "good.safetensors"], ["export", "--sam", "good.pth", "-o", "new"],
        ["export", "trained.safetensors", "--sam", "good.pth"],
    )  # fmt: skip
    asked = [*(args for args, _ in AT_ONCE), *intact]
    command = [sys.executable, "-c", code, json.dumps(asked)]
    done = subprocess.run(command, cwd=damaged, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for (args, message), (exit_code, said) in zip(AT_ONCE, told, strict=False):
        assert exit_code == 1 and message in said, f"{args}: {said}"
    for exit_code, said in told[-len(intact) :]:  # the twin: what looks intact is read by torch
        assert exit_code == 3 and "torch" in said, said
    assert leftovers(damaged) == before


@pytest.mark.slow
def test_over_budget_leaves_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Exit code 2 when parity is over budget: here a budget nothing can meet."""
    options = ExportOptions(
        checkpoint=tiny_checkpoint, res=224, precision="fp16", out=tmp_path / "b", n_golden=2,
        rounds=3, max_abs_err=1e-9,
    )  # fmt: skip
    with pytest.raises(ParityError, match="no bundle was written") as caught:
        export(options)
    assert caught.value.exit_code == 2
    assert leftovers(tmp_path) == ["b.rejected"]


def test_fp8_without_a_backend_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "available_backends", lambda: ("onnxruntime",))
    begun: list[str] = []
    with pytest.raises(BackendError, match="cannot be checked here"):
        export(
            ExportOptions(precision="fp8", out=tmp_path / "b"),
            on_stage=lambda stage, _: begun.append(stage),
        )
    assert begun == [] and leftovers(tmp_path) == []


@pytest.mark.slow
def test_nan_weights_leave_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint, res=224)
    model.mask_decoder.iou_token.weight[0, 0] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", model)
    done = run("export", "nan.safetensors", "--res", "224", cwd=tmp_path)
    assert done.returncode == 1 and "NaN" in done.stderr
    assert leftovers(tmp_path) == ["nan.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)]
)
def test_interrupt_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    """Ctrl-C while the folder is half written."""
    process = subprocess.Popen(
        [*CLI, "export", str(tiny_checkpoint), "--res", "224", "-o", "deep/b"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # tests run in the background of a shell inherit an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("deep/.b.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in stderr, stderr
    assert "Traceback" not in stderr
    assert leftovers(tmp_path) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_was_lost_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python forgets a KeyboardInterrupt raised in a destructor; nothing must be published then."""
    monkeypatch.setattr(progress, "_interrupted", False)

    class Swallows:
        def __del__(self) -> None:
            progress._interrupt(signal.SIGINT, None)

    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "b") as folder:
        (folder / "manifest.json").write_text("{}")
        thing = Swallows()
        del thing
        assert folder.is_dir()
    assert leftovers(tmp_path) == []


def test_replaced_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(target) as folder:
        (folder / "manifest.json").write_text("half")
        _ = 1 / 0
    assert (target / "manifest.json").read_text() == "old"
    with new_folder(target, is_ours=lambda _: None) as folder:
        (folder / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "new"
    assert leftovers(tmp_path) == ["b"]


def test_full_disk_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    assert leftovers(tmp_path) == []


def test_force_does_not_eat_other_folders(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    done = run("export", "-o", "photos", "--force", cwd=tmp_path)
    assert done.returncode == 1 and "a folder that save-deploy did not write" in done.stderr
    assert (tmp_path / "photos" / "a.jpg").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="not writable"):
            check_folder_target(tmp_path / "b", force=False)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    """Parameters of SPEC 1.3, work as in the merge proof, sizes as of the real bundle; nothing made."""
    done = run("export", "--dry-run", "--res", "256", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("M parameters", "1.513 -> 1.154 GMAC", "audio.onnx", "GiB at the peak"):
        assert text in done.stdout, done.stdout
    missing = run("export", "--dry-run", "missing.safetensors", cwd=tmp_path)
    assert missing.returncode == 1 and "checkpoint not found" in missing.stderr
    assert leftovers(tmp_path) == []


def test_estimate_agrees_with_the_bundle(bundle: Path) -> None:
    """File sizes within two percent of what was written, a graph with its weights."""
    found = estimate(ExportOptions(precision="fp16", n_golden=4))
    for name, expected in found.file_bytes.items():
        place = bundle / name
        files = place.iterdir() if place.is_dir() else bundle.glob(f"{name}*")
        size = sum(file.stat().st_size for file in files)
        assert abs(size - expected) < 0.02 * size + 300_000, name  # the graph itself
    assert sum(found.parameters.values()) == sum(p.numel() for p in load_model().parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b", "vit_h"])
def test_estimate_of_large_models(tmp_path: Path, name: str) -> None:
    """Only a header is read: here there is nothing but a header."""
    path = tmp_path / "header.safetensors"
    config = SaveConfig.preset(name, res=1024)
    metadata = {
        "format": "save-deploy", "format_version": "1", "kind": "full", "config": config.to_json()
    }  # fmt: skip
    save_file({"x": torch.zeros(1)}, str(path), metadata=metadata)
    found = estimate(ExportOptions(checkpoint=path, res=1024, precision="fp16"))
    assert found.macs < found.macs_eager
    # SPEC 1.3: an adapter has 25.5 C^2 + 2C parameters
    adapters = config.depth * (25.5 * config.embed_dim**2 + 2 * config.embed_dim)
    assert found.parameters["image_adapters"] == adapters
    total = sum(found.parameters.values())
    assert found.peak_bytes > 4 * total
    # at 1024 px each transposed convolution, 16 C^2 weights, has 36 C^2 by Winograd
    more = config.depth * 20 * config.embed_dim**2
    assert found.file_bytes["model.onnx"] == pytest.approx(2 * total, rel=0.25)
    fast = estimate(
        ExportOptions(checkpoint=path, res=1024, precision="fp16", target="onnxruntime")
    )
    assert fast.file_bytes["model.onnx"] - found.file_bytes["model.onnx"] == 2 * more
    assert fast.peak_bytes > found.peak_bytes
