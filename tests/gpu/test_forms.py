"""Which form of the graph is faster on this GPU. Parity is asserted, times are only reported.

Written against documentation; not run on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from save_deploy.export.merge.forms import forms_for
from save_deploy.metrics.latency import LatencyResult
from save_deploy.metrics.parity import parity
from save_deploy.runtime.engine_check import Machine
from save_deploy.runtime.session.tensorrt import TensorRtSession
from tests.gpu.conftest import Engine, require_library
from tests.gpu.test_engines import inputs_of

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
ROUNDS = 200
MIN_AGREEMENT = 0.995  # of masks between two FP16 forms of one function


def compare(
    first: Engine, second: Engine, names: tuple[str, str], figures: Callable[..., None]
) -> float:
    """Time two engines in turns, in this process; record medians and kernels -> mask agreement."""
    engines = dict(zip(names, (first, second), strict=True))
    sessions = {n: TensorRtSession(e.file, e.spec, library=e.library) for n, e in engines.items()}
    samples: dict[str, list[float]] = {n: [] for n in names}
    inputs, logits = inputs_of(first.spec), {}
    try:
        for i in range(ROUNDS + 20):
            for name, session in sessions.items():
                start = time.perf_counter()
                logits[name] = session.infer(inputs)["mask_logits"]
                if i >= 20:
                    samples[name].append((time.perf_counter() - start) * 1000)
    finally:
        for session in sessions.values():
            session.close()
    for name, engine in engines.items():
        receipt = engine.receipt
        figures(
            **{
                f"{name}_p50_ms": LatencyResult(tuple(samples[name]), 1).p50_ms,
                f"{name}_kernels": len(receipt["kernels"]),
                f"{name}_fused": f"{receipt['fused']}/{receipt['attentions']}",
                f"{name}_activation_mib": (receipt["activation_bytes"] or 0) / 2**20,
            }
        )
    one, two = (np.asarray(logits[name])[:, 0] for name in names)
    return parity(one, two).mask_agreement


@pytest.mark.parametrize("res", [256, 1024])
def test_late_pad_against_one_attention_per_window(
    library: str, res: int, make_engine: Callable[..., Engine], figures: Callable[..., None]
) -> None:
    forms = forms_for("tensorrt", res=res)
    assert forms.windows == "late_pad"
    late = make_engine(library, res=res)
    windows = make_engine(library, res=res, forms=replace(forms, windows="real_queries"))
    agreement = compare(late, windows, ("late_pad", "real_queries"), figures)
    assert agreement >= MIN_AGREEMENT


def test_folded_positions_against_a_bias_at_1024(
    library: str, make_engine: Callable[..., Engine], figures: Callable[..., None]
) -> None:
    forms = forms_for("tensorrt", res=1024)
    assert forms.rel_pos == "fold_global"
    fold = make_engine(library, res=1024)
    bias = make_engine(library, res=1024, forms=replace(forms, rel_pos="bias"))
    assert compare(fold, bias, ("fold", "bias"), figures) >= MIN_AGREEMENT


def test_int8_against_fp16(
    library: str, make_engine: Callable[..., Engine], figures: Callable[..., None]
) -> None:
    """W8A8: does the library have fast kernels for it? Agreement with FP16 is only reported, for
    random inputs say little about quantization; parity on real samples is test_parity_with_eager."""
    int8 = make_engine(library, precision="int8_fp16")
    fp16 = make_engine(library, precision="fp16")
    figures(mask_agreement_random_inputs=compare(int8, fp16, ("int8", "fp16"), figures))
    receipt = int8.receipt
    assert receipt["quantised"] == receipt["quantised_asked"] > 0, receipt["dequantised"]


def test_full_tensorrt_fuses_what_rtx_fuses(
    make_engine: Callable[..., Engine], figures: Callable[..., None], machine: Machine
) -> None:
    """The forms were chosen by what TensorRT-RTX fuses on a CPU: every attention, here too."""
    require_library("tensorrt", machine)
    for res in (256, 1024):
        receipt = make_engine("tensorrt", res=res).receipt
        figures(**{
            f"fused_{res}": f"{receipt['fused']}/{receipt['attentions']}",
            f"kernels_{res}": len(receipt["kernels"]),
        })  # fmt: skip
        assert receipt["fused"] == receipt["attentions"] > 0, receipt["unfused"]
        assert not receipt["unfused_softmax"]
