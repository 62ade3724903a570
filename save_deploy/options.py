"""Declaration of options as dataclass fields, used by the command line and by Python code.

    @dataclass(frozen=True, kw_only=True)
    class SearchOptions:
        clips: int = option("--search-clips", default=40, low=4, help="Validation clips.")

The command line creates the option from the field (cli/takes.py). Python code sets the same field.
This module does not import the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from save_deploy.errors import SaveDeployError

KEY = "option"


@dataclass(frozen=True)
class Option:
    """Form of a field on the command line.

    names: `--calib-data`, or none for a positional argument.
    panel: heading in --help, "" for the first one.
    low, high: allowed range.
    default_text: text instead of the default, "" for none.
    parse: text -> value, for a field without a matching option type; `text` is its default.
    needs: option names of which at least one must be given too.
    excludes: option names that cannot be given too.
    """

    help: str
    names: tuple[str, ...] = ()
    panel: str = ""
    low: float | None = None
    high: float | None = None
    metavar: str | None = None
    default_text: str | None = None
    parse: Callable[[str], Any] | None = None
    text: str = ""
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


def option(*names: str, help: str, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """Return a dataclass field with this option. more: the other fields of Option."""
    how = Option(help, names, **more)
    return dataclasses.field(default=default, metadata={KEY: how})


def check_limits(options: Any) -> None:
    """Raise SaveDeployError for a number outside the limits of its option, or NaN.

    The command line checks before; this is for options that are made in Python.
    """
    for field in dataclasses.fields(options):
        how, value = field.metadata.get(KEY), getattr(options, field.name)
        if how is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        low, high = how.low, how.high
        inside = (low is None or value >= low) and (high is None or value <= high)
        if not inside or value != value:
            limits = [f"{low:g} or more"] if low is not None else []
            limits += [f"{high:g} or less"] if high is not None else []
            raise SaveDeployError(
                f"wrong {how.names[0] if how.names else field.name}",
                got=f"{value:g}",
                expected=" and ".join(limits) or "a number",
            )


# Options of several verbs. panel: their heading in --help.


def checkpoint_option() -> Any:
    return option(
        default=None,
        help="SAVE checkpoint (.safetensors, or another project's .pth). Default: the built-in vit_t.",
    )


def sam_option(panel: str = "") -> Any:
    return option(
        "--sam", panel=panel, default=None,
        help="SAM's official .pth, for a checkpoint with only the trained parts.",
    )  # fmt: skip


def vggish_option(panel: str = "") -> Any:
    return option(
        "--vggish", panel=panel, default=None,
        help="VGGish weights, for a file without an audio encoder.",
    )  # fmt: skip


def clips_option(panel: str = "") -> Any:
    return option(
        "--clips", panel=panel, default=None, low=1,
        help="Number of clips. Default: all (200 for generated data).",
    )  # fmt: skip


def sound_option(panel: str = "") -> Any:
    return option(
        "--from", panel=panel, default="auto",
        help="Sound of S4 and MS3: auto, wav, log_mel (stored), or video (with its frames).",
    )  # fmt: skip


def skip_bad_option(panel: str = "", **more: Any) -> Any:
    return option(
        "--skip-bad",
        panel=panel,
        default=False,
        help="Skip unreadable clips and list them.",
        **more,
    )


def threads_option(panel: str = "") -> Any:
    return option(
        "--threads", panel=panel, default=None, low=1, help="CPU threads. Default: all cores."
    )


def threshold_option(panel: str = "") -> Any:
    return option(
        "--threshold", panel=panel, default=0.5,
        help="Probability between 0 and 1 above which a pixel sounds.",
    )  # fmt: skip


def self_test_option(panel: str = "") -> Any:
    return option(
        " /--no-self-test", panel=panel, default=True, default_text="",
        help="Skip the run of the golden samples on a GPU that is new to a bundle.",
    )  # fmt: skip


def trust_option(panel: str = "") -> Any:
    return option(
        "--trust-engine", panel=panel, default=False,
        help="Also run engines not built on this machine. They are code (docs/security.md).",
    )  # fmt: skip
