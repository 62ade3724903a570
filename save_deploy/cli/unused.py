"""Options of 8 bits that an export would have no use for: refused, never passed over."""

from __future__ import annotations

import typer

from save_deploy.errors import SaveDeployError

_MEASURING = {
    "calib_data": "--calib-data",
    "calib_split": "--calib-split",
    "calib_pairs": "--calib-pairs",
    "skip_bad": "--skip-bad",
    "smooth": "--smooth/--no-smooth",
}
_READING = {"calibration_table": "--calibration-table", "precision_from": "--precision-from"}
_SEARCH = {
    "search_data": "--search-data",
    "search_clips": "--search-clips",
    "search_cost": "--search-cost",
}
_EIGHT_BITS = {
    **_MEASURING, **_READING, **_SEARCH, "calib_method": "--calib-method", "max_drop": "--max-drop",
}  # fmt: skip


def refuse_unused(ctx: typer.Context) -> None:
    """Looks at what stands on the command line of save-export, defaults excepted.

    Raises SaveDeployError for options of quantization without it, of measuring beside ranges that are
    read, and of the search without one.
    """
    given = lambda options: [text for name, text in options.items() if _is_given(ctx, name)]
    eight_bits, reading, measuring = given(_EIGHT_BITS), given(_READING), given(_MEASURING)
    if eight_bits and not (ctx.params["int8"] or ctx.params["fp8"]):
        raise SaveDeployError(
            "an option of quantization without it",
            got=", ".join(eight_bits),
            expected="--int8 or --fp8 beside it",
        )
    if reading and measuring:
        raise SaveDeployError(
            "ranges are read and measured",
            got=", ".join(reading + measuring),
            expected=f"{reading[0]} alone, or none of it: nothing is measured beside it",
        )
    if (search := given(_SEARCH)) and not _is_given(ctx, "max_drop"):
        raise SaveDeployError(
            "an option of the precision search without it",
            got=", ".join(search),
            expected="--max-drop beside it",
        )


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
