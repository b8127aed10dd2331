"""How a chunk becomes texts, in a worker: a piece at a time, so that memory does not grow with the chunk's rows, with
what a few bytes of a dictionary decode to, or with the length of a text file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.sources.chunk_bytes import chunk_lines, fetched_now
from shardkit.sources.json_lines import filled_lines, is_key_twice, is_no_object
from shardkit.sources.parquet import close_parquet_files, iter_column
from shardkit.sources.ranges import AheadFile, DamagedSource, checked_read, read_range
from shardkit.sources.read_ahead import WORKER_AHEAD_BYTES, ReadAhead
from shardkit.sources.sample import read_documents
from shardkit.sources.source import MAX_ROW_BYTES, Chunk, Fetched, InputFile, ReadOptions
from shardkit.sources.whole_files import whole_file

PIECE_BYTES = 16 << 20  # text of one piece, or one row
TEXT_PIECE_BYTES = 4 << 20  # of a text file, which is one string: an emoji in it makes it four times as large
LISTED_BAD_ROWS = 20  # of a piece; more are only counted
_MARK = "\ufeff"  # the byte order mark with which some editors begin a file
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF16 = "UTF-16, and not UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW converts a file)"


@dataclass(frozen=True, slots=True)
class Texts:
    """A piece of a chunk: `texts[i]` came from row `rows[i]` of the piece.

    `read_rows` counts all rows. `bad_rows` of them were passed over; `bad` names the first ones as (row, why). Blank
    lines are neither documents nor bad. `text_bytes` is the documents' size in UTF-8.

    A document that is longer than a piece comes in parts, one a piece: each but the last is `unfinished`, each but the
    first `continued`. Its row is the first part's; to the others it is row -1.
    """

    texts: list[str]
    rows: list[int] | range
    read_rows: int
    bad: list[tuple[int, str]]
    bad_rows: int
    text_bytes: int
    unfinished: bool = False
    continued: bool = False


class BadRow(Exception):
    """A row of the piece that is not text. The pipeline, which knows the piece's first row, makes a `SourceError`."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(row, why)
        self.row, self.why = row, why


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
    kind = chunk.input.format
    if isinstance(chunk.payload, tuple):
        yield _plain_texts([text or "" for text in chunk.payload])
    elif kind == "parquet":
        for column in iter_column(chunk, options.text_field, PIECE_BYTES):
            yield _column_texts(column, options)
    elif kind == "docstrings":
        yield _plain_texts(checked_read(chunk.input, lambda: read_documents(Path(chunk.input.url))))
    elif kind == "txt":
        yield from _iter_text_file(chunk, options)
    elif kind == "txt.separated":
        data = chunk.payload or b""
        rows = data.split((options.separator or "").encode())
        if chunk.start == 0:
            rows[0] = rows[0].removeprefix(codecs.BOM_UTF8)
        if not rows[-1]:
            del rows[-1]
        convert = _refuse_utf16 if chunk.start == 0 and data.startswith(_UTF16_MARKS) else _decode
        yield _convert(enumerate(rows), len(rows), convert, options)
    else:
        lines = (
            chunk.payload if isinstance(chunk.payload, bytes) else checked_read(chunk.input, lambda: chunk_lines(chunk))
        )
        yield _json_rows(lines, options, first=chunk.start == 0)


def _column_texts(column: pa.Array, options: ReadOptions) -> Texts:
    """Python strings of an Arrow column; null is the empty document. Rows that are not UTF-8 are bad."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        binary = column.cast(pa.large_binary(), safe=False)
        return _convert(enumerate(value.as_py() or b"" for value in binary), len(binary), _decode, options)
    if column.null_count:
        values = [value or "" for value in values]
    size = pc.sum(pc.binary_length(column)).as_py() or 0
    return Texts(values, range(len(values)), len(values), [], 0, size)


def _iter_text_file(chunk: Chunk, options: ReadOptions) -> Iterator[Texts]:
    """A file that is one document. With bad rows to be skipped, a long one is read to its end before its first part is
    given."""
    file = chunk.input
    if options.skip_bad_rows and file.bytes > TEXT_PIECE_BYTES:
        try:
            for _ in _iter_parts(chunk):
                pass
        except BadRow as bad:
            yield Texts([], [], 1, [(0, bad.why)], 1, 0)
            return
    try:
        for part, (start, text) in enumerate(_iter_parts(chunk)):
            stop = min(start + TEXT_PIECE_BYTES, file.bytes)
            row = -1 if part else 0
            yield Texts([text], [row], row + 1, [], 0, stop - start, unfinished=stop < file.bytes, continued=part > 0)
    except BadRow as bad:
        if not options.skip_bad_rows:
            raise
        yield Texts([], [], 1, [(0, bad.why)], 1, 0)


def _iter_parts(chunk: Chunk) -> Iterator[tuple[int, str]]:
    """The text of a file by blocks, with each block's place; a character on the border belongs to the later one. A byte
    order mark before it is no part of it."""
    file, decoder = chunk.input, codecs.getincrementaldecoder("utf-8")()
    fetched, begun = chunk.fetched, False
    if file.oid and file.bytes <= MAX_ROW_BYTES:  # the hash that the Hub states is of all of it
        fetched = whole_file(file, fetched)
    with _block_reader(file, fetched) as read:
        for start in range(0, max(1, file.bytes), TEXT_PIECE_BYTES):
            stop = min(start + TEXT_PIECE_BYTES, file.bytes)
            data = checked_read(file, lambda: read(start, stop))  # noqa: B023 (called here and now)
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=stop == file.bytes)
            except UnicodeDecodeError as error:
                why = _UTF16 if start == 0 and data.startswith(_UTF16_MARKS) else _not_utf8(error, start - held)
                raise BadRow(-1 if start else 0, why) from error
            yield start, text if begun else text.removeprefix(_MARK)
            begun = begun or bool(text)


@contextmanager
def _block_reader(file: InputFile, fetched: Fetched | None) -> Iterator[Callable[[int, int], bytes]]:
    """A function that reads the bytes `[start, stop)` of a file, front to back: of what was `fetched`, or itself, of a
    long remote file ahead of need."""
    if (fetched is not None and fetched.pieces) or not file.is_remote or file.bytes <= TEXT_PIECE_BYTES:
        yield lambda start, stop: read_range(file, start, stop, fetched)
    else:
        with ReadAhead(WORKER_AHEAD_BYTES) as ahead, AheadFile(file, ahead) as remote:
            yield lambda start, stop: remote.read(stop - start)


def _plain_texts(texts: list[str]) -> Texts:
    return Texts(texts, range(len(texts)), len(texts), [], 0, _size(texts))


def _decode(piece: bytes) -> str:
    return piece.decode("utf-8")


def _refuse_utf16(piece: bytes) -> str:  # noqa: ARG001
    raise ValueError(_UTF16)


def _json_rows(data: bytes, options: ReadOptions, *, first: bool) -> Texts:
    if first:
        data = data.removeprefix(codecs.BOM_UTF8)
    column, is_utf16 = options.text_field, first and data.startswith(_UTF16_MARKS)
    quoted = json.dumps(column)

    def text(line: bytes) -> str | None:
        if not line or line.isspace():
            return None
        if is_utf16:
            raise ValueError(_UTF16)
        decoded = line.decode("utf-8")  # json.loads(bytes) would guess UTF-16, and let surrogates through
        try:
            row = json.loads(decoded)
            is_twice = decoded.count(quoted) > 1 and is_key_twice(decoded, column)
        except RecursionError:
            raise ValueError("JSON nested too deep to read") from None
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, not an object")
        if column not in row:
            raise ValueError(f"no field {column!r} among {', '.join(map(repr, list(row)[:8]))} (--text-field)")
        if is_twice:
            raise ValueError(f"field {column!r} is there twice")
        value = row[column]
        if value is not None and not isinstance(value, str):
            raise ValueError(f"field {column!r} is a {type(value).__name__}, not text")
        return value or ""

    count = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    # where there is no room for many blank lines, to split is the fastest way
    rows = filled_lines(data) if count > len(data) >> 5 else enumerate(data.split(b"\n"))
    return _convert(rows, count, text, options, surely_bad=is_no_object)


def _convert(
    rows: Iterable[tuple[int, bytes]],
    count: int,
    convert: Callable[[bytes], str | None],
    options: ReadOptions,
    *,
    surely_bad: Callable[[bytes], bool] | None = None,
) -> Texts:
    """The documents of `rows`, which are those of `count` that may hold one. `convert` returns None for a row without
    one, and raises `ValueError` for a bad row, which is skipped or becomes a `BadRow`; `surely_bad` finds some of these
    sooner, where nobody will ask why."""
    texts: list[str] = []
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    bad_rows = 0
    for row, piece in rows:
        if bad_rows >= LISTED_BAD_ROWS and surely_bad is not None and surely_bad(piece):
            bad_rows += 1
            continue
        try:
            text = convert(piece)
        except ValueError as error:
            if not options.skip_bad_rows:
                raise BadRow(row, _why(error)) from error
            bad_rows += 1
            if len(bad) < LISTED_BAD_ROWS:
                bad.append((row, _why(error)))
            continue
        if text is not None:
            texts.append(text)
            good.append(row)
    return Texts(texts, good, count, bad, bad_rows, _size(texts))


def _size(texts: list[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode(errors="replace")) for text in texts)


def _why(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(error, 0)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return str(error)


def _not_utf8(error: UnicodeDecodeError, before: int) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x} at offset {before + error.start})"
