"""Rows with several of their columns, for a caller's functions that look at more than the text.

Such a row is one JSON object, and passes for the row's text on its way to the functions, so that all that is done with
texts (pieces, bounds of memory, skipped rows, resuming) is done with rows. Values are what JSON has; a time is its ISO
8601 text, a decimal number its digits.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from shardkit.errors import UsageError


def checked_columns(columns: Any) -> tuple[str, ...]:
    """The names of columns that a caller gave. Raises `UsageError` for what is no list of names."""
    if columns is None:
        return ()
    is_list = isinstance(columns, Sequence) and not isinstance(columns, str | bytes)
    if not is_list or not columns or not all(isinstance(name, str) for name in columns):
        raise UsageError(f"columns is {columns!r}: expected a list of the names of columns, as in ['title', 'text']")
    return tuple(dict.fromkeys(columns))


def row_text(row: Mapping[str, Any]) -> str:
    """The row as it travels. Raises `ValueError` for a value that JSON does not have."""
    return json.dumps(row, ensure_ascii=False, default=_plain)


def row_of(text: str) -> dict[str, Any]:
    """The row that travelled."""
    row: dict[str, Any] = json.loads(text)
    return row


def rows_of_batch(columns: Mapping[str, pa.Array]) -> Iterator[bytes]:
    """Each row of a table as it travels, one at a time: of a few bytes of a dictionary any number of long rows may
    come. Text that is not UTF-8 comes in place of its row, and is found where the row is read. Raises `ValueError` for
    a value that JSON does not have."""
    for values in zip(*columns.values(), strict=True):
        try:
            row = {name: value.as_py() for name, value in zip(columns, values, strict=True)}
        except UnicodeDecodeError as error:
            yield error.object
            continue
        yield row_text(row).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy's
        return value.tolist()
    raise ValueError(f"a {type(value).__name__}, which JSON does not have")
