"""Reading the bytes of source files, local or behind a URL: exactly the bytes asked for, or a `SourceError`.

Knows nothing of rows or texts. A server that sends fewer or more bytes than it was asked for is noticed here; a client
that trusts it would end up with documents cut short.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO, Any

import pyarrow as pa

from shardkit.errors import SourceError
from shardkit.network import Result, with_retries
from shardkit.sources.file_version import check_unchanged
from shardkit.sources.gzip_stream import GzipStream
from shardkit.sources.packed_stream import PackedStream
from shardkit.sources.read_ahead import SPAN_BYTES, WORKER_AHEAD_BYTES, ReadAhead, Span
from shardkit.sources.remote_bytes import read_into
from shardkit.sources.source import Fetched, InputFile

_LONG_BYTES = 2 * SPAN_BYTES  # that are worth several connections


class DamagedSource(SourceError):
    """Bytes that came as they were asked for, and are not what the file's format says."""


def checked_read(file: InputFile, action: Callable[[], Result]) -> Result:
    """Run `action`, which reads `file`, once: what may help is repeated in `remote_bytes.py`. Its failures become a
    `SourceError` that names the file; so does a file that is no longer the one that was listed."""
    try:
        result = with_retries(action, file.url, f"read {file.path}", error=DamagedSource, content=True)
    except SourceError:
        check_unchanged(file)  # then that is the reason
        raise
    if not file.is_remote:  # of a remote one, each answer was looked at
        check_unchanged(file)
    return result


def read_range(file: InputFile, start: int, stop: int, fetched: Fetched | None = None) -> bytes:
    """The bytes `[start, stop)` of a file, all of them, of those that were `fetched` or by a request. Raises
    `SourceError` if the file is shorter by now."""
    if fetched is not None and (found := fetched.find(start, stop)) is not None:
        return bytes(found)
    if file.is_remote:
        with ExitStack() as stack:
            remote = stack.enter_context(RangeFile(file))
            if stop - start > _LONG_BYTES:
                ahead = stack.enter_context(ReadAhead(WORKER_AHEAD_BYTES))
                remote = stack.enter_context(AheadFile(file, ahead, stop))
            remote.seek(start)
            return remote.read(stop - start)
    with open(file.url, "rb") as handle:
        handle.seek(start)
        data = handle.read(stop - start)
    if len(data) < stop - start:
        raise SourceError(
            f"{file.path} is shorter than when the run began ({start + len(data):,} bytes, expected {stop:,} or more): "
            "leave the source alone while it is read, and start again with --overwrite"
        )
    return data


def open_stream(file: InputFile, raw: IO[bytes] | io.RawIOBase | None) -> Any:
    """Open a file to be read front to back, decompressed if its format says so; `raw` gives the bytes of a remote one,
    or is a copy of it."""
    raw = raw or open(file.url, "rb")  # noqa: SIM115 (the caller closes what it gets)
    if file.packing == "gz":
        return GzipStream(raw)
    if file.packing in ("bz2", "xz"):
        return PackedStream(raw, file.packing)
    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd") if file.packing == "zst" else raw


class Rest:
    """A stream of which the first bytes, `head`, were read already: it is read from its start again."""

    closed = False  # as pyarrow asks

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        part, self._head = self._head[:size], self._head[size:]
        data: bytes = part + self._stream.read(size - len(part)) if len(part) < size else part
        return data


class RangeFile(io.RawIOBase):
    """A remote file, read by ranges, with no cache of its own but what was `fetched` before.

    `read` returns exactly the bytes asked for (up to the file's end), after a few tries, or raises `SourceError`.
    """

    def __init__(self, file: InputFile, fetched: Fetched | None = None) -> None:
        self._file, self._fetched = file, fetched
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, in bytes; returns it, counted from the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.bytes}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        left = max(0, self._file.bytes - self._position)
        size = left if size is None or size < 0 else min(size, left)
        data = self._fetch(self._position, size) if size else b""
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; returns how many bytes came."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fetch(self, start: int, size: int) -> bytes:
        if self._fetched is not None and (found := self._fetched.find(start, start + size)) is not None:
            return bytes(found)
        data = bytearray(size)
        read_into(self._file, start, memoryview(data))
        return bytes(data)


class AheadFile(RangeFile):
    """A remote file, read front to back from wherever it is read first, with its next bytes on their way already. Parts
    that are read beside that were `fetched`."""

    def __init__(
        self, file: InputFile, ahead: ReadAhead, stop: int | None = None, fetched: Fetched | None = None
    ) -> None:
        super().__init__(file, fetched)
        self._ahead, self._stop = ahead, file.bytes if stop is None else stop
        self._spans: deque[Span] = deque()
        self._at = self._asked = 0

    def close(self) -> None:
        """Fetch no more."""
        self._restart(0)
        super().close()

    def _fetch(self, start: int, size: int) -> bytes:
        if self._fetched is not None and (found := self._fetched.find(start, start + size)) is not None:
            return bytes(found)
        if start != self._at:
            self._restart(start)
        parts = []
        while size > 0 and (part := self._next_part(size)):
            parts.append(part)
            size -= len(part)
        rest = super()._fetch(self._at, size) if size else b""  # beyond `stop`
        return parts[0] if len(parts) == 1 and not rest else b"".join([*parts, rest])

    def _next_part(self, most: int) -> bytes:
        """What comes next of the first span, at most `most` bytes; nothing at the end."""
        while self._asked < self._stop and self._asked - self._at < self._ahead.most_bytes:
            stop = min(self._asked + self._ahead.span_bytes, self._stop)
            self._spans.append(self._ahead.ask(self._file, self._asked, stop))
            self._asked = stop
        if not self._spans:
            return b""
        span, start = self._spans[0], self._at
        self._at = min(start + most, span.stop)
        part = bytes(self._ahead.wait(span, self._at)[start - span.start :])
        if self._at == span.stop:
            self._ahead.release(self._spans.popleft())
        return part

    def _restart(self, start: int) -> None:
        while self._spans:
            self._ahead.release(self._spans.popleft())
        self._at = self._asked = start
