"""Which bytes of a remote file a chunk needs, and how they come to it: ahead of need in the main process, in large
requests over several connections (`with_bytes`), or on the spot in a worker (`fetched_now`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import pairwise

from shardkit.sources.footers import Footers
from shardkit.sources.parquet import column_ranges
from shardkit.sources.ranges import checked_read, read_range
from shardkit.sources.read_ahead import AHEAD_BYTES, Span
from shardkit.sources.source import Chunk, Fetched, Piece, ReadOptions, check_row_bytes
from shardkit.sources.whole_files import whole_file

_LINE_END_BYTES = 1 << 20  # of one request for the end of a line that is longer than its chunk
_GAP_BYTES = 512 << 10  # bytes between two needed ones that cost less than another request
_STEP_BYTES = 64 << 10  # that are looked through at once for the end of a line
_LONGEST_LINE_END = 8 << 20  # a worker fetches a longer one itself
_MOST_PLANNED = 512  # chunks
_WHOLE_BYTES = 64 << 20  # of a text file, which is one chunk; a longer one a worker reads itself

Range = tuple[int, int]


def needed(chunk: Chunk, options: ReadOptions, footer: Piece | None = None) -> list[Range]:
    """The ranges of the chunk's file that a worker will read, ascending, but for those in the `footer`; none for what
    it reads by itself."""
    kind, size = chunk.input.format, chunk.input.bytes
    if chunk.payload is not None or chunk.unread_rows:
        return []
    if kind == "parquet":
        held = Fetched(footer=footer)
        ranges = column_ranges(chunk, options, footer)
        return [(start, stop) for start, stop in ranges if held.find(start, stop) is None]
    if kind == "jsonl":
        return [(max(0, chunk.start - 1), chunk.stop)]
    return [(0, size)] if kind == "txt" and 0 < size <= _WHOLE_BYTES else []


def merged(ranges: Iterable[Range]) -> list[Range]:
    """`ranges` in order, those joined that overlap or lie so close that one request is cheaper than two."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1] + _GAP_BYTES:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def fetched_now(chunk: Chunk, options: ReadOptions) -> Chunk:
    """The chunk with the bytes that it needs, fetched by few requests. Raises `SourceError`."""
    file = chunk.input

    def fetch() -> Fetched:
        ranges = merged(needed(chunk, options))
        return Fetched(pieces=tuple((start, read_range(file, start, stop)) for start, stop in ranges))

    return dataclasses.replace(chunk, fetched=checked_read(file, fetch))


def chunk_lines(chunk: Chunk) -> tuple[int, bytes]:
    """The lines that start in the chunk's byte range, the last one to its end: the byte where the first one begins, and
    their bytes."""
    file, begin, fetched = chunk.input, max(0, chunk.start - 1), chunk.fetched
    if file.is_remote and chunk.stop - begin == file.bytes:
        fetched = whole_file(file, fetched)
    data = read_range(file, begin, chunk.stop, fetched)
    if chunk.start > 0:
        first_end = data.find(b"\n")
        if first_end < 0 or first_end == len(data) - 1:
            return chunk.stop, b""
        data = data[first_end + 1 :]
    blocks, position, first = [data], chunk.stop, chunk.stop - len(data)
    row_start = chunk.stop - len(data) + data.rfind(b"\n") + 1
    while position < file.bytes and not blocks[-1].endswith(b"\n"):
        block = fetched.rest(position) if fetched is not None else b""
        block = block or read_range(file, position, min(position + _LINE_END_BYTES, file.bytes))
        end = block.find(b"\n")
        blocks.append(block if end < 0 else block[: end + 1])
        end = len(block) if end < 0 else end
        check_row_bytes(file, f"the row that starts at byte {row_start:,}", position + end - row_start)
        position += len(block)
    return first, b"".join(blocks)


def with_bytes(files: Iterator[tuple[int, Iterator[Chunk]]], footers: Footers, options: ReadOptions) -> Iterator[Chunk]:
    """The chunks of remote files in the same order, each with its bytes, fetched over the connections of `footers`.

    `files` are the files' numbers and chunks; a file is begun when the footer that it needs has come, or nothing else
    is left to do.
    """
    return iter(_ChunksAhead(files, footers, options))


@dataclasses.dataclass(slots=True)
class _Planned:
    """A chunk whose bytes were asked for: the footer that comes with it, the ranges that it needs, and the spans that
    hold them."""

    chunk: Chunk
    footer: Piece | None
    needs: list[Range]
    bytes: int  # in memory on its account
    spans: list[Span] = dataclasses.field(default_factory=list)


class _ChunksAhead:
    """Asks for the bytes of several chunks at once, as far ahead as memory allows, and hands out the first chunk when
    its own have come."""

    def __init__(self, files: Iterator[tuple[int, Iterator[Chunk]]], footers: Footers, options: ReadOptions) -> None:
        self._files, self._footers, self._options = files, footers, options
        self._ahead = footers.connections
        self._file: tuple[int, Iterator[Chunk]] | None = next(files, None)
        self._begun = False
        self._planned: deque[_Planned] = deque()
        self._planned_bytes = 0
        self._users: Counter[Span] = Counter()  # planned chunks of a span
        self._next: _Planned | None = None  # seen, nothing asked for yet
        self._footer: Piece | None = None  # the one that was counted last
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            while self._planned_bytes < AHEAD_BYTES and len(self._planned) < _MOST_PLANNED and self._plan():
                pass
            if self._planned:
                yield self._hand_out(self._planned.popleft())
            elif self._error is not None:
                raise self._error
            elif self._file is None:
                return

    def _see(self) -> _Planned | None:
        """The next chunk to be planned; None if there is none, or none now. What goes wrong in finding it is raised
        after those before it."""
        while self._next is None and self._file is not None and self._error is None:
            number, chunks = self._file
            if not self._begun and self._planned and not self._footers.is_ready(number):
                return None
            self._begun = True
            try:
                if (chunk := next(chunks, None)) is not None:
                    self._next = self._look_at(chunk)
                else:
                    self._file, self._begun = next(self._files, None), False
            except Exception as error:  # noqa: BLE001 (raised in its turn)
                self._error = error
        return self._next

    def _look_at(self, chunk: Chunk) -> _Planned:
        if chunk.payload is not None:
            return _Planned(chunk, None, [], len(chunk.payload))
        footer = self._footers.footer(chunk.file)
        needs = needed(chunk, self._options, footer)
        size = sum(stop - start for start, stop in needs)
        if footer is not None and footer is not self._footer:
            size += len(footer[1])
        self._footer = footer
        return _Planned(chunk, footer, needs, size)

    def _plan(self) -> bool:
        """Ask for the bytes of the next chunks, about one request's worth; False if there is nothing to do now."""
        if self._planned and self._planned[-1].chunk.payload is not None:
            return False  # what is read in the main process is not read ahead: it would keep the chunks before it here
        batch: list[_Planned] = []
        asked = 0
        while (item := self._see()) is not None and asked < self._ahead.span_bytes and len(batch) < _MOST_PLANNED:
            if batch and item.chunk.input is not batch[0].chunk.input:
                break
            batch.append(item)
            asked += sum(stop - start for start, stop in item.needs)
            self._next = None
            if item.chunk.payload is not None:
                break
        for start, stop in merged(need for item in batch for need in item.needs):
            self._ask(batch, start, stop)
        self._planned += batch
        self._planned_bytes += sum(item.bytes for item in batch)
        return bool(batch)

    def _ask(self, batch: list[_Planned], start: int, stop: int) -> None:
        """Ask for `[start, stop)` in requests of about `span_bytes`: up to half as much again is one request."""
        count = max(1, round((stop - start) / self._ahead.span_bytes))
        borders = [start + (stop - start) * number // count for number in range(count + 1)]
        for first, last in pairwise(borders):
            users = [item for item in batch if any(first < need[1] and need[0] < last for need in item.needs)]
            if users:
                span = self._ahead.ask(batch[0].chunk.input, first, last)
                self._users[span] = len(users)
                for item in users:
                    item.spans.append(span)

    def _hand_out(self, item: _Planned) -> Chunk:
        chunk = item.chunk
        self._planned_bytes -= item.bytes
        if not item.needs and item.footer is None:
            return chunk
        self._ahead.hurry(item.spans)  # a chunk may be longer than what is read ahead at the start
        pieces = [part for start, stop in _touching(item.needs) for part in self._parts(item.spans, start, stop)]
        if chunk.input.format == "jsonl" and chunk.stop < chunk.input.bytes and pieces[-1][1][-1] != ord("\n"):
            pieces += [(chunk.stop, end)] if (end := b"".join(self._line_end(chunk))) else []
        for span in item.spans:
            self._users[span] -= 1
            if not self._users[span]:
                del self._users[span]
                self._ahead.release(span)
        return dataclasses.replace(chunk, fetched=Fetched(pieces=tuple(pieces), footer=item.footer))

    def _parts(self, spans: list[Span], start: int, stop: int) -> Iterator[Piece]:
        """The bytes `[start, stop)` of the file where they lie: a piece of each of the `spans` that hold them."""
        for span in spans:
            first, last = max(start, span.start), min(stop, span.stop)
            if first < last:
                yield first, self._ahead.wait(span, last)[first - span.start :]

    def _line_end(self, chunk: Chunk) -> Iterator[bytes]:
        """What comes after the chunk up to a line end, if that is not too far: the next chunk's bytes."""
        at, most = chunk.stop, chunk.stop + _LONGEST_LINE_END
        number = 0
        while at < most:
            if number == len(self._planned) and not self._plan():
                return
            item = self._planned[number]
            if item.chunk.input is not chunk.input or item.chunk.start > at:  # another file, or chunks are left out
                return
            stop = min(item.chunk.stop, most)
            while at < stop:
                last = min(at + _STEP_BYTES, stop)
                step = b"".join(part for _, part in self._parts(item.spans, at, last))
                end = step.find(b"\n") + 1
                yield step[:end] if end else step
                if end:
                    return
                at = last
            number += 1


def _touching(ranges: list[Range]) -> list[Range]:
    """`ranges`, those joined of which one begins where the other ends."""
    found: list[Range] = []
    for start, stop in ranges:
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found
