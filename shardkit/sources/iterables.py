"""An iterable of texts as a source: a list, a generator, a `datasets.Dataset`, the column of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError, UsageError
from shardkit.sources.source import InputFile, ReadOptions, Source


def iterable_source(texts: Iterable[Any], options: ReadOptions) -> Source:
    """The documents of an iterable. Raises `UsageError` or `SourceError` for what has none."""
    texts = _text_column(texts, options.text_field)
    if isinstance(texts, bytes) or not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) == 0:
        raise UsageError(f"source is a {type(texts).__name__}: expected a name, a path, or an iterable of texts")
    if isinstance(texts, Mapping):
        raise UsageError(
            f"source is a {type(texts).__name__} with {', '.join(map(str, list(texts)[:5]))}: give one of its values, "
            'as in `tokenize(dataset["train"], ...)`'
        )
    if isinstance(texts, set | frozenset):
        raise UsageError("source is a set, whose order changes from run to run: give a list")
    file = InputFile(path="texts", url="", bytes=0, format="texts")
    info = SourceInfo(id="texts", text_field=options.text_field)
    return Source(info=info, files=(file,), options=options, texts=texts)


def _text_column(texts: Any, column: str) -> Any:
    """The column of a table of pandas, polars or pyarrow, which itself is an iterable of its columns; else `texts`."""
    kind = type(texts)
    if kind.__module__.partition(".")[0] not in ("pandas", "polars", "pyarrow"):
        return texts
    names = getattr(texts, "column_names", None) if kind.__module__.startswith("pyarrow") else None
    names = getattr(texts, "columns", None) if names is None else names
    if names is None:
        return texts  # one column
    named = list(map(str, names))
    if named.count(column) != 1:
        has = f"{named.count(column)} columns" if column in named else "no column"
        raise SourceError(
            f"the {kind.__name__} has {has} {column!r}: expected one of {', '.join(named)} (--text-field)"
        )
    return texts[column]
