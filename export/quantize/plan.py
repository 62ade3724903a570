"""Quantization plan: which MatMuls are quantized and with which ranges.

It is applied to a graph and stored in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from save_deploy.bundle import MANIFEST, Manifest
from save_deploy.calibration.table import CalibrationTable
from save_deploy.errors import BundleError, ExportError, SaveDeployError
from save_deploy.export.merge.deploy import DeployModel
from save_deploy.export.options import ExportOptions
from save_deploy.export.quantize.qdq import insert_qdq
from save_deploy.export.quantize.sites import MatMulSite, find_sites
from save_deploy.export.quantize.weights import largest_weight, weight_format
from save_deploy.fields import Fields

TABLE_FILE = "calibration.json"


@dataclass(frozen=True)
class QuantPlan:
    """Quantization plan of one model.

    fmt: int8 or fp8.
    weight_bits: 7 or 8, of INT8 weights.
    float_units: branches left in float, such as `blocks.3.mlp`.
    chosen_by: "all", "search", or the name of the bundle whose choice is reused.
    """

    fmt: str
    table: CalibrationTable
    sites: tuple[MatMulSite, ...]
    method: str
    float_units: tuple[str, ...] = ()
    chosen_by: str = "all"
    weight_bits: int = 8

    @property
    def quantized(self) -> tuple[MatMulSite, ...]:
        return tuple(p for p in self.sites if p.unit not in self.float_units)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest entry, without measurements of the quantized graph."""
        smoothing = self.table.smoothing
        return {
            "format": self.fmt,
            "weight_bits": self.weight_bits,
            "products": [p.name for p in self.quantized],
            "float_units": list(self.float_units),
            "chosen_by": self.chosen_by,
            "calibration": {
                "file": TABLE_FILE,
                "sha256": self.table.sha256,
                "method": self.method,
                "pairs": self.table.data["pairs"],
                "source": self.table.data["source"],
                "data_sha256": self.table.data["sha256"],
                "not_stratified": self.table.data["not_stratified"],
            },
            "smoothing": {norm: found.alpha for norm, found in smoothing.items()},
            "bias_corrected": sorted(self.table.means),
        }


def quantize_graph(
    graph: ir.Model, plan: QuantPlan, *, memo: dict[str, Any] | None = None
) -> tuple[str, ...]:
    """Insert Q/DQ pairs into a float32 graph in place.

    Returns the names of the quantized MatMul nodes.
    memo: cache of rounded weights for further calls with the same graph.
    Raises DataError when the table lacks a MatMul.
    """
    chosen = plan.quantized
    amax = {p.name: plan.table.amax(p.name, plan.method) for p in chosen}
    nodes = insert_qdq(
        graph, chosen, amax, fmt=plan.fmt, weight_bits=plan.weight_bits, means=plan.table.means,
        memo=memo,
    )  # fmt: skip
    return nodes


def require_weight_bits(graph: Path, plan: QuantPlan) -> dict[str, int]:
    """Return the largest absolute INT8 weight of a written graph as a manifest entry, {} for FP8.

    Raises ExportError when it exceeds what the bits of the plan allow: runtimes rely on it.
    """
    if plan.fmt != "int8":
        return {}
    largest = largest_weight(ir.load(graph))
    allowed = weight_format("int8", plan.weight_bits).levels
    if largest > allowed:
        raise ExportError(
            f"the graph has an INT8 weight of more than {plan.weight_bits} bits",
            got=str(largest),
            expected=f"at most {allowed:g}",
        )
    return {"largest_weight": largest}


def units_of(products: Sequence[MatMulSite]) -> tuple[str, ...]:
    """Return the units of the sites, without duplicates, in their order."""
    return tuple(dict.fromkeys(p.unit for p in products))


def plan_quantization(
    deploy: DeployModel, table: CalibrationTable, options: ExportOptions
) -> QuantPlan:
    """Return a plan that quantizes every MatMul site, or the choice of a reused bundle."""
    sites = find_sites(deploy)
    if not sites:
        raise SaveDeployError(
            "nothing to quantize",
            got="an encoder without constant MatMuls",
            expected="MatMuls of attention and MLP",
        )
    reuse = options.search.reuse
    reused = ReusedChoice.read(reuse) if reuse else None
    plan = QuantPlan(
        fmt=options.precision.quantized or "",
        table=table,
        sites=sites,
        method=options.calibration.method or (reused.method if reused else table.method),
        weight_bits=options.int8_weight_bits,
    )
    for site in sites:
        table.amax(site.name, plan.method)  # raises for another model, before the slow trace
    if reused is None:
        return plan
    reused.require_units(sites)
    return replace(plan, float_units=reused.float_units, chosen_by=reused.name)


@dataclass(frozen=True)
class ReusedChoice:
    """Precision choice of another bundle: its float units, its ranges, and their method."""

    name: str
    float_units: tuple[str, ...]
    method: str
    table: CalibrationTable

    @classmethod
    def read(cls, bundle: Path) -> ReusedChoice:
        """Read the choice of a bundle.

        Raises BundleError when the bundle has none, for an entry of another type, and when its table
        is not the original one.
        """
        precision = Manifest.read(bundle).precision
        if precision.get("quantization") is None:
            raise BundleError(
                "no precision choice to reuse",
                got=f"{bundle}, {precision['precision']}",
                expected="a bundle exported with --int8 or --fp8",
            )
        origin = f"manifest {bundle / MANIFEST}"
        said = Fields(precision, origin, "precision.", error=BundleError).table("quantization")
        floats, calibration = said.strings("float_units"), said.table("calibration")
        method, sha256 = calibration.string("method"), calibration.string("sha256")
        table = CalibrationTable.read(bundle / TABLE_FILE)
        if table.sha256 != sha256:
            raise BundleError(
                f"{TABLE_FILE} is not the table the bundle was made with",
                got=f"sha256 {table.sha256[:12]}...",
                expected=f"sha256 {sha256[:12]}..., as in its manifest",
                hint="copy the bundle again, or use --calibration-table for ranges only",
            )
        return cls(bundle.name, floats, method, table)

    def require_units(self, products: Sequence[MatMulSite]) -> None:
        """Raise BundleError when the choice names units that this model does not have."""
        unknown = sorted(set(self.float_units) - set(units_of(products)))
        if unknown:
            raise BundleError(
                "the precision choice belongs to another model",
                got=", ".join(unknown),
                expected=f"units of this model: {', '.join(units_of(products)[:3])}, ...",
            )
