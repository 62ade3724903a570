"""Which rewrites a deploy model uses, and in which of their equal forms: one choice per target.

All forms compute the same function of the same weights; they differ in what a compiler makes of them.
The CPU choice was measured (docs/benchmarks.md): one form is best on both runtimes. TensorRT's follows
from what it fuses and was not run on a GPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from save_deploy.errors import SaveDeployError

REWRITES: dict[str, str] = {
    "normalise": "image normalisation in the patch convolution, uint8 NHWC input, constant positions",
    "windows": "padded window tokens skipped in the linears (and as queries)",
    "scale": "query scale in the weights",
    "rel_pos": "relative positions as tables of this resolution, not broadcast (or in q and k)",
    "adapter": "image adapter on tokens, convolutions as matrix products where asked",
    "audio": "all audio adapters batched",
    "decoder": "one mask of four, constants folded, upscaling as linears",
}
TARGETS = ("portable", "onnxruntime", "openvino", "tensorrt")
WINDOWS = ("off", "late_pad", "real_queries")
REL_POS = ("off", "bias", "fold_global")
ADAPTER = ("off", "tokens", "matmul")


@dataclass(frozen=True, kw_only=True)
class Forms:
    """windows: off as SAM pads; late_pad after qkv; real_queries also drops padded queries, one
    attention per window shape. rel_pos: off as SAM's einsum; bias as products per row and column;
    fold_global also puts them into longer q, k and v of global blocks (no score-sized bias).
    adapter: tokens keeps its convolutions; matmul makes products of them.
    joined: products that read the same tokens are one, and heads are split by one transposition.
    """

    normalise: bool = True
    windows: str = "late_pad"
    scale: bool = True
    rel_pos: str = "bias"
    adapter: str = "off"
    audio: bool = True
    decoder: bool = True
    joined: bool = False

    def without(self, *names: str) -> Forms:
        """The same with these rewrites off. Raises SaveDeployError for a name that is none."""
        unknown = sorted(set(names) - set(REWRITES))
        if unknown:
            raise SaveDeployError(
                "unknown rewrite", got=", ".join(unknown), expected=", ".join(REWRITES)
            )
        off = {n: "off" if isinstance(getattr(self, n), str) else False for n in names}
        return replace(self, **off)  # type: ignore[arg-type]

    def quantizable(self) -> Forms:
        """The same with every convolution of the encoder's blocks as products."""
        return replace(self, adapter="matmul")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def forms_for(target: str, *, res: int = 256) -> Forms:
    """The choice for a target at a resolution. Raises SaveDeployError for an unknown one."""
    if target not in TARGETS:
        raise SaveDeployError("unknown target", got=target, expected=", ".join(TARGETS))
    if target == "tensorrt":
        # few large kernels; no score-sized bias of 64x64 global tokens in memory
        rel_pos = "fold_global" if res > 512 else "bias"
        return Forms(rel_pos=rel_pos, adapter="tokens", joined=True)
    return Forms(windows="real_queries")
