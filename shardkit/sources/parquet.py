"""Parquet files: cut into chunks by row groups, of which the text column is read, and those that `--where` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate, count

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import SourceError
from shardkit.sources.bounds import may_keep_group
from shardkit.sources.columns import (
    ColumnPiece,
    check_columns,
    chosen_pieces,
    column_in,
    of_payload,
    payload_of,
    texts_in,
)
from shardkit.sources.footers import Footers
from shardkit.sources.giant_groups import batches_of, encoded
from shardkit.sources.parquet_files import checked_footer, close_parquet_files, open_column, open_footer
from shardkit.sources.ranges import AheadFile, DamagedSource, RangeFile, checked_read, read_range
from shardkit.sources.read_ahead import WORKER_AHEAD_BYTES, ReadAhead
from shardkit.sources.source import Chunk, Fetched, InputFile, Piece, ReadOptions, Source

_GIANT_CHUNKS = 8  # a row group larger than this many chunks is read front to back by the main process
_BATCH_ROWS, _WHOLE_ROWS = 1 << 16, 1 << 8  # at a time, of one column, or of several


def iter_parquet_chunks(
    source: Source,
    number: int,
    start: int,
    part: int,
    chunk_bytes: int,
    ahead: Footers | None = None,
    most: Callable[[int], int] | None = None,
) -> Iterator[Chunk]:
    """The chunks of a parquet file from row group `start` (and row `part` of it) on. Footers are had from `ahead`. Row
    groups of which the footer says that `--where` keeps no row are not read. A chunk has `chunk_bytes`, or `most(left)`
    where `left` bytes of the file are left."""
    file, options = source.files[number], source.options
    footer = None if ahead is None else _right_footer(ahead, number, options)
    sizes = checked_footer(file, lambda held: _sizes(open_footer(file, held), file, options), footer, SourceError)
    meta = open_footer(file, footer).metadata
    _check_rows(file, sum(meta.row_group(g).num_rows for g in range(meta.num_row_groups)), meta.num_rows)
    first_rows = _first_rows(meta)
    share = file.bytes / max(1, sum(sizes))
    unread = [not may_keep_group(meta.row_group(g), options.choice) for g in range(meta.num_row_groups)]
    end = len(sizes) if file.stretch is None or file.stretch.stop is None else file.stretch.stop
    left = [*accumulate(reversed(sizes[:end]))][::-1]
    limits = [chunk_bytes if most is None else most(int(size * share)) for size in left]
    for group, stop in _runs(sizes[:end], start, limits, unread):
        if sizes[group] > _GIANT_CHUNKS * chunk_bytes and not unread[group]:
            yield from _iter_giant(source, number, group, part if group == start else 0, chunk_bytes, ahead)
        else:
            yield Chunk(
                file=number,
                start=group,
                stop=stop,
                first_row=first_rows[group],
                unread_rows=first_rows[stop] - first_rows[group] if unread[group] else 0,
                weight=int(sum(sizes[group:stop]) * share),
                input=file,
            )


def first_rows(file: InputFile) -> list[int]:
    """The first row of each row group of a parquet file, and how many rows there are. Raises `SourceError`."""
    return checked_footer(file, lambda held: _first_rows(open_footer(file, held).metadata), None, SourceError)


def _first_rows(meta: pq.FileMetaData) -> list[int]:
    return [0, *accumulate(meta.row_group(g).num_rows for g in range(meta.num_row_groups))]


def _runs(sizes: list[int], start: int, limits: list[int], unread: list[bool]) -> Iterator[tuple[int, int]]:
    """The row groups from `start` on that a chunk holds, as half-open ranges: as many as have the bytes that the first
    one's limit says, or one, or all of a run of those that are not read."""
    while start < len(sizes):
        stop, size, most = start + 1, sizes[start], limits[start]
        while stop < len(sizes) and unread[stop] == unread[start] and (unread[start] or size + sizes[stop] <= most):
            size += sizes[stop]
            stop += 1
        yield start, stop
        start = stop


def chunk_starts(file: InputFile, options: ReadOptions, chunk_bytes: int) -> list[tuple[int, int]]:
    """Where the chunks of a parquet file begin: the row group, and how many of the file's bytes lie before it, about.
    Raises `SourceError`."""
    sizes = checked_footer(file, lambda held: _sizes(open_footer(file, held), file, options), None, SourceError)
    before, runs = [0, *accumulate(sizes)], _runs(sizes, 0, [chunk_bytes] * len(sizes), [False] * len(sizes))
    return [(group, before[group] * file.bytes // max(1, before[-1])) for group, _ in runs]


def _right_footer(ahead: Footers, number: int, options: ReadOptions) -> Piece | None:
    """The footer that was fetched ahead, if there is one, and nothing is wrong with it: else it is to be read again."""
    footer, file = ahead.footer(number), ahead.files[number]
    if footer is not None:
        try:
            checked_read(file, lambda: _leaves(open_footer(file, footer), file, options))
        except SourceError:
            ahead.discard(number)
            return None
    return footer


def column_ranges(chunk: Chunk, options: ReadOptions, footer: Piece | None = None) -> list[tuple[int, int]]:
    """The bytes of the columns that are read, the text first, in each of the chunk's row groups, as the file's footer
    says."""
    file = chunk.input

    def ranges(held: Piece | None) -> list[tuple[int, int]]:
        handle = open_footer(file, held)
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

    return checked_footer(file, ranges, footer)


def _iter_giant(
    source: Source, number: int, group: int, part: int, chunk_bytes: int, ahead: Footers | None
) -> Iterator[Chunk]:
    """A row group too large for one chunk, in batches that the main process reads in order."""
    file, options = source.files[number], source.options
    footer = None if ahead is None else ahead.footer(number)
    whole = checked_footer(file, lambda held: open_footer(file, held).metadata, footer)
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
        for piece in texts_in(file, rest, options, chunk_bytes, f"row group {group}", at):
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
    """A row group in batches of at most `rows`; what seems to be damaged in a remote file is read again, once."""
    how = {"batch_size": rows, "row_groups": [group], "columns": _columns(options), "use_threads": False}
    chunk = Chunk(file=0, start=group, stop=group + 1, weight=0, input=file)
    done, tries = 0, 2 if file.is_remote else 1
    plain: bool | None = None  # read without a dictionary
    while True:
        with ExitStack() as stack:
            raw = None
            if file.is_remote:
                (_, stop), *others = column_ranges(chunk, options, footer)
                pieces = checked_read(file, lambda: [(at, read_range(file, at, end)) for at, end in others])  # noqa: B023
                connections = ahead or stack.enter_context(ReadAhead(WORKER_AHEAD_BYTES))
                raw = stack.enter_context(AheadFile(file, connections, stop, Fetched(pieces=tuple(pieces))))
            try:
                if options.columns:
                    how["batch_size"], plain = min(rows, _WHOLE_ROWS), True
                elif plain is None:  # what is decided in the first try holds for the second
                    how["batch_size"], plain = batches_of(rows, *_first_row(file, group, options, raw, footer))
                column = options.text_field
                names = () if plain else (column,)
                handle = checked_footer(file, lambda held: open_column(file, names, raw, held), footer)  # noqa: B023
                batches = handle.iter_batches(**how)
                for number in count():
                    if (batch := checked_read(file, lambda: next(batches, None))) is None:  # noqa: B023 (called at once)
                        return
                    if number == done:
                        done += 1
                        yield encoded(batch, column) if plain else batch
            except DamagedSource:
                tries, footer = tries - 1, None
                if tries == 0:
                    raise
                close_parquet_files()


def _first_row(
    file: InputFile, group: int, options: ReadOptions, raw: RangeFile | None, footer: Piece | None
) -> tuple[pa.Array | None, bool]:
    """The first text of a row group, with its dictionary, and whether the footer says that the column has one."""
    column = options.text_field
    handle = checked_footer(file, lambda held: open_column(file, (column,), raw, held), footer)
    batches = handle.iter_batches(batch_size=1, row_groups=[group], columns=[column], use_threads=False)
    stated = handle.metadata.row_group(group).column(_leaves(handle, file, options)[0])
    first = checked_read(file, lambda: next(batches, None))
    return None if first is None else column_in(first, column), stated.has_dictionary_page


def _sizes(handle: pq.ParquetFile, file: InputFile, options: ReadOptions) -> list[int]:
    """The bytes that each row group has of the documents, not compressed. Raises `SourceError` as `_leaves` does."""
    meta, leaves = handle.metadata, _leaves(handle, file, options, options.document_columns)
    groups = map(meta.row_group, range(meta.num_row_groups))
    return [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]


def _leaves(
    handle: pq.ParquetFile, file: InputFile, options: ReadOptions, names: Sequence[str] | None = None
) -> list[int]:
    """The indices of the leaf columns that are read, those of the documents first; with `names`, of these alone. Raises
    `SourceError` if one is not there, or is not what it should be."""
    check_columns(file, handle.schema_arrow, options)
    leaves = [handle.metadata.schema.column(i).path for i in range(len(handle.metadata.schema))]
    if twice := [name for name in _columns(options) if leaves.count(name) > 1]:  # with a dot, and within another
        raise SourceError(f"{file.path} has two columns named {twice[0]!r}: write it again with each name once")
    found: list[int] = []
    for name in _columns(options) if names is None else names:
        found += [leaf for leaf, path in enumerate(leaves) if path == name or path.startswith(f"{name}.")]
    return list(dict.fromkeys(found))


def _columns(options: ReadOptions) -> list[str]:
    return list(dict.fromkeys([*options.document_columns, *options.choice.columns]))


def _dictionaries(handle: pq.ParquetFile, options: ReadOptions) -> tuple[str, ...]:
    """The columns to read as dictionaries: the text, or, of a row of several columns, those that are text."""
    if not options.columns:
        return (options.text_field,)
    types = {field.name: field.type for field in handle.schema_arrow}
    return tuple(name for name in options.columns if name in types and pa.types.is_string(types[name]))


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
    checked_footer(file, lambda held: _leaves(open_footer(file, held), file, options), footer, SourceError)
    raw = RangeFile(file, chunk.fetched) if file.is_remote else None
    names = _dictionaries(open_footer(file, footer), options)
    handle = checked_read(file, lambda: open_column(file, names, raw, footer))
    most = _WHOLE_ROWS if options.columns else _BATCH_ROWS
    read = handle.iter_batches(batch_size=most, row_groups=groups, columns=_columns(options), use_threads=False)
    rows = 0

    def batches_read() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        while (batch := checked_read(file, lambda: next(read, None))) is not None:
            rows += batch.num_rows
            yield batch

    yield from chosen_pieces(file, batches_read(), options, first_row=chunk.first_row, most=piece_bytes, where=where)
    _check_rows(file, rows, sum(handle.metadata.row_group(group).num_rows for group in groups))


def _check_rows(file: InputFile, rows: int, expected: int) -> None:
    if rows != expected:
        raise DamagedSource(
            f"{file.path} gives {rows:,} rows where its footer says {expected:,}: it is damaged, fetch it again"
        )
