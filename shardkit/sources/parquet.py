"""Parquet files: cut into chunks by row groups, one column read at a time. Knows nothing of what the column says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import accumulate, count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardkit.errors import SourceError
from shardkit.network import Result
from shardkit.sources.footers import Footers
from shardkit.sources.giant_groups import batches_of, encoded
from shardkit.sources.ranges import AheadFile, DamagedSource, RangeFile, checked_read
from shardkit.sources.read_ahead import WORKER_AHEAD_BYTES, ReadAhead
from shardkit.sources.source import Chunk, Fetched, InputFile, Piece, Source, check_row_bytes

_GIANT_CHUNKS = 8  # a row group larger than this many chunks is read front to back by the main process
_BATCH_ROWS = 1 << 16


def iter_parquet_chunks(
    source: Source, number: int, start: int, part: int, chunk_bytes: int, ahead: Footers | None = None
) -> Iterator[Chunk]:
    """The chunks of a parquet file from row group `start` (and row `part` of it) on. Footers are had from `ahead`."""
    file, column = source.files[number], source.options.text_field
    footer = None if ahead is None else _right_footer(ahead, number, column)
    index = _checked(file, lambda held: _text_column(_open_footer(file, held), file, column), footer, SourceError)
    meta = _open_footer(file, footer).metadata
    _check_rows(file, sum(meta.row_group(g).num_rows for g in range(meta.num_row_groups)), meta.num_rows)
    sizes = [meta.row_group(g).column(index).total_uncompressed_size for g in range(meta.num_row_groups)]
    share = file.bytes / max(1, sum(sizes))
    end = len(sizes) if file.stretch is None or file.stretch.stop is None else file.stretch.stop
    for group, stop in _runs(sizes[:end], start, chunk_bytes):
        if sizes[group] > _GIANT_CHUNKS * chunk_bytes:
            yield from _iter_giant(source, number, group, part if group == start else 0, chunk_bytes, ahead)
        else:
            weight = int(sum(sizes[group:stop]) * share)
            yield Chunk(file=number, start=group, stop=stop, weight=weight, input=file)


def _runs(sizes: list[int], start: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """The row groups from `start` on that a chunk holds, as half-open ranges: as many as have `chunk_bytes`, or one."""
    while start < len(sizes):
        stop, size = start + 1, sizes[start]
        while stop < len(sizes) and size + sizes[stop] <= chunk_bytes:
            size += sizes[stop]
            stop += 1
        yield start, stop
        start = stop


def chunk_starts(file: InputFile, column: str, chunk_bytes: int) -> list[tuple[int, int]]:
    """Where the chunks of a parquet file begin: the row group, and how many of the file's bytes lie before it, about.
    Raises `SourceError`."""

    def sizes_in(held: Piece | None) -> list[int]:
        handle = _open_footer(file, held)
        index, meta = _text_column(handle, file, column), handle.metadata
        return [meta.row_group(g).column(index).total_uncompressed_size for g in range(meta.num_row_groups)]

    sizes = _checked(file, sizes_in, None, SourceError)
    before = [0, *accumulate(sizes)]
    return [(group, before[group] * file.bytes // max(1, before[-1])) for group, _ in _runs(sizes, 0, chunk_bytes)]


def _right_footer(ahead: Footers, number: int, column: str) -> Piece | None:
    """The footer that was fetched ahead, if there is one, and nothing is wrong with it: else it is to be read again."""
    footer, file = ahead.footer(number), ahead.files[number]
    if footer is not None:
        try:
            checked_read(file, lambda: _text_column(_open_footer(file, footer), file, column))
        except SourceError:
            ahead.discard(number)
            return None
    return footer


def column_ranges(chunk: Chunk, column: str, footer: Piece | None = None) -> list[tuple[int, int]]:
    """The bytes of the text column in each of the chunk's row groups, as the file's footer says."""
    file = chunk.input

    def ranges(held: Piece | None) -> list[tuple[int, int]]:
        handle = _open_footer(file, held)
        index = _text_column(handle, file, column)
        parts = [handle.metadata.row_group(group).column(index) for group in range(chunk.start, chunk.stop)]
        found = []
        for part in parts:
            starts = [part.dictionary_page_offset, part.data_page_offset]
            first = min(start for start in starts if start is not None)
            if not 0 <= first <= first + part.total_compressed_size <= file.bytes:
                raise DamagedSource(f"{file.path}: its footer names bytes beyond its end: the file is damaged")
            found.append((first, first + part.total_compressed_size))
        return found

    return _checked(file, ranges, footer)


def _iter_giant(
    source: Source, number: int, group: int, part: int, chunk_bytes: int, ahead: Footers | None
) -> Iterator[Chunk]:
    """A row group too large for one chunk, in batches that the main process reads in order."""
    file, column = source.files[number], source.options.text_field
    footer = None if ahead is None else ahead.footer(number)
    whole = _checked(file, lambda held: _open_footer(file, held).metadata, footer)
    meta = whole.row_group(group)
    rows = max(1, meta.num_rows * chunk_bytes // max(1, meta.total_byte_size))
    share = file.bytes / max(1, whole.num_rows)
    row = 0
    for batch in _iter_batches(file, group, rows, column, footer, None if ahead is None else ahead.connections):
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


def _iter_batches(
    file: InputFile, group: int, rows: int, column: str, footer: Piece | None, ahead: ReadAhead | None
) -> Iterator[pa.RecordBatch]:
    """A row group in batches of at most `rows`; what seems to be damaged in a remote file is read again, once."""
    options = {"batch_size": rows, "row_groups": [group], "columns": [column], "use_threads": False}
    chunk = Chunk(file=0, start=group, stop=group + 1, weight=0, input=file)
    done, tries = 0, 2 if file.is_remote else 1
    decoded: bool | None = None
    while True:
        with ExitStack() as stack:
            raw = None
            if file.is_remote:
                fetched = ahead or stack.enter_context(ReadAhead(WORKER_AHEAD_BYTES))
                raw = stack.enter_context(AheadFile(file, fetched, column_ranges(chunk, column, footer)[0][1]))
            try:
                if decoded is None:  # what is decided in the first try holds for the second
                    options["batch_size"], decoded = batches_of(rows, *_first_row(file, group, column, raw, footer))
                handle = _checked(file, lambda held: _open_column(file, column, raw, held, decoded), footer)  # noqa: B023
                batches = handle.iter_batches(**options)
                for number in count():
                    if (batch := checked_read(file, lambda: next(batches, None))) is None:  # noqa: B023 (called at once)
                        return
                    if number == done:
                        done += 1
                        yield encoded(batch, column) if decoded else batch
            except DamagedSource:
                tries, footer = tries - 1, None
                if tries == 0:
                    raise
                close_parquet_files()


def _first_row(
    file: InputFile, group: int, column: str, raw: RangeFile | None, footer: Piece | None
) -> tuple[pa.Array | None, bool]:
    """The first text of a row group, with its dictionary, and whether the footer says that the column has one."""
    handle = _checked(file, lambda held: _open_column(file, column, raw, held), footer)
    batches = handle.iter_batches(batch_size=1, row_groups=[group], columns=[column], use_threads=False)
    stated = handle.metadata.row_group(group).column(_text_column(handle, file, column))
    first = checked_read(file, lambda: next(batches, None))
    return None if first is None else first.column(column), stated.has_dictionary_page


def _text_column(handle: pq.ParquetFile, file: InputFile, column: str) -> int:
    """The index of the leaf column that holds the text. Raises `SourceError` if there is none, or it is not text."""
    names = handle.schema_arrow.names
    if column not in names:
        raise SourceError(f"{file.path} has no column {column!r}: expected one of {', '.join(names)} (--text-field)")
    if names.count(column) > 1:
        raise SourceError(
            f"{file.path} has {names.count(column)} columns named {column!r}: write it again with each name once, or "
            "name another with --text-field"
        )
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
    footer = None if chunk.fetched is None else chunk.fetched.footer
    _checked(file, lambda held: _text_column(_open_footer(file, held), file, column), footer, SourceError)
    raw = RangeFile(file, chunk.fetched) if file.is_remote else None
    handle = checked_read(file, lambda: _open_column(file, column, raw, footer))
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
    except pa.ArrowIndexError:
        raise DamagedSource(f"{file.path}, {where}: a value is not in its dictionary: the file is damaged") from None
    ends = np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)
    start = done = 0
    while start < len(column):
        check_row_bytes(file, f"{where}, row {row + start:,} of them", int(ends[start]) - done)
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield column.slice(start, stop - start).dictionary_decode()
        start, done = stop, int(ends[stop - 1])


def _checked(
    file: InputFile,
    action: Callable[[Piece | None], Result],
    footer: Piece | None,
    blame: type[SourceError] = DamagedSource,
) -> Result:
    """`action(footer)`, which asks for no more than the footer; a remote one is read again before it gets the
    `blame`."""
    try:
        return checked_read(file, lambda: action(footer))
    except blame:
        if not file.is_remote:
            raise
        close_parquet_files()
        return checked_read(file, lambda: action(None))


def close_parquet_files() -> None:
    """Have the next chunk open its file anew."""
    _open_footer.cache_clear()
    _open_local.cache_clear()


@lru_cache(maxsize=4)
def _open_footer(file: InputFile, footer: Piece | None) -> pq.ParquetFile:
    """The file, open for what its footer says, cached for its next chunk. The `footer` of a remote one may be at
    hand."""
    return pq.ParquetFile(
        pa.PythonFile(RangeFile(file, Fetched(footer=footer)), mode="r") if file.is_remote else file.url
    )


def _open_column(
    file: InputFile, column: str, raw: RangeFile | None, footer: Piece | None = None, decoded: bool = False
) -> pq.ParquetFile:
    """The file, open for its text `column`, of which a dictionary is left as one, unless it is to be `decoded`; `raw`
    gives the bytes of a remote one. Pages are checked against their checksums, where the file has them."""
    if not file.is_remote:
        return _open_local(file, column, decoded)
    raw = raw or RangeFile(file)
    metadata = _open_footer(file, footer).metadata
    # without a buffer size, a giant row group would be read whole before its first batch
    buffer_bytes = 1 << 20 if isinstance(raw, AheadFile) else 0
    return pq.ParquetFile(
        pa.PythonFile(raw, mode="r"),
        metadata=metadata,
        read_dictionary=[] if decoded else [column],
        pre_buffer=False,
        buffer_size=buffer_bytes,
        page_checksum_verification=True,
    )


@lru_cache(maxsize=4)
def _open_local(file: InputFile, column: str, decoded: bool) -> pq.ParquetFile:
    return pq.ParquetFile(
        file.url,
        metadata=_open_footer(file, None).metadata,
        read_dictionary=[] if decoded else [column],
        pre_buffer=False,  # which would read whole row groups before their first row
        buffer_size=1 << 20,
        page_checksum_verification=True,
    )


def _check_rows(file: InputFile, rows: int, expected: int) -> None:
    if rows != expected:
        raise DamagedSource(
            f"{file.path} gives {rows:,} rows where its footer says {expected:,}: it is damaged, fetch it again"
        )
