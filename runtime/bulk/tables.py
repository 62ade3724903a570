"""Parquet files of a run. Their folder may be a stranger's, so what is read from them is checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from save_deploy.errors import DataError

_ROWS = 512  # rows per read


def rows_of(
    path: Path, schema: Any, *, what: str, optional: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file in order.

    schema: names and types of its columns, of pyarrow. optional: those in which values may be missing.
    Raises DataError("not `what`") for another file, and for other columns, types and missing values.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns, expected = _named(file.schema_arrow), _named(schema)
            if columns != expected:
                raise DataError(f"not {what}", got=f"{path}: {columns[:200]}", expected=expected)
            for batch in file.iter_batches(_ROWS):
                for name in batch.schema.names:
                    if name not in optional and batch.column(name).null_count:
                        raise DataError(
                            f"not {what}", got=f"{path}: no {name} in a row", expected="a value"
                        )
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"not {what}", got=f"{path}: {error}") from None


def _named(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
