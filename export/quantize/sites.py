"""Selection of the MatMuls to quantize: linears and adapter convolutions of the encoder.

The products of attention itself save little time and cost mask accuracy. Softmax, norms, patch
embedding, neck and decoder stay in float.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from save_deploy.errors import ExportError
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.merge.product import GatheredMatMuls, MatMul, MatMuls

BRANCHES = ("attn", "mlp", "adapter")
# The gate is one vector per frame: no time to gain, and its sigmoid scales every token.
_FLOAT = ("adapter.channel",)


@dataclass(frozen=True)
class MatMulSite:
    """A module whose input is quantized: one tensor, one range, one or more constant matrices.

    name: path in the deploy model, blocks.3.attn.qkv.
    branch: one of BRANCHES.
    norm: the LayerNorm directly before it, or "".
    """

    name: str
    block: int
    branch: str
    norm: str = ""

    @property
    def unit(self) -> str:
        """Name of the branch of a block that is switched to float as a whole: blocks.3.mlp."""
        return f"blocks.{self.block}.{self.branch}"

    def owns(self, module: str) -> bool:
        """Return True for the module path of a node of this site."""
        return module == self.name or module.startswith(f"{self.name}.products.")


def find_sites(deploy: DeployModel) -> tuple[MatMulSite, ...]:
    """Return the sites in order of computation. A depthwise adapter has none and stays in float.

    Raises ExportError for a model whose forms are not Forms.quantizable().
    """
    if any(isinstance(module, MatMuls) for module in deploy.modules()):
        raise ExportError(
            "q, k and v are separate products",
            got="forms for float graphs",
            expected="one product, which ONNX Runtime computes in 8 bits",
            hint="Forms.quantizable()",
        )
    found = []
    for i, block in enumerate(deploy.blocks):
        kinds = (nn.Linear, MatMul, GatheredMatMuls)
        names = [n for n, m in block.named_modules() if isinstance(m, kinds)]
        for name in sorted(names, key=lambda n: BRANCHES.index(n.partition(".")[0])):
            if name.startswith(_FLOAT) or ".products." in name:
                continue
            norm = {"attn.qkv": "norm1", "mlp.lin1": "norm2"}.get(name, "")
            found.append(
                MatMulSite(
                    name=f"blocks.{i}.{name}",
                    block=i,
                    branch=name.partition(".")[0],
                    norm=norm and f"blocks.{i}.{norm}",
                )
            )
    return tuple(found)
