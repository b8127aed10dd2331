"""The caller's functions (`transform`, `filter`): as bytes that travel to the workers, and called there.

They are called with a document's text, or, where columns were asked for, with a row as a `dict` of these.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dill

from shardkit.errors import SourceError, UsageError
from shardkit.sources.source import ReadOptions
from shardkit.sources.whole_rows import checked_columns, row_of

if TYPE_CHECKING:
    from shardkit.sources.texts import Texts

Transform = Callable[[Any], str | None]
Filter = Callable[[Any], bool]


def by_value(function: Callable[..., Any] | None) -> bytes | None:
    """dill's bytes of a function and the globals that it uses. Raises `UsageError` if it is none, or cannot travel."""
    if function is None:
        return None
    if not callable(function):
        raise UsageError(f"transform and filter are functions of a text, got a {type(function).__name__}")
    try:
        return bytes(dill.dumps(function, recurse=True))
    except Exception as error:
        raise UsageError(
            f"{getattr(function, '__qualname__', function)} cannot travel to the workers ({error}): open files, locks "
            "and connections inside the function, not around it"
        ) from error


def columns_for(columns: Any, text_field: str, transform: object, filter: object) -> tuple[str, ...]:
    """The columns of the rows that the functions get (none: they get the text). Raises `UsageError`."""
    names = checked_columns(columns)
    if names and transform is None and filter is None:
        raise UsageError("columns says what transform and filter get of a row: give one of these, or no columns")
    return tuple(dict.fromkeys([*names, text_field])) if names and transform is None else names


class UserFunctions:
    """Both functions in a worker, of the bytes that travelled (None: not given)."""

    def __init__(self, transform: bytes | None, filter: bytes | None, read: ReadOptions) -> None:
        self._transform: Transform | None = dill.loads(transform) if transform else None
        self._filter: Filter | None = dill.loads(filter) if filter else None
        self._read = read
        self.are_given = bool(transform or filter)

    def apply(self, read: Texts, where: str, first_row: int) -> tuple[list[str], list[int] | range]:
        """The documents that the functions make of texts, and the rows of these. A transform that returns None drops
        the document. Raises `SourceError` for what a function raises, or returns that is no text: with its row of
        `where`, of which the texts' first one is `first_row`."""
        if not self.are_given:
            return read.texts, read.rows
        kept: list[str] = []
        kept_rows: list[int] = []
        for text, row in zip(read.texts, read.rows, strict=True):
            try:
                document = self._document_of_row(row_of(text)) if self._read.columns else self._document(text)
            except Exception as error:
                raise SourceError(
                    f"transform or filter failed at {where}, row {first_row + row} of them:\n{traceback.format_exc()}"
                ) from error
            if document is None:
                continue
            if not isinstance(document, str):
                returned = "transform returned" if self._transform else f"column {self._read.text_field!r} holds"
                place = f"{where}, row {first_row + row} of them"
                raise SourceError(f"{returned} a {type(document).__name__} at {place}: expected str or None")
            kept.append(document)
            kept_rows.append(row)
        return kept, kept_rows

    def _document(self, text: str) -> Any:
        changed = text if self._transform is None else self._transform(text)
        return changed if changed is None or self._filter is None or self._filter(changed) else None

    def _document_of_row(self, row: dict[str, Any]) -> Any:
        """The filter sees the row; without a transform the text is what is in its text field, or empty."""
        if self._filter is not None and not self._filter(row):
            return None
        if self._transform is not None:
            return self._transform(row)
        text = row[self._read.text_field]
        return "" if text is None else text
