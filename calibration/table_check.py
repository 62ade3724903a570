"""What a calibration table may say: keys, kinds and ranges of its values, checked before it is used."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from save_deploy.errors import DataError

FORMAT = "save-deploy-calibration"
FORMAT_VERSION = 1
MAX_EXPONENT = 16  # of 2 in a smoothing scale, either way
MODEL = {"name": str, "res": int, "sha256": str}
DATA = {
    "source": str,
    "pairs": int,
    "batches": int,
    "sha256": str,
    "names": list,
    "pair_sha256": list,
    "strata": dict,
    "not_stratified": list,
}
TABLE = {
    "model": dict,
    "data": dict,
    "method": str,
    "tensors": dict,
    "smoothing": dict,
    "means": dict,
    "versions": dict,
}
WORDS = {
    str: "a string",
    int: "a whole number",
    list: "a list",
    dict: "an object",
    object: "a value",
}
REMEDY = "save-calibrate writes a new table"


def check_table(values: Any, origin: str) -> None:
    """Raises DataError at the first thing that is not as CalibrationTable says."""

    def want(fine: bool, where: str, got: Any, expected: str) -> None:
        if not fine:
            shown = got if isinstance(got, str) else repr(got)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise DataError(f"{origin}: {where}", got=shown, expected=expected, hint=REMEDY)

    def keys(value: Any, where: str, kinds: Mapping[str, type]) -> None:
        want(isinstance(value, dict), where, value, WORDS[dict])
        missing = sorted(set(kinds) - set(value))
        want(not missing, f"{where} lacks keys", ", ".join(missing), ", ".join(kinds))
        for key, kind in kinds.items():
            fine = isinstance(value[key], kind) and not isinstance(value[key], bool)
            want(fine, f"{where}.{key}", value[key], WORDS[kind])

    def vector(values: Any, where: str, least: float = -math.inf) -> None:
        want(isinstance(values, list) and values != [], where, values, "a list of numbers")
        for channel, value in enumerate(values):
            number(value, f"{where}[{channel}]", least)

    def number(value: Any, where: str, least: float = -math.inf) -> None:
        expected = "a finite number" + (f" above {least:g}" if math.isfinite(least) else "")
        want(_finite(value) and value > least, where, value, expected)

    want(isinstance(values, dict), "not a calibration table", values, WORDS[dict])
    for key, wanted in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        found = values.get(key)
        same = type(found) is type(wanted) and found == wanted
        want(same, f"another {key}", found, str(wanted))
    keys(values, "the table", TABLE)
    keys(values["model"], "model", MODEL)
    keys(values["data"], "data", DATA)
    method = values["method"]
    for name, entry in values["tensors"].items():
        keys(entry, name, {"amax": dict, "histogram": dict})
        want(method in entry["amax"], f"{name} lacks the default method", entry["amax"], method)
        sampled = entry.get("sampled", False)
        want(isinstance(sampled, bool), f"{name}.sampled", sampled, "true or false")
        for key, value in entry["amax"].items():
            number(value, f"{name}.amax.{key}", 0)
        for key, value in entry["histogram"].items():
            number(value, f"{name}.histogram.{key}")
    for name, entry in values["smoothing"].items():
        keys(entry, name, {"alpha": object, "exponents": list})
        alpha = entry["alpha"]
        want(_finite(alpha) and 0 <= alpha <= 1, f"{name}.alpha", alpha, "a number in [0, 1]")
        for channel, value in enumerate(entry["exponents"]):
            whole = type(value) is int and abs(value) <= MAX_EXPONENT
            expected = f"a whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}"
            want(whole, f"{name}.exponents[{channel}]", value, expected)
        want(entry["exponents"] != [], f"{name}.exponents", [], "a whole number per channel")
    for name, means in values["means"].items():
        vector(means, f"means of {name}")
    for name, version in values["versions"].items():
        want(isinstance(version, str), f"versions.{name}", version, WORDS[str])
    try:
        json.dumps(values, allow_nan=False)
    except ValueError as error:
        want(False, "not every number is finite", str(error), "JSON, which knows no NaN")


def _finite(value: Any) -> bool:
    """A JSON number that fits a float; NaN compares false."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max
