"""Bytes of source files, here or behind a URL: exactly those that were asked for, after some tries, or a `SourceError`.

Knows nothing of rows or texts. A server that sends fewer bytes than it was asked for, or more, is found out here: a
client that trusts it would end up with documents cut short.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from shardkit.errors import SourceError
from shardkit.network import _T, retrying
from shardkit.sources.source import InputFile

_BUFFER = 8 << 20  # bytes a request, where a remote file is read front to back


def is_remote(file: InputFile) -> bool:
    """True if the file is read through fsspec."""
    return "://" in file.url


def guarded(file: InputFile, action: Callable[[], _T]) -> _T:
    """Run `action` on `file` once; its failures become a `SourceError` that names the file. (`RemoteFile` has tried
    again already.)"""
    return retrying(action, file.path, remote=False)


def read_range(file: InputFile, start: int, stop: int) -> bytes:
    """The bytes `[start, stop)` of a file, all of them. Raises `SourceError` if the file is shorter by now."""
    if is_remote(file):
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


def open_stream(file: InputFile) -> Any:
    """A file to be read front to back, decompressed if its format says so."""
    raw: Any = io.BufferedReader(RangeFile(file), _BUFFER) if is_remote(file) else open(file.url, "rb")  # noqa: SIM115
    codec = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}.get(file.format)
    return raw if codec is None else pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)


def modified(file: InputFile) -> int:
    """When a local file was last changed, in nanoseconds; 0 for a remote one."""
    return 0 if is_remote(file) else os.stat(file.url).st_mtime_ns


class RangeFile(io.RawIOBase):
    """A remote file, read by ranges, with no cache of its own. `read` gives exactly what was asked for (up to the
    file's end), after up to six tries, or raises `SourceError`."""

    def __init__(self, file: InputFile) -> None:
        self._source = file
        self._handle: Any = None
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, in bytes."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.bytes}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        left = max(0, self._source.bytes - self._at)
        size = left if size is None or size < 0 else min(size, left)
        if size == 0:
            return b""
        data = retrying(lambda: self._fetch(self._at, size), self._source.path, remote=True)
        self._at += size
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
        handle, self._handle = self._handle or self._open(), None  # a failure leaves None: the next try opens it again
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
        import fsspec

        fs, path = fsspec.core.url_to_fs(self._source.url)
        return fs.open(path, "rb", cache_type="none")
