"""report.html: the whole comparison in one file that needs no network."""

from save_deploy.runtime.html.data import (
    Check,
    Figure,
    Report,
    ReportFrame,
    Section,
    Table,
)
from save_deploy.runtime.html.page import write_html

__all__ = [
    "Check",
    "Figure",
    "Report",
    "ReportFrame",
    "Section",
    "Table",
    "write_html",
]
