"""The texts of a table, in pieces without the rows that are not chosen: of one column, or rows of several
(`whole_rows.py`). Knows not how a table is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shardkit.errors import SourceError
from shardkit.sources.choice import Choice
from shardkit.sources.pieces import no_text
from shardkit.sources.ranges import DamagedSource
from shardkit.sources.source import InputFile, ReadOptions, check_row_bytes
from shardkit.sources.where import sort_of
from shardkit.sources.whole_rows import rows_of_batch

_ROW = "a row's columns"  # the name of a column of rows that are texts already
_SORTS: dict[str, list[Callable[[pa.DataType], bool]]] = {
    "true or false": [pa.types.is_boolean],
    "a number": [pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal],
    "text": [pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view],
}


@dataclass(frozen=True, slots=True)
class ColumnPiece:
    """`read_rows` rows of a table, of which `rows` (None: all) were chosen, and the text of these."""

    texts: pa.Array
    rows: NDArray[np.int64] | None
    read_rows: int


def column_in(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The column `name` of a batch, which may be within others (`meta.text`)."""
    if name in batch.schema.names:
        return batch.column(name)
    import pyarrow.compute as pc  # the main process needs it for few sources, and it takes 30 ms

    first, *rest = name.split(".")
    column = batch.column(first)
    for part in rest:
        column = pc.struct_field(column, part)  # a missing struct has no values either
    return column


def check_columns(file: InputFile, schema: pa.Schema, options: ReadOptions) -> None:
    """Raise `SourceError` if a file's table has not the columns that are read, or holds there what it should not."""
    for name in options.columns:
        _type_of(file, schema, name, "columns")
    if not options.columns:
        _check_text_column(file, schema, options.text_field)
    _check_chosen_columns(file, schema, options.choice)


def _check_text_column(file: InputFile, schema: pa.Schema, name: str) -> None:
    """Raise `SourceError` if a file's table has no text column `name`."""
    chat = next((column.name for column in schema if _is_chat(column.type)), None)
    if chat is not None and name.split(".")[0] not in schema.names:
        raise SourceError(f"{file.path}: {no_text('column', chat, str(schema.field(chat).type), is_chat=True)}")
    kind = _type_of(file, schema, name, "--text-field")
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        is_chat = _is_chat(kind)
        why = no_text("column", name, str(kind), is_chat=is_chat)
        raise SourceError(
            f"{file.path}: {why}" + ("" if "--text-field" in why or is_chat else ": name another with --text-field")
        )


def _is_chat(kind: pa.DataType) -> bool:
    items = kind.value_type if hasattr(kind, "value_type") else None
    return items is not None and pa.types.is_struct(items) and items.get_field_index("role") >= 0


def _check_chosen_columns(file: InputFile, schema: pa.Schema, chosen: Choice) -> None:
    """Raise `SourceError` if a file's table lacks a column of `--where`, or holds there what that does not compare."""
    for test in chosen.where.comparisons if chosen.where is not None else ():
        kind = _type_of(file, schema, test.column, "--where")
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        sort = next((sort for sort, tests in _SORTS.items() if any(is_one(value) for is_one in tests)), "")
        if test.values and sort != (given := sort_of(test.values[0])) and not pa.types.is_null(value):
            raise SourceError(f"{file.path}: column {test.column!r} is {kind}, --where compares it with {given}")


def _type_of(file: InputFile, schema: pa.Schema, name: str, option: str) -> pa.DataType:
    names = schema.names
    if names.count(name) > 1:
        raise SourceError(
            f"{file.path} has {names.count(name)} columns named {name!r}: write it again with each name once, or "
            f"name another with {option}"
        )
    if name in names:
        return schema.field(name).type
    first, *rest = name.split(".")
    kind: Any = schema.field(first).type if names.count(first) == 1 else None
    for part in rest:
        number = kind.get_field_index(part) if kind is not None and pa.types.is_struct(kind) else -1
        kind = kind.field(number).type if number >= 0 else None
    if kind is None:
        raise SourceError(f"{file.path} has no column {name!r}: expected one of {', '.join(names)} ({option})")
    return kind


@dataclass(slots=True)
class _Held:
    """The rows of a table from `start` on that are not handed out yet: parts of the text, and the rows of these."""

    start: int = 0
    bytes: int = 0
    texts: list[pa.Array] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)

    def piece(self, stop: int, *, all_rows: bool) -> ColumnPiece:
        """What is held, as the rows up to `stop`."""
        texts = self.texts[0] if len(self.texts) == 1 else pa.concat_arrays(self.texts or [pa.array([], pa.string())])
        rows = None if all_rows else np.concatenate([*self.rows, np.empty(0, np.int64)]) - self.start
        return ColumnPiece(texts, rows, stop - self.start)


def chosen_pieces(
    file: InputFile,
    batches: Iterable[pa.RecordBatch],
    options: ReadOptions,
    *,
    first_row: int,
    most: int,
    where: str,
) -> Iterator[ColumnPiece]:
    """The text of `batches`, the first of whose rows is number `first_row` of the file, in pieces of at most `most`
    bytes of text, or one row; `where` names them."""
    every = not options.choice.columns and options.choice.sample is None
    held, row = _Held(), 0
    for batch in batches:
        picked, rows = None, np.arange(row, row + len(batch))
        if not every:
            places = _chosen(file, batch, options.choice, first_row + row)
            picked, rows = pa.array(places), rows[places]
        at = 0
        for texts in texts_in(file, batch, options, most, where, row, picked):
            if held.bytes + texts.nbytes > most and held.texts:
                stop = int(rows[at])  # the next row that is chosen begins the next piece
                yield held.piece(stop, all_rows=every)
                held = _Held(start=stop)
            held.texts.append(texts)
            held.rows.append(rows[at : at + len(texts)])
            held.bytes += texts.nbytes
            at += len(texts)
        row += len(batch)
    if row > held.start:
        yield held.piece(row, all_rows=every)


def _chosen(file: InputFile, batch: pa.RecordBatch, chosen: Choice, first_row: int) -> NDArray[np.int64]:
    """Which rows of a batch are chosen. Its first row is number `first_row` of the file."""
    places = np.flatnonzero(chosen.in_sample(file.path, first_row + np.arange(len(batch))))
    if not chosen.columns:
        return places
    picked = pa.array(places)
    try:
        columns = [column_in(batch, name).take(picked).to_pylist() for name in chosen.columns]
    except UnicodeDecodeError:
        raise SourceError(f"{file.path}: a column that --where asks for holds text that is not UTF-8") from None
    rows = zip(places.tolist(), zip(*columns, strict=True), strict=True)
    kept = [place for place, values in rows if chosen.keeps(dict(zip(chosen.columns, values, strict=True)))]
    return np.asarray(kept, np.int64)


def texts_in(
    file: InputFile,
    batch: pa.RecordBatch,
    options: ReadOptions,
    most: int,
    where: str,
    row: int,
    picked: pa.Array | None = None,
) -> Iterator[pa.Array]:
    """The texts of the rows of a batch, or of those that are `picked`, in pieces of at most `most` bytes, or one row.
    Its first row is number `row` of `where`."""
    names = (_ROW,) if _ROW in batch.schema.names else options.document_columns
    columns = {name: column_in(batch, name) for name in names}
    if picked is not None:
        columns = {name: column.take(picked) for name, column in columns.items()}
    if options.columns and names != (_ROW,):
        yield from _rows(file, columns, most, where, row)
    else:
        yield from _decoded(file, columns[names[0]], most, where, row)


def _rows(file: InputFile, columns: dict[str, pa.Array], most: int, where: str, row: int) -> Iterator[pa.Array]:
    """The rows of `columns` as texts, in pieces as `texts_in` gives them."""
    texts: list[bytes] = []
    held, rows = 0, rows_of_batch(columns)
    for number in range(row, row + len(next(iter(columns.values())))):
        try:
            text = next(rows)
        except ValueError as error:
            expected = "expected text, numbers, truth values, times, lists or objects"
            raise SourceError(f"{file.path}, {where}, row {number:,} of them: {error} (columns): {expected}") from None
        check_row_bytes(file, f"{where}, row {number:,} of them", len(text))
        if texts and held + len(text) > most:
            yield _as_texts(texts)
            texts, held = [], 0
        texts.append(text)
        held += len(text)
    if texts:
        yield _as_texts(texts)


def _as_texts(rows: list[bytes]) -> pa.Array:
    return pa.array(rows, pa.large_binary()).cast(pa.large_string(), safe=False)


def _decoded(file: InputFile, column: pa.Array, most: int, where: str, row: int) -> Iterator[pa.Array]:
    """A column in pieces of at most `most` bytes of text, or one row, without a dictionary, which makes any number of
    rows of a few bytes. Its first row is number `row` of `where`."""
    import pyarrow.compute as pc

    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    try:
        if is_dictionary := pa.types.is_dictionary(column.type):
            lengths = pc.binary_length(column.dictionary).take(column.indices).fill_null(0)
        else:
            lengths = pc.binary_length(column).fill_null(0)
    except pa.ArrowIndexError:
        raise DamagedSource(f"{file.path}, {where}: a value is not in its dictionary: the file is damaged") from None
    ends = np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)
    start = done = 0
    while start < len(column):
        check_row_bytes(file, f"{where}, row {row + start:,} of them", int(ends[start]) - done)
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        part = column.slice(start, stop - start)
        yield part.dictionary_decode() if is_dictionary else part
        start, done = stop, int(ends[stop - 1])


def payload_of(rows: pa.RecordBatch, texts: pa.Array, options: ReadOptions) -> bytes:
    """Rows as they travel to a worker: their `texts`, and the columns that `--where` asks for."""
    text = _ROW if options.columns else options.text_field
    names = [name for name in options.choice.columns if name != text]
    columns = [texts, *(column_in(rows, name) for name in names)]
    batch = pa.record_batch(columns, names=[text, *names])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def of_payload(payload: bytes) -> list[pa.RecordBatch]:
    """The rows that travelled."""
    return list(pa.ipc.open_stream(payload))
