"""How a file is cut into chunks and how a chunk becomes texts. `split_file` runs in the main process, `read_chunk` in a
worker. Parquet is read by row groups and jsonl by byte ranges, in the worker; what can only be read front to back
(compressed files, giant row groups, separated text, iterables) is read once, in the main process, and its bytes travel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import SourceError
from shardkit.sources.parquet import parquet_column, split_parquet
from shardkit.sources.ranges import guarded, open_stream, read_range
from shardkit.sources.sample import read_documents
from shardkit.sources.source import Chunk, InputFile, ReadOptions, Source


@dataclass(frozen=True, slots=True)
class Texts:
    """A chunk's documents: `texts[i]` came from row `rows[i]` of the chunk. `read_rows` counts all rows, `bad` names
    those that were skipped as (row in the chunk, why); blank lines are neither documents nor bad. `text_bytes` is the
    documents' size in UTF-8."""

    texts: list[str]
    rows: list[int] | range
    read_rows: int
    bad: list[tuple[int, str]]
    text_bytes: int


class BadRow(Exception):
    """A row that is not text; the pipeline knows the chunk's first row and turns this into a `SourceError`."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(row, why)
        self.row, self.why = row, why


def split_source(source: Source, file: int, start: int, part: int, *, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of `source` from `start` (and its `part`) of file number `file` on, in stream order.

    Lazy: each file is opened in its turn.
    """
    for number in range(file, len(source.files)):
        at = (start, part) if number == file else (0, 0)
        yield from split_file(source, number, *at, chunk_bytes=chunk_bytes)


def split_file(source: Source, number: int, start: int, part: int, *, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of file `number` from position `start` (and its `part`) on."""
    file = source.files[number]
    if file.format == "parquet":
        yield from split_parquet(source, number, start, part, chunk_bytes)
    elif file.format == "jsonl":
        for at in range(start, file.bytes, chunk_bytes):
            stop = min(at + chunk_bytes, file.bytes)
            yield Chunk(file=number, start=at, stop=stop, weight=stop - at, input=file)
    elif file.format in ("jsonl.gz", "jsonl.zst", "txt.separated"):
        separator = b"\n" if source.options.separator is None else source.options.separator.encode()
        yield from _split_stream(file, number, start, chunk_bytes, separator)
    elif file.format == "texts":
        yield from _split_iterable(source, number, start, chunk_bytes)
    elif start == 0:
        yield Chunk(file=number, start=0, stop=1, weight=file.bytes, input=file)


def read_chunk(chunk: Chunk, options: ReadOptions) -> Texts:
    """The documents of a chunk. Raises `BadRow` for a row that is not text (unless bad rows are skipped), and
    `SourceError` for a file that cannot be read."""
    kind = chunk.input.format
    if isinstance(chunk.payload, tuple):
        return _texts([text or "" for text in chunk.payload])
    if kind == "parquet":
        return _strings(parquet_column(chunk, options.text_field), options)
    if kind == "docstrings":
        return _texts(guarded(chunk.input, lambda: read_documents(Path(chunk.input.url))))
    if kind == "txt":
        data = guarded(chunk.input, lambda: read_range(chunk.input, 0, chunk.input.bytes))
        return _decode_rows([data], options)
    if kind == "txt.separated":
        separator = (options.separator or "").encode()
        return _decode_rows(_pieces(chunk.payload or b"", separator), options)
    lines = chunk.payload if isinstance(chunk.payload, bytes) else guarded(chunk.input, lambda: _read_lines(chunk))
    return _json_rows(lines, options, first=chunk.start == 0)


def _strings(column: pa.ChunkedArray, options: ReadOptions) -> Texts:
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
    """The bytes of the lines that start in `[start, stop)`, the last one to its end."""
    file, begin = chunk.input, max(0, chunk.start - 1)
    data = read_range(file, begin, chunk.stop)
    if chunk.start > 0:
        first = data.find(b"\n")
        if first < 0 or first == len(data) - 1:
            return b""
        data = data[first + 1 :]
    parts, at = [data], chunk.stop
    while at < file.bytes and not parts[-1].endswith(b"\n"):
        block = read_range(file, at, min(at + (1 << 20), file.bytes))
        end = block.find(b"\n")
        parts.append(block if end < 0 else block[: end + 1])
        at += len(block)
    return b"".join(parts)


def _split_stream(file: InputFile, number: int, start: int, chunk_bytes: int, separator: bytes) -> Iterator[Chunk]:
    """Blocks of whole rows of a stream that can only be read front to back; `start` counts rows already done."""
    tail, row = b"", 0
    weight = 0
    with guarded(file, lambda: open_stream(file)) as stream:
        while True:
            block = guarded(file, lambda: stream.read(chunk_bytes))
            data = tail + bytes(block)
            end = _last_end(data, separator)
            if block and end == 0:
                tail = data
                continue
            payload, tail = (data[:end], data[end:]) if block else (data, b"")
            rows = _count_rows(payload, separator)
            if rows and row >= start:
                weight = min(file.bytes, len(payload) // 3 if file.format != "txt.separated" else len(payload))
                yield Chunk(file=number, start=row, stop=row + rows, weight=weight, input=file, payload=payload)
            row += rows
            if not block:
                return


def _last_end(data: bytes, separator: bytes) -> int:
    """Where the last separator in `data` ends, or 0. Separators are found from the left, as `split` finds them: seen
    from the right, one that overlaps itself (`\\n\\n`) would fall elsewhere, depending on how the stream is cut."""
    if len(separator) == 1:
        return data.rfind(separator) + 1
    return len(data) - len(data.split(separator)[-1]) if separator in data else 0


def _count_rows(data: bytes, separator: bytes) -> int:
    return data.count(separator) + (_last_end(data, separator) < len(data))


def _pieces(data: Any, separator: bytes) -> list[bytes]:
    pieces = bytes(data).split(separator)
    return pieces[:-1] if not pieces[-1] else pieces


def _split_iterable(source: Source, number: int, start: int, chunk_bytes: int) -> Iterator[Chunk]:
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


def _texts(texts: list[str]) -> Texts:
    return Texts(texts, range(len(texts)), len(texts), [], sum(len(text.encode(errors="replace")) for text in texts))


def _decode_rows(pieces: Iterable[bytes], options: ReadOptions) -> Texts:
    def text(piece: bytes) -> str:
        return piece.decode("utf-8")

    return _rows(pieces, text, options)


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

    return _rows(_pieces(data, b"\n"), text, options)


def _rows(pieces: Iterable[bytes], convert: Callable[[bytes], str | None], options: ReadOptions) -> Texts:
    """Convert each row; None is a row without a document, `ValueError` a bad one."""
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
