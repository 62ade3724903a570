"""Reading of metadata files (.csv) by row, so that errors can name the row."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from save_deploy.errors import DataError
from save_deploy.fields import MAX_BYTES

_SPLITS = ("train", "val", "validate", "test")


@dataclass(frozen=True)
class Row:
    """One row. `number` counts as in a spreadsheet: the header is row 1."""

    cells: tuple[str, ...]
    file: Path
    number: int

    def cell(self, index: int, name: str) -> str:
        """Return a cell, stripped of blanks. Raises DataError for a row with too few columns."""
        if index >= len(self.cells):
            raise DataError(
                "row with too few columns",
                got=f"{len(self.cells)} columns in {self.file}, {self.where}",
                expected=f"{name} in column {index + 1}",
            )
        return self.cells[index]

    def filled(self, index: int, name: str) -> str:
        """Return a cell as `cell` does. Raises DataError when it is empty."""
        value = self.cell(index, name)
        if not value:
            raise DataError(
                "empty cell", got=f"{self.file}, {self.where}", expected=f"{name} in it"
            )
        return value

    def choice(self, index: int, name: str, known: Iterable[str]) -> str:
        """Return a cell in lower case. Raises DataError when it is not one of the known values."""
        value, known = self.filled(index, name), tuple(known)
        if value.lower() not in known:
            raise DataError(
                f"unknown {name}",
                got=f"{value} in {self.file}, {self.where}",
                expected=", ".join(known),
            )
        return value.lower()

    @property
    def where(self) -> str:
        """Row and file, such as row 17 of s4_meta_data.csv."""
        return row_name(self.file, self.number)


@dataclass(frozen=True)
class Table:
    """A metadata file: header and rows."""

    file: Path
    header: tuple[str, ...]
    rows: list[Row]

    def column(self, name: str) -> int:
        """Return the index of a column, ignoring case.

        Raises DataError unless there is exactly one.
        """
        places = self._places(name)
        if len(places) == 1:
            return places[0]
        shown = f"{', '.join(self.header)} in {self.file}"
        if places:
            raise DataError("column twice in the metadata file", got=shown, expected=f"one {name}")
        if any(cell.lower() in _SPLITS for cell in self.header):
            raise DataError(
                "metadata file without a header",
                got=shown,
                expected=f"a first row that names the columns, {name} among them",
            )
        raise DataError("column not in the metadata file", got=shown, expected=name)

    def at(self, name: str, place: int, width: int) -> int:
        """Return the index of a column by name, else by its published position.

        width: number of published columns. Index columns before them do not count.
        """
        if places := self._places(name):
            return places[0]
        numbers = next((i for i, cell in enumerate(self.header) if not _is_index(cell)), 0)
        return place + (numbers if len(self.header) - numbers >= width else 0)

    def _places(self, name: str) -> list[int]:
        return [i for i, cell in enumerate(self.header) if cell.lower() == name]


def _is_index(cell: str) -> bool:
    """Return True for the header of an index column, as pandas writes it."""
    return cell.lower() in ("", "index") or cell.lower().startswith("unnamed:")


def row_name(file: Path, number: int) -> str:
    """Return the name of a row, such as row 17 of s4_meta_data.csv.

    Few-shot files, all called train.csv or test.csv, get the name of their folder.
    """
    shown = f"{file.parent.name}/{file.name}" if len(file.stem) < 6 else file.name
    return f"row {number} of {shown}"


def read_table(file: Path) -> Table:
    """Read a csv file with a header. Empty lines are skipped.

    A byte order mark and any line ends are accepted. Raises DataError for a file that is missing,
    empty or not text.
    """
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise DataError(
                "metadata file is too large",
                got=f"{size} bytes in {file}",
                expected=f"at most {MAX_BYTES} bytes",
            )
        with file.open(newline="", encoding="utf-8-sig") as text:
            lines = [
                tuple(cell.strip() for cell in cells) for cells in csv.reader(text, strict=True)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "metadata file cannot be read", got=f"{file}: {error}", expected="a csv file"
        ) from error
    if not lines or not any(lines[0]):
        raise DataError("metadata file is empty", got=str(file), expected="a header and rows")
    rows = [Row(cells, file, i) for i, cells in enumerate(lines[1:], 2) if any(cells)]
    return Table(file, lines[0], rows)
