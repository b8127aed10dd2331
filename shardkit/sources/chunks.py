"""How files are cut into chunks; `texts.py` reads them.

`iter_chunks` runs in the main process. A worker reads parquet by row groups and jsonl by byte ranges. What can only be
read front to back (compressed files, separated text, giant row groups, iterables) is read by the main process, once,
and its bytes travel in the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardkit.errors import SourceError
from shardkit.sources.parquet import iter_parquet_chunks
from shardkit.sources.ranges import checked_read, open_stream
from shardkit.sources.source import Chunk, InputFile, Source, check_row_bytes
from shardkit.sources.whole_files import WholeCopies


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
            which = f"line {row + 1:,}" if file.format != "txt.separated" else f"row {row:,}"
            check_row_bytes(file, which, row_bytes - len(overlap) + first_end)
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
