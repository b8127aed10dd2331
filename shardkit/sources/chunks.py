"""How a file is cut into chunks, and how a chunk becomes texts.

`iter_chunks` runs in the main process, `read_chunk` in a worker. A worker reads parquet by row groups and jsonl by byte
ranges. What can only be read front to back (compressed files, separated text, giant row groups, iterables) is read by
the main process, once, and its bytes travel in the chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import SourceError
from shardkit.sources.parquet import close_parquet_files, iter_parquet_chunks, read_column
from shardkit.sources.ranges import DamagedSource, checked_read, open_stream, read_range
from shardkit.sources.sample import read_documents
from shardkit.sources.source import Chunk, InputFile, ReadOptions, Source
from shardkit.sources.whole_files import WholeCopies, read_whole

MAX_ROW_BYTES = 256 << 20  # a row in progress is held in memory; one with no end would fill it


@dataclass(frozen=True, slots=True)
class Texts:
    """A chunk's documents: `texts[i]` came from row `rows[i]` of the chunk.

    `read_rows` counts all rows. `bad` names the skipped ones as (row in the chunk, why); blank lines are neither
    documents nor bad. `text_bytes` is the documents' size in UTF-8.
    """

    texts: list[str]
    rows: list[int] | range
    read_rows: int
    bad: list[tuple[int, str]]
    text_bytes: int


class BadRow(Exception):
    """A row that is not text. The pipeline, which knows the chunk's first row, turns this into a `SourceError`."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(row, why)
        self.row, self.why = row, why


def iter_chunks(source: Source, file: int, start: int, part: int, *, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of `source`, in stream order, from position `start` (and its `part`) of file number `file` on.

    A file is opened when its first chunk is asked for. Raises `SourceError` for a file that cannot be read.
    """
    with WholeCopies(source.files) as copies:
        for number in range(file, len(source.files)):
            position = (start, part) if number == file else (0, 0)
            yield from _iter_file_chunks(source, number, *position, chunk_bytes, copies)


def _iter_file_chunks(
    source: Source, number: int, start: int, part: int, chunk_bytes: int, copies: WholeCopies
) -> Iterator[Chunk]:
    file = source.files[number]
    if file.format == "parquet":
        yield from iter_parquet_chunks(source, number, start, part, chunk_bytes)
    elif file.format == "jsonl":
        for first in range(start, file.bytes, chunk_bytes):
            stop = min(first + chunk_bytes, file.bytes)
            yield Chunk(file=number, start=first, stop=stop, weight=stop - first, input=file)
    elif file.format in ("jsonl.gz", "jsonl.zst", "txt.separated"):
        yield from _iter_stream_chunks(source, number, start, chunk_bytes, copies)
    elif file.format == "texts":
        yield from _iter_batches(source, number, start, chunk_bytes)
    elif start == 0:
        yield Chunk(file=number, start=0, stop=1, weight=file.bytes, input=file)


def _iter_stream_chunks(
    source: Source, number: int, start: int, chunk_bytes: int, copies: WholeCopies
) -> Iterator[Chunk]:
    """Chunks of whole rows of a file that can only be read front to back; `start` counts rows already done.

    Each byte is searched once: `pending` holds the blocks of the row in progress (of `row_bytes` so far), and of these
    only `overlap`, in which a separator may have begun, is looked at again.
    """
    file, separator = source.files[number], (source.options.separator or "\n").encode()
    pending: list[bytes] = []
    overlap, row_bytes, row = b"", 0, 0
    with checked_read(file, lambda: open_stream(file, copies.open(number))) as stream:
        while True:
            block = checked_read(file, lambda: stream.read(chunk_bytes))
            window = overlap + block
            end = _last_end(window, separator) - len(overlap)  # in `block`; not positive: no row ends in it
            first_end = window.find(separator) if end > 0 else len(window)
            if row_bytes - len(overlap) + first_end > MAX_ROW_BYTES:
                raise _row_too_long(file, f"line {row + 1:,}" if file.format != "txt.separated" else f"row {row:,}")
            if block and end <= 0:
                pending.append(block)
                row_bytes += len(block)
                overlap = window[max(0, len(window) - len(separator) + 1) :]
                continue
            payload, rest = b"".join([*pending, block[:end]]) if block else b"".join(pending), block[max(0, end) :]
            rows = _count_rows(payload, separator)
            if rows and row >= start:
                weight = min(file.bytes, len(payload) // 3 if file.format != "txt.separated" else len(payload))
                yield Chunk(file=number, start=row, stop=row + rows, weight=weight, input=file, payload=payload)
            if not block:
                return
            row += rows
            pending, row_bytes = [rest], len(rest)
            overlap = rest[max(0, len(rest) - len(separator) + 1) :]


def _row_too_long(file: InputFile, which: str) -> SourceError:
    return SourceError(
        f"{file.path}, {which}: no end of the row within {MAX_ROW_BYTES:,} bytes, the most that a row may have; split "
        "it, or check what stands between two rows (a line end in jsonl, --separator in text)"
    )


def _last_end(data: bytes, separator: bytes) -> int:
    """Where the last separator in `data` ends, or 0.

    Separators are found from the left, as `split` finds them. From the right, one that overlaps itself (`\\n\\n`) would
    be found elsewhere, depending on how the stream is cut.
    """
    if len(separator) == 1:
        return data.rfind(separator) + 1
    return len(data) - len(data.split(separator)[-1]) if separator in data else 0


def _count_rows(data: bytes, separator: bytes) -> int:
    return data.count(separator) + (_last_end(data, separator) < len(data))


def _split_rows(data: Any, separator: bytes) -> list[bytes]:
    rows = bytes(data).split(separator)
    return rows[:-1] if not rows[-1] else rows


def _iter_batches(source: Source, number: int, start: int, chunk_bytes: int) -> Iterator[Chunk]:
    """Batches of an iterable's documents; `start` counts documents already done, which are passed over."""
    file, column = source.files[number], source.options.text_field
    batch: list[str | None] = []
    size, row = 0, 0
    for item in source.texts or ():
        text = item.get(column, item) if isinstance(item, dict) else item
        if text is not None and not isinstance(text, str):
            raise SourceError(f"document {row} is a {type(text).__name__}: expected text, or a row with {column!r}")
        batch.append(text if text is None else str.__str__(text))  # a subclass may not be known to the workers
        size += len(text or "")
        row += 1
        if size >= chunk_bytes or len(batch) >= 1 << 16:
            if row > start:
                yield _texts_chunk(file, number, row, batch)
            batch, size = [], 0
    if batch:
        yield _texts_chunk(file, number, row, batch)


def _texts_chunk(file: InputFile, number: int, stop: int, batch: list[str | None]) -> Chunk:
    return Chunk(file=number, start=stop - len(batch), stop=stop, weight=0, input=file, payload=tuple(batch))


def read_chunk(chunk: Chunk, options: ReadOptions) -> Texts:
    """The documents of a chunk; what seems to be damaged in a remote file is read again before the file is blamed.
    Raises `BadRow` for a row that is not text (unless bad rows are skipped), `SourceError` for a file that cannot be
    read.
    """
    if not chunk.input.is_remote or chunk.payload is not None:
        return _read_once(chunk, options)
    with suppress(BadRow, DamagedSource):
        if not (texts := _read_once(chunk, options)).bad:
            return texts
    close_parquet_files()
    return _read_once(chunk, options)


def _read_once(chunk: Chunk, options: ReadOptions) -> Texts:
    kind = chunk.input.format
    if isinstance(chunk.payload, tuple):
        return _plain_texts([text or "" for text in chunk.payload])
    if kind == "parquet":
        return _column_texts(read_column(chunk, options.text_field), options)
    if kind == "docstrings":
        return _plain_texts(checked_read(chunk.input, lambda: read_documents(Path(chunk.input.url))))
    if kind == "txt":
        return _decode_rows([read_whole(chunk.input)], options)
    if kind == "txt.separated":
        separator = (options.separator or "").encode()
        return _decode_rows(_split_rows(chunk.payload or b"", separator), options)
    data = chunk.payload if isinstance(chunk.payload, bytes) else checked_read(chunk.input, lambda: _read_lines(chunk))
    return _json_rows(data, options, first=chunk.start == 0)


def _column_texts(column: pa.ChunkedArray, options: ReadOptions) -> Texts:
    """Python strings of an Arrow column; null is the empty document. Rows that are not UTF-8 are bad."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        binary = column.cast(pa.large_binary(), safe=False)
        return _decode_rows([value.as_py() or b"" for value in binary], options)
    if column.null_count:
        values = [value or "" for value in values]
    return Texts(values, range(len(values)), len(values), [], pc.sum(pc.binary_length(column)).as_py() or 0)


def _read_lines(chunk: Chunk) -> bytes:
    """The bytes of the lines that start in the chunk's byte range, the last one to its end."""
    file, begin = chunk.input, max(0, chunk.start - 1)
    data = read_whole(file) if chunk.stop - begin == file.bytes else read_range(file, begin, chunk.stop)
    if chunk.start > 0:
        first_end = data.find(b"\n")
        if first_end < 0 or first_end == len(data) - 1:
            return b""
        data = data[first_end + 1 :]
    blocks, position = [data], chunk.stop
    row_start = chunk.stop - len(data) + data.rfind(b"\n") + 1
    while position < file.bytes and not blocks[-1].endswith(b"\n"):
        block = read_range(file, position, min(position + (1 << 20), file.bytes))
        end = block.find(b"\n")
        blocks.append(block if end < 0 else block[: end + 1])
        if position + (len(block) if end < 0 else end) - row_start > MAX_ROW_BYTES:
            raise _row_too_long(file, f"the row that starts at byte {row_start:,}")
        position += len(block)
    return b"".join(blocks)


def _plain_texts(texts: list[str]) -> Texts:
    return Texts(texts, range(len(texts)), len(texts), [], sum(len(text.encode(errors="replace")) for text in texts))


def _decode_rows(pieces: Iterable[bytes], options: ReadOptions) -> Texts:
    def text(piece: bytes) -> str:
        return piece.decode("utf-8")

    return _convert(pieces, text, options)


def _json_rows(data: bytes, options: ReadOptions, *, first: bool) -> Texts:
    if first and data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    column = options.text_field

    def text(line: bytes) -> str | None:
        if not line or line.isspace():
            return None
        decoded = line.decode("utf-8")  # json.loads(bytes) would guess UTF-16, and let surrogates through
        try:
            row = json.loads(decoded)
        except RecursionError:
            raise ValueError("JSON nested too deep to read") from None
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, not an object")
        if column not in row:
            raise ValueError(f"no field {column!r} among {', '.join(map(repr, list(row)[:8]))} (--text-field)")
        value = row[column]
        if value is not None and not isinstance(value, str):
            raise ValueError(f"field {column!r} is a {type(value).__name__}, not text")
        return value or ""

    return _convert(_split_rows(data, b"\n"), text, options)


def _convert(pieces: Iterable[bytes], convert: Callable[[bytes], str | None], options: ReadOptions) -> Texts:
    """The documents of the rows `pieces`. `convert` returns None for a row without one, and raises `ValueError` for a
    bad row, which is skipped or becomes a `BadRow`."""
    texts: list[str] = []
    rows: list[int] = []
    bad: list[tuple[int, str]] = []
    row = -1
    for row, piece in enumerate(pieces):
        try:
            text = convert(piece)
        except ValueError as error:
            why = _why(error)
            if not options.skip_bad_rows:
                raise BadRow(row, why) from error
            bad.append((row, why))
            continue
        if text is not None:
            texts.append(text)
            rows.append(row)
    return Texts(texts, rows, row + 1, bad, sum(len(text.encode(errors="replace")) for text in texts))


def _why(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.object[error.start]:#04x} at offset {error.start})"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return str(error)
