"""Parquet files: cut into chunks by row groups, one column read at a time. Knows nothing of what the column says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardkit.errors import SourceError
from shardkit.network import Result
from shardkit.sources.ranges import DamagedSource, RangeFile, checked_read
from shardkit.sources.source import Chunk, InputFile, Source, check_row_bytes

_GIANT_CHUNKS = 8  # a row group larger than this many chunks is read front to back by the main process
_BATCH_ROWS = 1 << 16


def iter_parquet_chunks(source: Source, number: int, start: int, part: int, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of a parquet file from row group `start` (and row `part` of it) on."""
    file, column = source.files[number], source.options.text_field
    meta = _opened(file).metadata
    index = _checked(file, lambda: _text_column(file, column), SourceError)
    _check_rows(file, sum(meta.row_group(g).num_rows for g in range(meta.num_row_groups)), meta.num_rows)
    sizes = [meta.row_group(g).column(index).total_uncompressed_size for g in range(meta.num_row_groups)]
    share = file.bytes / max(1, sum(sizes))
    group = start
    while group < meta.num_row_groups:
        stop, size = group + 1, sizes[group]
        while stop < meta.num_row_groups and size + sizes[stop] <= chunk_bytes:
            size += sizes[stop]
            stop += 1
        if sizes[group] > _GIANT_CHUNKS * chunk_bytes:
            yield from _iter_giant(file, number, group, part if group == start else 0, column, chunk_bytes)
        else:
            yield Chunk(file=number, start=group, stop=stop, weight=int(size * share), input=file)
        group = stop


def _iter_giant(file: InputFile, number: int, group: int, part: int, column: str, chunk_bytes: int) -> Iterator[Chunk]:
    """A row group too large for one chunk, in batches that the main process reads in order."""
    handle = _opened(file)
    meta = handle.metadata.row_group(group)
    rows = max(1, meta.num_rows * chunk_bytes // max(1, meta.total_byte_size))
    share = file.bytes / max(1, handle.metadata.num_rows)
    row = 0
    for batch in _iter_batches(file, group, rows, column):
        first, row = row, row + batch.num_rows
        if row <= part:
            continue
        at = max(part, first)
        for piece in _decoded(file, batch.column(0).slice(at - first), chunk_bytes, f"row group {group}", at):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, pa.schema([(column, piece.type)])) as writer:
                writer.write_batch(pa.record_batch([piece], names=[column]))
            payload, weight = sink.getvalue().to_pybytes(), int(share * len(piece))
            yield Chunk(file=number, start=group, stop=group + 1, part=at, weight=weight, input=file, payload=payload)
            at += len(piece)
    _check_rows(file, row, meta.num_rows)


def _iter_batches(file: InputFile, group: int, rows: int, column: str) -> Iterator[pa.RecordBatch]:
    """A row group in batches of `rows`; what seems to be damaged in a remote file is read again, once."""
    options = {"batch_size": rows, "row_groups": [group], "columns": [column], "use_threads": False}
    done, tries = 0, 2 if file.is_remote else 1
    while True:
        batches = _opened(file, column).iter_batches(**options)
        try:
            for number in count():
                if (batch := checked_read(file, lambda: next(batches, None))) is None:  # noqa: B023 (called at once)
                    return
                if number == done:
                    done += 1
                    yield batch
        except DamagedSource:
            tries -= 1
            if tries == 0:
                raise
            close_parquet_files()


def _text_column(file: InputFile, column: str) -> int:
    """The index of the leaf column that holds the text. Raises `SourceError` if there is none, or it is not text."""
    handle = _open_parquet(file, None)
    names = handle.schema_arrow.names
    if column not in names:
        raise SourceError(f"{file.path} has no column {column!r}: expected one of {', '.join(names)} (--text-field)")
    kind = handle.schema_arrow.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise SourceError(f"{file.path}: column {column!r} is {kind}, not text: name another with --text-field")
    leaves = [handle.metadata.schema.column(i).path for i in range(len(handle.metadata.schema))]
    return leaves.index(column)


def iter_column(chunk: Chunk, column: str, piece_bytes: int) -> Iterator[pa.Array]:
    """The text column of a chunk, in pieces of at most `piece_bytes` of text, or one row. Raises `SourceError` if it
    cannot be read, is not text, or lacks rows."""
    file = chunk.input
    if isinstance(chunk.payload, bytes):
        yield from pa.ipc.open_stream(chunk.payload).read_all().column(column).chunks
        return
    groups = list(range(chunk.start, chunk.stop))
    _opened(file)
    _checked(file, lambda: _text_column(file, column), SourceError)
    handle = checked_read(file, lambda: _open_parquet(file, column))
    batches = handle.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=[column], use_threads=False)
    held: list[pa.Array] = []
    rows = size = 0
    while (batch := checked_read(file, lambda: next(batches, None))) is not None:
        for piece in _decoded(file, batch.column(0), piece_bytes, f"row groups {chunk.start}-{chunk.stop}", rows):
            if size + piece.nbytes > piece_bytes and held:
                yield _joined(held)
                held, size = [], 0
            held.append(piece)
            size += piece.nbytes
        rows += batch.num_rows
    if held:
        yield _joined(held)
    _check_rows(file, rows, sum(handle.metadata.row_group(group).num_rows for group in groups))


def _joined(arrays: list[pa.Array]) -> pa.Array:
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def _decoded(file: InputFile, column: pa.DictionaryArray, most: int, where: str, row: int) -> Iterator[pa.Array]:
    """A column in pieces of at most `most` bytes of text, or one row, without the dictionary, which makes any number of
    rows of a few bytes. Its first row is number `row` of `where`."""
    try:
        lengths = pc.binary_length(column.dictionary).take(column.indices).fill_null(0)
    except pa.ArrowIndexError as error:
        raise DamagedSource(f"{file.path}, {where}: a value is not in its dictionary: the file is damaged") from error
    ends = np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)
    start = done = 0
    while start < len(column):
        check_row_bytes(file, f"{where}, row {row + start:,} of them", int(ends[start]) - done)
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield column.slice(start, stop - start).dictionary_decode()
        start, done = stop, int(ends[stop - 1])


def _opened(file: InputFile, coded: str | None = None) -> pq.ParquetFile:
    """`_open_parquet`, checked."""
    return _checked(file, lambda: _open_parquet(file, coded))


def _checked(file: InputFile, action: Callable[[], Result], blame: type[SourceError] = DamagedSource) -> Result:
    """`action`, which asks for no more than the footer; a remote one is read again before it gets the `blame`."""
    try:
        return checked_read(file, action)
    except blame:
        if not file.is_remote:
            raise
        close_parquet_files()
        return checked_read(file, action)


def close_parquet_files() -> None:
    """Have the next chunk open its file anew."""
    _open_parquet.cache_clear()


@lru_cache(maxsize=4)
def _open_parquet(file: InputFile, coded: str | None) -> pq.ParquetFile:
    """The open file, cached for its next chunk. Pages are checked against their checksums, where the file has them. A
    dictionary of the column `coded` is left as one."""
    options: dict[str, Any] = {"page_checksum_verification": True}
    if coded is not None:  # the footer is read once
        options |= {"read_dictionary": [coded], "metadata": _open_parquet(file, None).metadata}
    if file.is_remote:
        return pq.ParquetFile(pa.PythonFile(RangeFile(file), mode="r"), pre_buffer=False, **options)
    # without a buffer size, a giant row group would be read whole before its first batch
    return pq.ParquetFile(file.url, buffer_size=1 << 20, **options)


def _check_rows(file: InputFile, rows: int, expected: int) -> None:
    if rows != expected:
        raise DamagedSource(
            f"{file.path} gives {rows:,} rows where its footer says {expected:,}: it is damaged, fetch it again"
        )
