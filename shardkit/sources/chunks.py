"""How files are cut into chunks; `texts.py` reads them.

`iter_chunks` runs in the main process. A worker reads parquet by row groups and jsonl by byte ranges. What can only be
read front to back (compressed files, separated text, tables of other formats, giant row groups, pipes, iterables) is
read by the main process, once, and its bytes travel in the chunk. A file that is given out whole is read by a worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate, count
from typing import Any

from shardkit.dataset.records import SourceInfo
from shardkit.errors import SourceError
from shardkit.sources.arrow_files import iter_arrow_chunks
from shardkit.sources.chunk_bytes import with_bytes
from shardkit.sources.chunk_sizes import ChunkSizes
from shardkit.sources.csv_rows import iter_csv_chunks
from shardkit.sources.footers import Footers
from shardkit.sources.iterables import text_in
from shardkit.sources.json_values import HEAD_BYTES, JsonValues, is_lines
from shardkit.sources.parquet import iter_parquet_chunks
from shardkit.sources.pipe import Pipe
from shardkit.sources.ranges import AheadFile, Rest, checked_read, open_stream
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import (
    MAX_ROW_BYTES,
    Chunk,
    InputFile,
    ReadOptions,
    Source,
    check_row_bytes,
)
from shardkit.sources.whole_files import WholeCopies


def iter_chunks(
    source: Source,
    file: int,
    start: int,
    part: int,
    *,
    chunk_bytes: int,
    ahead: ReadAhead | None = None,
    every: int = 1,
    sizes: ChunkSizes | None = None,
) -> Iterator[Chunk]:
    """The chunks of `source`, in stream order, from position `start` (and its `part`) of file number `file` on: all, or
    the first of `every` so many.

    A file is opened when its first chunk is asked for. With `ahead`, chunks of remote files carry the bytes that they
    need, which it fetches ahead of need; the others may be of several `sizes`, or whole files, for `chunks_within`.
    Raises `SourceError` for a file that cannot be read.
    """
    with ExitStack() as stack:
        connections = ahead or stack.enter_context(ReadAhead())
        copies = stack.enter_context(WholeCopies(source.files, connections))
        footers = None if ahead is None else Footers(source.files, ahead)
        ends = [*accumulate(each.weight for each in source.files)]
        after = [ends[-1] - end for end in ends]
        sizes = sizes or ChunkSizes(least=chunk_bytes)
        opened = _Opened(source, chunk_bytes, sizes, after, connections, copies, footers)
        counter = count()
        number = file
        while number < len(source.files):
            end = number
            while footers is not None and end < len(source.files) and _is_read_by_ranges(source.files[end]):
                end += 1
            positions = ((n, *((start, part) if n == file else (0, 0))) for n in range(number, max(end, number + 1)))
            files = (
                (position[0], _some(_iter_file_chunks(opened, *position), counter, every)) for position in positions
            )
            if footers is None or end == number:
                for _, chunks in files:
                    yield from chunks
            else:
                yield from with_bytes(files, footers, source.options)
            number = max(end, number + 1)


def chunks_within(chunk: Chunk, options: ReadOptions, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks within one that is a whole file, which is read here; any other chunk as it is. Raises
    `SourceError`."""
    if not chunk.is_whole_file:
        yield chunk
        return
    source = Source(info=SourceInfo(id=chunk.input.path), files=(chunk.input,), options=options)
    for one in iter_chunks(source, 0, chunk.start, chunk.part, chunk_bytes=chunk_bytes):
        yield replace(one, file=chunk.file)


def _some(chunks: Iterator[Chunk], counter: Iterator[int], every: int) -> Iterator[Chunk]:
    return (chunk for chunk in chunks if next(counter) % every == 0)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A source, and what its files are read with."""

    source: Source
    chunk_bytes: int
    sizes: ChunkSizes
    after: list[int]  # a file, the bytes of those behind it
    connections: ReadAhead
    copies: WholeCopies
    footers: Footers | None

    def most_bytes(self, number: int) -> Callable[[int], int]:
        """How many bytes of text the next chunk of a file has at most, if so many bytes of the file are left."""
        if self.footers is not None and self.source.files[number].is_remote:  # the bytes come along
            return lambda left: self.chunk_bytes  # noqa: ARG005
        return lambda left: self.sizes.most(left + self.after[number])

    def is_given_out_whole(self, number: int) -> bool:
        """Whether a file that is read front to back is one chunk; never one that is fetched here, or a pipe."""
        file = self.source.files[number]
        if file.is_pipe or (file.is_remote and self.footers is not None):
            return False
        return self.sizes.are_whole(file.weight, file.weight + self.after[number])


def _is_read_by_ranges(file: InputFile) -> bool:
    return file.is_remote and file.kind in ("parquet", "jsonl", "txt") and not file.is_read_front_to_back


def _iter_file_chunks(opened: _Opened, number: int, start: int, part: int) -> Iterator[Chunk]:
    source, chunk_bytes = opened.source, opened.chunk_bytes
    file = source.files[number]
    if file.stretch is not None:
        start = max(start, file.stretch.start)
    if file.kind == "parquet":
        most = opened.most_bytes(number)
        yield from iter_parquet_chunks(source, number, start, part, chunk_bytes, opened.footers, most)
    elif file.kind == "texts":
        yield from _iter_batches(source, number, start, chunk_bytes)
    elif file.is_read_front_to_back and opened.is_given_out_whole(number):
        yield Chunk(file=number, start=start, stop=-1, weight=file.weight, input=file)
    elif file.is_read_front_to_back:
        with ExitStack() as stack:
            raw: Any = opened.copies.open(number)
            if file.is_pipe:
                raw = stack.enter_context(Pipe(file))
            elif raw is None and file.is_remote:
                raw = stack.enter_context(AheadFile(file, opened.connections))
            stream = stack.enter_context(checked_read(file, lambda: open_stream(file, raw)))
            chunks = _iter_front_to_back(source, number, start, chunk_bytes, stream)
            yield from raw.noted(chunks) if isinstance(raw, Pipe) else chunks
    elif file.kind == "jsonl":
        end = file.bytes if file.stretch is None or file.stretch.stop is None else file.stretch.stop
        most = opened.most_bytes(number)
        while start < end:
            steps = -(-min(end - start, most(end - start)) // chunk_bytes)
            stop = min(start + steps * chunk_bytes, file.bytes)
            yield Chunk(file=number, start=start, stop=stop, weight=stop - start, input=file)
            start = stop
    elif start == 0:
        yield Chunk(file=number, start=0, stop=1, weight=file.bytes, input=file)


def _iter_front_to_back(source: Source, number: int, start: int, chunk_bytes: int, stream: Any) -> Iterator[Chunk]:
    """The chunks of a file that `stream` reads, from row `start` on."""
    file = source.files[number]
    if file.kind == "json":
        head = checked_read(file, lambda: stream.read(HEAD_BYTES))
        kind, stream = "jsonl" if is_lines(head) else "json.values", Rest(head, stream)
        file = replace(file, format=f"{kind}.{file.packing}".rstrip("."))
    if file.kind in ("csv", "tsv"):
        yield from iter_csv_chunks(file, number, start, chunk_bytes, stream, source.options)
    elif file.kind == "arrow":
        yield from iter_arrow_chunks(file, number, start, chunk_bytes, stream, source.options)
    elif file.kind == "json.values":
        yield from _iter_value_chunks(file, number, start, chunk_bytes, stream)
    elif file.kind == "txt":  # of a pipe: no worker could read it
        data = checked_read(file, lambda: stream.read(MAX_ROW_BYTES + 1))
        check_row_bytes(file, "its only row", len(data))
        if start == 0:
            yield Chunk(file=number, start=0, stop=1, weight=0, input=file, payload=data)
    else:
        separator = (source.options.separator or "\n").encode()
        yield from _iter_stream_chunks(file, number, start, chunk_bytes, stream, separator)


def _iter_value_chunks(file: InputFile, number: int, start: int, chunk_bytes: int, stream: Any) -> Iterator[Chunk]:
    """Chunks of JSON values, each made a line."""
    values: list[bytes] = []
    size = row = 0

    def chunk() -> Chunk:
        weight = file.weight_of(size)
        payload = b"".join([value + b"\n" for value in values])
        return Chunk(file=number, start=row - len(values), stop=row, weight=weight, input=file, payload=payload)

    for value in JsonValues(file, stream, chunk_bytes):
        values.append(value)
        size += len(value)
        row += 1
        if size >= chunk_bytes:
            if row > start:
                yield chunk()
            values, size = [], 0
    if values and row > start:
        yield chunk()


def _iter_stream_chunks(
    file: InputFile, number: int, start: int, chunk_bytes: int, stream: Any, separator: bytes
) -> Iterator[Chunk]:
    """Chunks of whole rows of a file that can only be read front to back; `start` counts rows already done.

    Each byte is searched once: `pending` holds the blocks of the row in progress (of `row_bytes` so far), and of these
    only `overlap`, in which a separator may have begun, is looked at again.
    """
    pending: list[bytes] = []
    overlap, row_bytes, row = b"", 0, 0
    while True:
        block = checked_read(file, lambda: stream.read(chunk_bytes))
        window = overlap + block
        end = _last_end(window, separator) - len(overlap)  # in `block`; not positive: no row ends in it
        first_end = window.find(separator) if end > 0 else len(window)
        which = f"line {row + 1:,}" if file.kind != "txt.separated" else f"row {row:,}"
        check_row_bytes(file, which, row_bytes - len(overlap) + first_end)
        if block and end <= 0:
            pending.append(block)
            row_bytes += len(block)
            overlap = window[max(0, len(window) - len(separator) + 1) :]
            continue
        payload, rest = b"".join([*pending, block[:end]]) if block else b"".join(pending), block[max(0, end) :]
        rows = _count_rows(payload, separator)
        if rows and row >= start:
            weight = file.weight_of(len(payload))
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
    """Batches of an iterable's documents, hashed as they come: nothing else says whether it still gives the same ones.
    `start` counts documents already done, which are passed over."""
    file, options, content = source.files[number], source.options, hashlib.sha256()
    batch: list[str | None] = []
    size, row = 0, 0
    for item in () if source.texts is None else source.texts:
        try:
            text = text_in(item, options)
        except ValueError as error:
            raise SourceError(f"document {row}: {error} (columns)") from None
        if text is not None and not isinstance(text, str):
            has = f" with {', '.join(map(repr, list(text)[:8]))}" if isinstance(text, dict) else ""
            raise SourceError(
                f"document {row} is a {type(text).__name__}{has}: expected text, or a row with {options.text_field!r} "
                "(--text-field)"
            )
        batch.append(text if text is None else str.__str__(text))  # a subclass may not be known to the workers
        data = (text or "").encode(errors="surrogatepass")
        content.update(b"%d:" % len(data) + data)  # with its length, so that ["ab"] is not ["a", "b"]
        size += len(text or "")
        row += 1
        if size >= chunk_bytes or len(batch) >= 1 << 16:
            if row > start:
                yield _texts_chunk(file, number, row, batch, content.hexdigest())
            batch, size = [], 0
    if batch:
        yield _texts_chunk(file, number, row, batch, content.hexdigest())


def _texts_chunk(file: InputFile, number: int, stop: int, batch: list[str | None], digest: str) -> Chunk:
    start, payload = stop - len(batch), tuple(batch)
    return Chunk(file=number, start=start, stop=stop, weight=0, input=file, digest=digest, payload=payload)
