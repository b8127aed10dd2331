"""Parquet files: cut into chunks by row groups, one column read at a time. Knows nothing of what the column says."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import SourceError
from shardkit.sources.ranges import DamagedSource, RangeFile, checked_read
from shardkit.sources.source import Chunk, InputFile, Source

_GIANT_CHUNKS = 8  # a row group larger than this many chunks is read front to back by the main process


def iter_parquet_chunks(source: Source, number: int, start: int, part: int, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of a parquet file from row group `start` (and row `part` of it) on."""
    file, column = source.files[number], source.options.text_field
    meta = _opened(file).metadata
    index = _text_column(file, column)
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
    weight = file.bytes * rows // max(1, handle.metadata.num_rows)
    row = 0
    for batch in _iter_batches(file, group, rows, column):
        first, row = row, row + batch.num_rows
        if row <= part:
            continue
        batch = batch.slice(max(0, part - first))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        payload = sink.getvalue().to_pybytes()
        at = max(part, first)
        yield Chunk(file=number, start=group, stop=group + 1, part=at, weight=weight, input=file, payload=payload)
    _check_rows(file, row, meta.num_rows)


def _iter_batches(file: InputFile, group: int, rows: int, column: str) -> Iterator[pa.RecordBatch]:
    """A row group in batches of `rows`; what seems to be damaged in a remote file is read again, once."""
    options = {"batch_size": rows, "row_groups": [group], "columns": [column], "use_threads": False}
    done, tries = 0, 2 if file.is_remote else 1
    while True:
        batches = _opened(file).iter_batches(**options)
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
    handle = _open_parquet(file)
    names = handle.schema_arrow.names
    if column not in names:
        raise SourceError(f"{file.path} has no column {column!r}: expected one of {', '.join(names)} (--text-field)")
    kind = handle.schema_arrow.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise SourceError(f"{file.path}: column {column!r} is {kind}, not text: name another with --text-field")
    leaves = [handle.metadata.schema.column(i).path for i in range(len(handle.metadata.schema))]
    return leaves.index(column)


def read_column(chunk: Chunk, column: str) -> pa.ChunkedArray:
    """The text column of a chunk. Raises `SourceError` if it cannot be read, is not text, or lacks rows."""
    file = chunk.input
    if isinstance(chunk.payload, bytes):
        return pa.ipc.open_stream(chunk.payload).read_all().column(column)
    groups = list(range(chunk.start, chunk.stop))
    checked_read(file, lambda: _text_column(file, column))
    handle = checked_read(file, lambda: _open_parquet(file))
    table = checked_read(file, lambda: handle.read_row_groups(groups, columns=[column], use_threads=False))
    _check_rows(file, table.num_rows, sum(handle.metadata.row_group(group).num_rows for group in groups))
    return table.column(column)


def _opened(file: InputFile) -> pq.ParquetFile:
    """The open file; a remote footer that seems to be damaged is read again before the file is blamed."""
    try:
        return checked_read(file, lambda: _open_parquet(file))
    except DamagedSource:
        if not file.is_remote:
            raise
        return checked_read(file, lambda: _open_parquet(file))


def close_parquet_files() -> None:
    """Have the next chunk open its file anew."""
    _open_parquet.cache_clear()


@lru_cache(maxsize=2)
def _open_parquet(file: InputFile) -> pq.ParquetFile:
    """The open file, cached for its next chunk. Pages are checked against their checksums, where the file has them."""
    if file.is_remote:
        handle = pa.PythonFile(RangeFile(file), mode="r")
        return pq.ParquetFile(handle, pre_buffer=False, page_checksum_verification=True)
    # without a buffer size, a giant row group would be read whole before its first batch
    return pq.ParquetFile(file.url, buffer_size=1 << 20, page_checksum_verification=True)


def _check_rows(file: InputFile, rows: int, expected: int) -> None:
    if rows != expected:
        raise DamagedSource(
            f"{file.path} gives {rows:,} rows where its footer says {expected:,}: it is damaged, fetch it again"
        )
