"""How a chunk becomes texts, in a worker: a piece at a time, so that memory does not grow with the chunk's rows, with
what a few bytes of a dictionary decode to, or with the length of a text file.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.sources.chunk_bytes import chunk_lines, fetched_now
from shardkit.sources.columns import ColumnPiece
from shardkit.sources.csv_rows import csv_texts
from shardkit.sources.json_lines import json_rows
from shardkit.sources.parquet import iter_column
from shardkit.sources.parquet_files import close_parquet_files
from shardkit.sources.pieces import UTF16, UTF16_MARKS, BadRow, Texts, convert_rows, utf8_size
from shardkit.sources.ranges import DamagedSource, checked_read
from shardkit.sources.sample import read_documents
from shardkit.sources.source import Chunk, ReadOptions
from shardkit.sources.text_files import text_file_parts

__all__ = ["PIECE_BYTES", "BadRow", "Texts", "read_chunk"]

PIECE_BYTES = 16 << 20  # text of one piece, or one row


def read_chunk(chunk: Chunk, options: ReadOptions) -> Iterator[Texts]:
    """The documents of a chunk, in pieces of some `PIECE_BYTES` at most; what seems to be damaged in a remote file is
    read once more before the file is blamed.

    Raises `BadRow` for a row that is not text (unless bad rows are skipped), `SourceError` for a file that cannot be
    read.
    """
    given = 0
    if chunk.input.is_remote and chunk.payload is None:
        with suppress(BadRow, DamagedSource):
            held = None  # what is found in a piece may be the damage of the one before
            for piece in _read_once(chunk if chunk.fetched else fetched_now(chunk, options), options):
                if piece.bad:
                    break
                if held is not None:
                    yield held
                    given += 1
                held = piece
            else:
                if held is not None:
                    yield held
                return
        close_parquet_files()
        chunk = fetched_now(chunk, options)
    yield from islice(_read_once(chunk, options), given, None)


def _read_once(chunk: Chunk, options: ReadOptions) -> Iterator[Texts]:
    kind = chunk.input.kind
    if chunk.unread_rows:
        yield Texts([], [], chunk.unread_rows, [], 0, 0)
    elif isinstance(chunk.payload, tuple):
        yield _sampled([text or "" for text in chunk.payload], chunk, options)
    elif kind in ("parquet", "arrow"):
        for piece in iter_column(chunk, options, PIECE_BYTES):
            yield _column_texts(piece, options)
    elif kind in ("csv", "tsv"):
        yield csv_texts(chunk, options)
    elif kind == "docstrings":
        yield _sampled(checked_read(chunk.input, lambda: read_documents(Path(chunk.input.url))), chunk, options)
    elif kind == "txt":
        if options.choice.in_sample(chunk.input.path, np.zeros(1, np.int64))[0]:
            yield from text_file_parts(chunk, options)
        else:
            yield Texts([], [], 1, [], 0, 0)
    elif kind == "txt.separated":
        yield _separated(chunk, chunk.payload or b"", options)
    elif isinstance(chunk.payload, bytes):
        yield json_rows(
            chunk.payload,
            options,
            chunk.input.path,
            place=chunk.start,
            in_bytes=False,
            first=chunk.start == 0,
            values=kind == "json.values",
        )
    else:
        for start in range(chunk.start, chunk.stop, PIECE_BYTES):
            part = dataclasses.replace(chunk, start=start, stop=min(start + PIECE_BYTES, chunk.stop))
            place, lines = checked_read(chunk.input, lambda: chunk_lines(part))  # noqa: B023 (called at once)
            yield json_rows(lines, options, chunk.input.path, place=place, in_bytes=True, first=start == 0)


def _sampled(texts: list[str], chunk: Chunk, options: ReadOptions) -> Texts:
    """Those of the documents of all rows of a chunk that are chosen by their places."""
    chosen = options.choice.in_sample(chunk.input.path, chunk.start + np.arange(len(texts)))
    if chosen.all():
        return Texts(texts, range(len(texts)), len(texts), [], 0, utf8_size(texts))
    rows = np.flatnonzero(chosen).tolist()
    kept = [texts[row] for row in rows]
    return Texts(kept, rows, len(texts), [], 0, utf8_size(kept))


def _separated(chunk: Chunk, data: bytes, options: ReadOptions) -> Texts:
    rows = data.split((options.separator or "").encode())
    if chunk.start == 0:
        rows[0] = rows[0].removeprefix(codecs.BOM_UTF8)
    if not rows[-1]:
        del rows[-1]
    convert = _refuse_utf16 if chunk.start == 0 and data.startswith(UTF16_MARKS) else _decode
    chosen = options.choice.in_sample(chunk.input.path, chunk.start + np.arange(len(rows)))
    return convert_rows(((row, rows[row]) for row in np.flatnonzero(chosen).tolist()), len(rows), convert, options)


def _column_texts(piece: ColumnPiece, options: ReadOptions) -> Texts:
    """Python strings of an Arrow column; null is the empty document. Rows that are not UTF-8 are bad."""
    column, rows = piece.texts, range(piece.read_rows) if piece.rows is None else piece.rows.tolist()
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        binary = column.cast(pa.large_binary(), safe=False)
        found = zip(rows, (value.as_py() or b"" for value in binary), strict=True)
        return convert_rows(found, piece.read_rows, _decode, options)
    if column.null_count:
        values = [value or "" for value in values]
    size = pc.sum(pc.binary_length(column)).as_py() or 0
    return Texts(values, rows, piece.read_rows, [], 0, size)


def _decode(piece: bytes) -> str:
    return piece.decode("utf-8")


def _refuse_utf16(piece: bytes) -> str:  # noqa: ARG001
    raise ValueError(UTF16)
