"""A text file, which is one document, in parts: memory does not grow with its length."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from shardkit.sources.pieces import UTF16, UTF16_MARKS, BadRow, Texts, not_utf8
from shardkit.sources.ranges import AheadFile, checked_read, open_stream, read_range
from shardkit.sources.read_ahead import WORKER_AHEAD_BYTES, ReadAhead
from shardkit.sources.source import MAX_ROW_BYTES, Chunk, Fetched, InputFile, ReadOptions
from shardkit.sources.whole_files import whole_file

TEXT_PIECE_BYTES = 4 << 20  # one string: an emoji in it makes it four times as large
_MARK = "\ufeff"  # the byte order mark with which some editors begin a file


def text_file_parts(chunk: Chunk, options: ReadOptions) -> Iterator[Texts]:
    """The document that a file (or what came through a pipe) is. With bad rows to be skipped, a long one is read to its
    end before its first part is given."""
    file = chunk.input
    if options.skip_bad_rows and (file.packing or file.is_pipe or file.bytes > TEXT_PIECE_BYTES):
        try:
            for _ in _iter_parts(chunk):
                pass
        except BadRow as bad:
            yield Texts([], [], 1, [(0, bad.why)], 1, 0)
            return
    try:
        for part, (text, size, is_last) in enumerate(_iter_parts(chunk)):
            row = -1 if part else 0
            yield Texts([text], [row], row + 1, [], 0, size, unfinished=not is_last, continued=part > 0)
    except BadRow as bad:
        if not options.skip_bad_rows:
            raise
        yield Texts([], [], 1, [(0, bad.why)], 1, 0)


def _iter_parts(chunk: Chunk) -> Iterator[tuple[str, int, bool]]:
    """The text of a file by blocks, each with its bytes and whether it is the last; a character on the border belongs
    to the later one. A byte order mark before it is no part of it."""
    decoder, begun, start = codecs.getincrementaldecoder("utf-8")(), False, 0
    for data, is_last in _blocks(chunk):
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=is_last)
        except UnicodeDecodeError as error:
            why = UTF16 if start == 0 and data.startswith(UTF16_MARKS) else not_utf8(error, start - held)
            raise BadRow(-1 if start else 0, why) from error
        yield text if begun else text.removeprefix(_MARK), len(data), is_last
        begun = begun or bool(text)
        start += len(data)


def _blocks(chunk: Chunk) -> Iterator[tuple[bytes, bool]]:
    """The bytes of a file, unpacked, each block with whether it is the last: of what was fetched, or came along, or
    read here, of a long remote file ahead of need."""
    file, fetched = chunk.input, chunk.fetched
    if isinstance(chunk.payload, bytes):
        yield from _blocks_of(file, io.BytesIO(chunk.payload))
        return
    if file.oid and file.bytes <= MAX_ROW_BYTES:  # the hash that the Hub states is of all of it
        fetched = whole_file(file, fetched)
    with ExitStack() as stack:
        is_here = not file.is_remote or (fetched is not None and bool(fetched.pieces))
        remote = None
        if not is_here and file.bytes > TEXT_PIECE_BYTES:
            ahead = stack.enter_context(ReadAhead(WORKER_AHEAD_BYTES))
            remote = stack.enter_context(AheadFile(file, ahead))
        if file.packing:
            yield from _blocks_of(file, stack.enter_context(open_stream(file, remote or _bytes_of(file, fetched))))
            return
        for start in range(0, max(1, file.bytes), TEXT_PIECE_BYTES):
            stop = min(start + TEXT_PIECE_BYTES, file.bytes)
            if remote is not None:
                data = checked_read(file, lambda: remote.read(stop - start))  # noqa: B023 (called here and now)
            else:
                data = checked_read(file, lambda: read_range(file, start, stop, fetched))  # noqa: B023
            yield data, stop == file.bytes


def _bytes_of(file: InputFile, fetched: Fetched | None) -> IO[bytes] | None:
    """The bytes of a remote file that are here, or few; None of a local one."""
    if not file.is_remote:
        return None
    return io.BytesIO(checked_read(file, lambda: read_range(file, 0, file.bytes, fetched)))


def _blocks_of(file: InputFile, stream: Any) -> Iterator[tuple[bytes, bool]]:
    block = checked_read(file, lambda: stream.read(TEXT_PIECE_BYTES))
    while True:
        after = checked_read(file, lambda: stream.read(TEXT_PIECE_BYTES)) if block else b""
        yield block, not after
        if not after:
            return
        block = after
