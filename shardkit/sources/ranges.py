"""Reading the bytes of source files, local or behind a URL: exactly the bytes asked for, or a `SourceError`.

Knows nothing of rows or texts. A server that sends fewer or more bytes than it was asked for is noticed here; a client
that trusts it would end up with documents cut short.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any

import pyarrow as pa

from shardkit.errors import SourceError
from shardkit.network import Result, open_filesystem, with_retries
from shardkit.sources.file_version import HttpAnswers, check_answer, check_size, check_unchanged
from shardkit.sources.source import InputFile

REQUEST_BYTES = 8 << 20  # of one request, where a remote file is read front to back


class DamagedSource(SourceError):
    """Bytes that came as they were asked for, and are not what the file's format says."""


def checked_read(file: InputFile, action: Callable[[], Result]) -> Result:
    """Run `action`, which reads `file`, once: `RangeFile` repeats what may help. Its failures become a `SourceError`
    that names the file; so does a file that is no longer the one that was listed."""
    try:
        result = with_retries(action, file.url, f"read {file.path}", error=DamagedSource, content=True)
    except SourceError:
        check_unchanged(file)  # then that is the reason
        raise
    check_unchanged(file)
    return result


def read_range(file: InputFile, start: int, stop: int) -> bytes:
    """The bytes `[start, stop)` of a file, all of them. Raises `SourceError` if the file is shorter by now."""
    if file.is_remote:
        with RangeFile(file) as remote:
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


def open_stream(file: InputFile, copy: IO[bytes] | None = None) -> Any:
    """Open a file, or a `copy` of it, to be read front to back, decompressed if its format says so."""
    raw: Any = copy or _open_raw(file)
    codec = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}.get(file.format)
    return raw if codec is None else pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)


def _open_raw(file: InputFile) -> Any:
    return io.BufferedReader(RangeFile(file), REQUEST_BYTES) if file.is_remote else open(file.url, "rb")


class RangeFile(io.RawIOBase):
    """A remote file, read by ranges, with no cache of its own.

    `read` returns exactly the bytes asked for (up to the file's end), after a few tries, or raises `SourceError`.
    """

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._handle: Any = None  # fsspec's open file; None after a failure, so that the next try opens it again
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
        if size == 0:
            return b""
        where, what = self._file.url, f"read {self._file.path}"
        data = with_retries(lambda: self._fetch(self._position, size), where, what, error=SourceError)
        self._position += size
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; returns how many bytes came."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the connection's file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        super().close()

    def _fetch(self, start: int, size: int) -> bytes:
        handle, self._handle = self._handle or self._open(), None
        handle.seek(start)
        data = bytes(handle.read(size))
        if len(data) != size:
            raise OSError(
                f"{len(data):,} bytes came for the {size:,} asked for at {start:,}: the connection was cut, or the "
                "server does not serve ranges (then download the file first)"
            )
        self._handle = handle
        return data

    def _open(self) -> Any:
        fs, path = open_filesystem(self._file.url, error=SourceError)
        handle = fs.open(path, "rb", cache_type="none")
        check_size(self._file, getattr(handle, "size", None))
        if self._file.url.startswith(("http://", "https://")):
            handle.session = HttpAnswers(handle.session, self._file)
            if (answer := getattr(handle, "r", None)) is not None:  # it has begun already: a server without ranges
                check_answer(self._file, answer.headers)
        return handle
