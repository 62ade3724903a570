"""Selection of rewrites and their forms, one per target.

All forms compute the same function of the same weights, but compilers build different kernels for
them. The CPU forms were measured (docs/benchmarks.md): the same ones are fastest on ONNX Runtime
and OpenVINO. The TensorRT forms follow its fusion rules and were not measured on a GPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from save_deploy.errors import SaveDeployError
from save_deploy.fields import check_word

REWRITES: dict[str, str] = {
    "normalise": "image normalization in the patch convolution, uint8 NHWC input, constant positions",
    "windows": "padded window tokens skipped in the linears (and as queries)",
    "scale": "query scale in the weights",
    "rel_pos": "relative positions as tables of this resolution, not broadcast (or in q and k)",
    "adapter": "image adapter on tokens, convolutions optionally as matrix products or by Winograd",
    "audio": "all audio adapters batched",
    "decoder": "one mask of four, constants folded, upscaling as linears",
}
TARGETS = ("portable", "onnxruntime", "openvino", "tensorrt")
WINDOWS = ("off", "late_pad", "real_queries")
REL_POS = ("off", "bias", "fold_global", "strips")
ADAPTER = ("off", "tokens", "matmul", "winograd")


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Form of each rewrite; "off" or False keeps the eager part, but for the biases of attention.

    windows: late_pad pads after qkv instead of before; real_queries also drops padded queries, with
        one attention per window shape.
    rel_pos: bias computes one product per row and column of queries; fold_global also appends the
        terms to q, k and v of global blocks, which then need no bias of the size of the scores;
        strips is bias, in global blocks for a few query rows of one head at a time.
    adapter: tokens keeps the convolutions; matmul replaces them with MatMuls; winograd replaces the
        transposed one, with 9/16 of its multiplications and 9/4 of its weights.
    separate_qkv: q, k and v are three products, else parts of one, which joined ones always are.
    joined: products of the same tokens become one, and one transposition splits the heads.
    """

    normalise: bool = True
    windows: str = "late_pad"
    scale: bool = True
    rel_pos: str = "bias"
    adapter: str = "off"
    audio: bool = True
    decoder: bool = True
    separate_qkv: bool = True
    joined: bool = False

    def without(self, *names: str) -> Forms:
        """Return the forms with these rewrites off. Raises SaveDeployError for an unknown name."""
        unknown = sorted(set(names) - set(REWRITES))
        if unknown:
            raise SaveDeployError(
                "unknown rewrite", got=", ".join(unknown), expected=", ".join(REWRITES)
            )
        off = {n: "off" if isinstance(getattr(self, n), str) else False for n in names}
        return replace(self, **off)  # type: ignore[arg-type]

    def quantizable(self) -> Forms:
        """Return the forms for INT8 and FP8: convolutions as MatMuls, one product for q, k and v.

        ONNX Runtime 1.31 computes several products of one quantized tensor in float.
        """
        return replace(self, adapter="matmul", separate_qkv=False)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def forms_for(target: str, *, res: int = 256) -> Forms:
    """Return the forms for a target of TARGETS at res px. Raises SaveDeployError for others."""
    check_word("target", target, TARGETS)
    if target == "tensorrt":
        # few large kernels; at 1024 px a bias for 64x64 global tokens is as large as the scores
        rel_pos = "fold_global" if res > 512 else "bias"
        return Forms(rel_pos=rel_pos, adapter="tokens", separate_qkv=False, joined=True)
    if res > 512:  # at 256 px neither gains
        # on OpenVINO the weights of Winograd take more memory than strips save
        adapter = "winograd" if target == "onnxruntime" else "off"
        return Forms(windows="real_queries", rel_pos="strips", adapter=adapter)
    return Forms(windows="real_queries")
