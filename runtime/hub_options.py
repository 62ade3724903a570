"""Options of save-deploy publish."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from save_deploy.errors import DataError
from save_deploy.options import option

UNKNOWN_LICENSE = "other"


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Options of publish.

    license: identifier used by the Hub.
    repo: USER/NAME in the card's example; "" for USER and the folder's name.
    """

    bundle: Path = option(help="Folder written by save-export.")
    out: Path = option("--out", "-o", help="Folder to write.")
    force: bool = option("--force", default=False, help="Replace an existing published folder.")
    license: str = option(
        "--license", default=UNKNOWN_LICENSE, metavar="ID",
        help="License of the weights, such as apache-2.0 or cc-by-nc-4.0.",
    )  # fmt: skip
    repo: str = option(
        "--repo", default="", metavar="USER/NAME", default_text="",
        help="Name on the Hub, for the example in the card. Default: USER and the folder's name.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise DataError for a license or a name that the Hub does not accept."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", self.license):
            raise DataError(
                "wrong license", got=self.license[:80], expected="an identifier such as apache-2.0"
            )
        if self.repo and not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", self.repo, re.ASCII):
            raise DataError("wrong --repo", got=self.repo[:80], expected="USER/NAME")
