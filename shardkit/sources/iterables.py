"""An iterable of texts as a source: a list, a generator, a `datasets.Dataset`, the column of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError, UsageError
from shardkit.sources.source import InputFile, ReadOptions, Source
from shardkit.sources.whole_rows import row_text


def iterable_source(texts: Iterable[Any], options: ReadOptions) -> Source:
    """The documents of an iterable. Raises `UsageError` or `SourceError` for what has none."""
    texts = _text_column(texts, options)
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


def _text_column(texts: Any, options: ReadOptions) -> Any:
    """The column of a table of pandas, polars or pyarrow, which itself is an iterable of its columns; else `texts`."""
    kind, column = type(texts), options.text_field
    if kind.__module__.partition(".")[0] not in ("pandas", "polars", "pyarrow"):
        return texts
    names = getattr(texts, "column_names", None) if kind.__module__.startswith("pyarrow") else None
    names = getattr(texts, "columns", None) if names is None else names
    if names is None:
        return texts  # one column
    if options.columns:
        raise UsageError(
            f"columns is for rows, a {kind.__name__} is one of columns: give its rows, as table.to_dict('records') of "
            "pandas, table.to_dicts() of polars, table.to_pylist() of pyarrow"
        )
    named = list(map(str, names))
    if named.count(column) != 1:
        has = f"{named.count(column)} columns" if column in named else "no column"
        raise SourceError(
            f"the {kind.__name__} has {has} {column!r}: expected one of {', '.join(named)} (--text-field)"
        )
    return texts[column]


def text_in(item: Any, options: ReadOptions) -> Any:
    """What an item of an iterable gives: its field, its columns as a row (`whole_rows.py`), or itself; None for what
    stands for a missing text in pandas (NaN, `pandas.NA`), and the values of pyarrow's scalars. Raises `ValueError` for
    an item that is no row with those columns."""
    if options.columns:
        if not isinstance(item, dict):
            raise ValueError(f"a {type(item).__name__}: expected a row, as a dict")
        if missing := [name for name in options.columns if name not in item]:
            raise ValueError(f"no column {missing[0]!r} among {', '.join(map(repr, list(item)[:8]))}")
        return row_text({name: item[name] for name in options.columns})
    text = item.get(options.text_field, item) if isinstance(item, dict) else item
    if isinstance(text, str):
        return text
    if hasattr(text, "as_py"):
        return text.as_py()
    is_missing = (isinstance(text, float) and text != text) or type(text).__name__ in ("NAType", "NaTType")
    return None if is_missing else text
