"""Golden samples are read back as they were written; another file in their place is a BundleError."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from save_deploy.bundle import Manifest
from save_deploy.errors import BundleError
from save_deploy.export.golden import _three_valued
from save_deploy.runtime.golden import ANSWERS, Answers, read_golden, read_pack
from tests.test_manifest import manifest as complete_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Manifest, Answers]:
    """golden/ with two samples, conformance/ with every 16th logit of one pair; random values."""
    manifest = complete_manifest()
    side, random = manifest.config.res, np.random.default_rng(1)

    def answers(n: int, step: int) -> Answers:
        shapes = ((n, 16_000), (n, 128), (n, -(-side // step), -(-side // step)))
        return Answers(*(random.normal(size=shape).astype(np.float32) for shape in shapes))

    (tmp_path / "golden").mkdir()
    (tmp_path / "conformance").mkdir()
    image = random.integers(0, 255, (2, side, side, 3), dtype=np.uint8)
    np.save(tmp_path / "golden" / "image.npy", image)
    written = answers(2, 1)
    written.write(tmp_path / "golden")
    answers(1, 16).write(tmp_path / "conformance")
    names = {name: f"conformance/{name}.npy" for name in ANSWERS}
    pack = {**manifest.conformance, **names, "logits_step": 16}
    return tmp_path, replace(manifest, conformance=pack), written


def test_written_and_read(bundle: tuple[Path, Manifest, Answers]) -> None:
    folder, manifest, written = bundle
    golden, pack = read_golden(folder, manifest), read_pack(folder, manifest)
    for name in ANSWERS:
        np.testing.assert_array_equal(getattr(golden.answers, name), getattr(written, name))
    assert golden.image.dtype == np.uint8 and len(golden.answers) == 2
    assert [p.frame for p in pack.pairs] == [folder / "conformance/a.png"]
    assert pack.tolerances.mask_logits == 1e-3 and len(pack.answers) == 1


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00\x76\x00" + text.encode()


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text", archive(), header("(2, 128)"), header("(99999999999, 99999999999)"),
        header(f"({10**40},)"), header("(2, -1)"), header("('a',)"),
        np.zeros((3, 128), np.float32), np.zeros((2, 128)), np.full((2, 128), np.nan, np.float32),
        np.array([{}, {}], dtype=object),
    ],
    ids=range(12),
)  # fmt: skip
def test_another_array_is_refused(bundle: tuple[Path, Manifest, Answers], content: Any) -> None:
    folder, manifest, _ = bundle
    path = folder / "golden" / "audio_embedding.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(BundleError, match=r"audio_embedding\.npy"):
        read_golden(folder, manifest)
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_golden(folder, manifest)


@pytest.mark.parametrize(
    "changed",
    [
        {"tolerances": {"waveform": "1"}}, {"tolerances": {"other": 1.0}}, {"cases": []},
        {"tolerances": {"min_agreement": float("nan")}}, {"logits_step": 3},
    ],
)  # fmt: skip
def test_another_pack_is_refused(
    bundle: tuple[Path, Manifest, Answers], changed: dict[str, Any]
) -> None:
    folder, manifest, _ = bundle
    with pytest.raises(BundleError):
        read_pack(folder, replace(manifest, conformance={**manifest.conformance, **changed}))


def test_a_bundle_without_samples(bundle: tuple[Path, Manifest, Answers]) -> None:
    folder, manifest, _ = bundle
    with pytest.raises(BundleError, match="without golden samples"):
        read_golden(folder, replace(manifest, golden={}))
    with pytest.raises(BundleError, match="without a conformance pack"):
        read_pack(folder, replace(manifest, conformance={}))


def test_expected_masks_leave_small_logits_undecided() -> None:
    logits = np.array([[-2.0, -1.0, -0.5, 0.0, 1.0, 1.1]], np.float32)
    assert _three_valued(logits, 1.0).tolist() == [[0, 128, 128, 128, 128, 255]]
