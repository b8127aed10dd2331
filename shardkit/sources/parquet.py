"""Parquet files: cut into chunks by row groups, of which the text column is read, and those that `--where` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import lru_cache
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import SourceError
from shardkit.network import Result
from shardkit.sources.bounds import Statistics, may_keep
from shardkit.sources.choice import Choice
from shardkit.sources.columns import (
    ColumnPiece,
    check_chosen_columns,
    check_text_column,
    chosen_pieces,
    column_in,
    decoded,
    of_payload,
    payload_of,
)
from shardkit.sources.footers import Footers
from shardkit.sources.ranges import AheadFile, DamagedSource, RangeFile, checked_read, read_range
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import Chunk, Fetched, InputFile, Piece, ReadOptions, Source

_GIANT_CHUNKS = 8  # a row group larger than this many chunks is read front to back by the main process
_BATCH_ROWS = 1 << 16


def iter_parquet_chunks(
    source: Source, number: int, start: int, part: int, chunk_bytes: int, ahead: Footers | None = None
) -> Iterator[Chunk]:
    """The chunks of a parquet file from row group `start` (and row `part` of it) on. Footers are had from `ahead`. Row
    groups of which the footer says that `--where` keeps no row are not read."""
    file, options = source.files[number], source.options
    footer = None if ahead is None else _right_footer(ahead, number, options)
    index = _checked(file, lambda held: _leaves(_open_footer(file, held), file, options), footer, SourceError)[0]
    meta = _open_footer(file, footer).metadata
    _check_rows(file, sum(meta.row_group(g).num_rows for g in range(meta.num_row_groups)), meta.num_rows)
    sizes = [meta.row_group(g).column(index).total_uncompressed_size for g in range(meta.num_row_groups)]
    rows = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
    share = file.bytes / max(1, sum(sizes))
    unread = [not _may_keep(meta.row_group(g), options.choice) for g in range(meta.num_row_groups)]
    group = start
    while group < meta.num_row_groups:
        stop, size = group + 1, sizes[group]
        while (
            stop < meta.num_row_groups
            and unread[stop] == unread[group]
            and (unread[group] or size + sizes[stop] <= chunk_bytes)
        ):
            size += sizes[stop]
            stop += 1
        if sizes[group] > _GIANT_CHUNKS * chunk_bytes and not unread[group]:
            yield from _iter_giant(source, number, group, part if group == start else 0, chunk_bytes, ahead)
        else:
            yield Chunk(
                file=number,
                start=group,
                stop=stop,
                first_row=sum(rows[:group]),
                unread_rows=sum(rows[group:stop]) if unread[group] else 0,
                weight=int(size * share),
                input=file,
            )
        group = stop


def _may_keep(group: pq.RowGroupMetaData, chosen: Choice) -> bool:
    """Whether `--where` may keep a row of a row group, as far as its statistics say."""
    if chosen.where is None:
        return True
    known: dict[str, Statistics] = {}
    for number in range(group.num_columns):
        column = group.column(number)
        stated = column.statistics if column.path_in_schema in chosen.columns else None
        if stated is None:
            continue
        least = most = None
        with suppress(UnicodeDecodeError, ValueError, pa.ArrowException):  # a bound that was cut within a character
            least, most = (stated.min, stated.max) if stated.has_min_max else (None, None)
        nulls = stated.null_count if stated.has_null_count else None
        known[column.path_in_schema] = Statistics(rows=group.num_rows, nulls=nulls, least=least, most=most)
    return may_keep(chosen.where, known)


def _right_footer(ahead: Footers, number: int, options: ReadOptions) -> Piece | None:
    """The footer that was fetched ahead, if there is one, and nothing is wrong with it: else it is to be read again."""
    footer, file = ahead.footer(number), ahead.files[number]
    if footer is not None:
        try:
            checked_read(file, lambda: _leaves(_open_footer(file, footer), file, options))
        except SourceError:
            ahead.discard(number)
            return None
    return footer


def column_ranges(chunk: Chunk, options: ReadOptions, footer: Piece | None = None) -> list[tuple[int, int]]:
    """The bytes of the columns that are read, the text first, in each of the chunk's row groups, as the file's footer
    says."""
    file = chunk.input

    def ranges(held: Piece | None) -> list[tuple[int, int]]:
        handle = _open_footer(file, held)
        leaves = _leaves(handle, file, options)
        groups = map(handle.metadata.row_group, range(chunk.start, chunk.stop))
        parts = [group.column(index) for group in groups for index in leaves]
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
    file, options = source.files[number], source.options
    footer = None if ahead is None else ahead.footer(number)
    whole = _checked(file, lambda held: _open_footer(file, held).metadata, footer)
    meta, before = whole.row_group(group), sum(whole.row_group(g).num_rows for g in range(group))
    rows = max(1, meta.num_rows * chunk_bytes // max(1, meta.total_byte_size))
    share = file.bytes / max(1, whole.num_rows)
    row = 0
    for batch in _iter_batches(file, group, rows, options, footer, None if ahead is None else ahead.connections):
        first, row = row, row + batch.num_rows
        if row <= part:
            continue
        at = max(part, first)
        rest = batch.slice(at - first)
        for piece in decoded(file, column_in(rest, options.text_field), chunk_bytes, f"row group {group}", at):
            yield Chunk(
                file=number,
                start=group,
                stop=group + 1,
                part=at,
                first_row=before + at,
                weight=int(share * len(piece)),
                input=file,
                payload=payload_of(batch.slice(at - first, len(piece)), piece, options),
            )
            at += len(piece)
    _check_rows(file, row, meta.num_rows)


def _iter_batches(
    file: InputFile, group: int, rows: int, options: ReadOptions, footer: Piece | None, ahead: ReadAhead | None
) -> Iterator[pa.RecordBatch]:
    """A row group in batches of `rows`; what seems to be damaged in a remote file is read again, once."""
    how = {"batch_size": rows, "row_groups": [group], "columns": _columns(options), "use_threads": False}
    chunk = Chunk(file=0, start=group, stop=group + 1, weight=0, input=file)
    done, tries = 0, 2 if file.is_remote else 1
    while True:
        with ExitStack() as stack:
            raw = None
            if ahead is not None and file.is_remote:
                (_, stop), *others = column_ranges(chunk, options, footer)
                pieces = checked_read(file, lambda: [(at, read_range(file, at, end)) for at, end in others])  # noqa: B023
                fetched = Fetched(pieces=tuple(pieces))
                raw = stack.enter_context(AheadFile(file, ahead, stop, fetched))
            handle = _checked(file, lambda held: _open_column(file, options.text_field, raw, held), footer)  # noqa: B023
            batches = handle.iter_batches(**how)
            try:
                for number in count():
                    if (batch := checked_read(file, lambda: next(batches, None))) is None:  # noqa: B023 (called at once)
                        return
                    if number == done:
                        done += 1
                        yield batch
            except DamagedSource:
                tries, footer = tries - 1, None
                if tries == 0:
                    raise
                close_parquet_files()


def _leaves(handle: pq.ParquetFile, file: InputFile, options: ReadOptions) -> list[int]:
    """The indices of the leaf columns that are read, that of the text first. Raises `SourceError` if one is not there,
    or is not what it should be."""
    check_text_column(file, handle.schema_arrow, options.text_field)
    check_chosen_columns(file, handle.schema_arrow, options.choice)
    leaves = [handle.metadata.schema.column(i).path for i in range(len(handle.metadata.schema))]
    if twice := [name for name in _columns(options) if leaves.count(name) > 1]:  # with a dot, and within another
        raise SourceError(f"{file.path} has two columns named {twice[0]!r}: write it again with each name once")
    return [leaves.index(name) for name in _columns(options)]


def _columns(options: ReadOptions) -> list[str]:
    return list(dict.fromkeys([options.text_field, *options.choice.columns]))


def iter_column(chunk: Chunk, options: ReadOptions, piece_bytes: int) -> Iterator[ColumnPiece]:
    """The text column of a chunk, in pieces of at most `piece_bytes` of text, or one row. Raises `SourceError` if it
    cannot be read, is not text, or lacks rows."""
    file, where = chunk.input, f"row groups {chunk.start}-{chunk.stop}"
    if isinstance(chunk.payload, bytes):
        batches = iter(of_payload(chunk.payload))
        yield from chosen_pieces(file, batches, options, first_row=chunk.first_row, most=piece_bytes, where=where)
        return
    groups = list(range(chunk.start, chunk.stop))
    footer = None if chunk.fetched is None else chunk.fetched.footer
    _checked(file, lambda held: _leaves(_open_footer(file, held), file, options), footer, SourceError)
    raw = RangeFile(file, chunk.fetched) if file.is_remote else None
    handle = checked_read(file, lambda: _open_column(file, options.text_field, raw, footer))
    read = handle.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=_columns(options), use_threads=False)
    rows = 0

    def batches_read() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        while (batch := checked_read(file, lambda: next(read, None))) is not None:
            rows += batch.num_rows
            yield batch

    yield from chosen_pieces(file, batches_read(), options, first_row=chunk.first_row, most=piece_bytes, where=where)
    _check_rows(file, rows, sum(handle.metadata.row_group(group).num_rows for group in groups))


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


def _open_column(file: InputFile, column: str, raw: RangeFile | None, footer: Piece | None = None) -> pq.ParquetFile:
    """The file, open for its text `column`, of which a dictionary is left as one; `raw` gives the bytes of a remote
    one. Pages are checked against their checksums, where the file has them."""
    if not file.is_remote:
        return _open_local(file, column)
    raw = raw or RangeFile(file)
    metadata = _open_footer(file, footer).metadata
    # without a buffer size, a giant row group would be read whole before its first batch
    buffer_bytes = 1 << 20 if isinstance(raw, AheadFile) else 0
    return pq.ParquetFile(
        pa.PythonFile(raw, mode="r"),
        metadata=metadata,
        read_dictionary=[column],
        pre_buffer=False,
        buffer_size=buffer_bytes,
        page_checksum_verification=True,
    )


@lru_cache(maxsize=4)
def _open_local(file: InputFile, column: str) -> pq.ParquetFile:
    return pq.ParquetFile(
        file.url,
        metadata=_open_footer(file, None).metadata,
        read_dictionary=[column],
        buffer_size=1 << 20,
        page_checksum_verification=True,
    )


def _check_rows(file: InputFile, rows: int, expected: int) -> None:
    if rows != expected:
        raise DamagedSource(
            f"{file.path} gives {rows:,} rows where its footer says {expected:,}: it is damaged, fetch it again"
        )
