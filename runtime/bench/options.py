"""Options of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from save_deploy.options import check_limits, option

MODEL, MEASUREMENT = "Model", "Measurement"
RESULTS = ("bench.json", "bench.md")  # files in --out


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of a benchmark of one model in several forms on several backends.

    checkpoint None: the built-in checkpoint.
    what, backends: comma-separated lists; backends None means all installed.
    """

    checkpoint: Path | None = option(
        default=None,
        help="SAVE checkpoint (.safetensors, or another project's .pth). Default: the built-in vit_t.",
    )
    what: str = option(
        "--what", default="eager,compile,naive,merged",
        help="Comma-separated: eager, compile (torch.compile), each also as -fp16 and -bf16 "
        "(autocast) and -tf32 (CUDA), naive (plain torch.onnx.export), "
        "merged, merged:windows=late_pad+adapter=matmul (other forms), fp16 (merged, in FP16), int8 "
        "(merged, quantized), "
        "naive-int8 (onnxruntime's quantize_static on naive), bundle:DIR.",
    )  # fmt: skip
    backends: str | None = option(
        "--backends", default=None, help="For graphs. Default: all that are installed."
    )
    res: int = option("--res", default=256, help="Input side in px: 224, 256 or 1024.")
    out: Path = option(
        "--out", "-o", default=Path("bench"), help="Folder for bench.json, bench.md and bench.png."
    )
    force: bool = option("--force", default=False, help="Replace an earlier benchmark in --out.")
    preset: str | None = option(
        "--preset", panel=MODEL, default=None,
        help="vit_t, vit_b, vit_l or vit_h with random weights instead of a checkpoint.",
    )  # fmt: skip
    blocks: int | None = option(
        "--blocks", panel=MODEL, default=None, low=1,
        help="With --preset: only the first encoder blocks.",
    )  # fmt: skip
    sam: Path | None = option(
        "--sam", panel=MODEL, default=None,
        help="SAM's official .pth, for a checkpoint that holds only the trained parts.",
    )  # fmt: skip
    batch: int = option("--batch", panel=MODEL, default=1, low=1, high=64, help="Frames per call.")
    cuda: str = option(
        "--cuda", panel=MEASUREMENT, default="",
        help="Of onnxruntime-cuda: graph=on|off, tf32=on|off, nhwc=on|off, memory=MIB, "
        "arena=grow|power2, comma-separated.",
    )  # fmt: skip
    eager_device: str | None = option(
        "--eager-device", panel=MEASUREMENT, default=None,
        default_text="of the fastest backend",
        help="Where eager and compile run: cpu or cuda. A GPU backend counts as faster than any other.",
    )  # fmt: skip
    rounds: int = option(
        "--rounds", panel=MEASUREMENT, default=20, low=3, help="Timing rounds, at most."
    )
    budget: float = option(
        "--budget", panel=MEASUREMENT, default=300.0,
        help="Seconds of timing after which no new round begins (3 at least).",
    )  # fmt: skip
    threads: int | None = option(
        "--threads", panel=MEASUREMENT, default=None, low=1, help="CPU threads. Default: all cores."
    )

    def __post_init__(self) -> None:
        check_limits(self)
