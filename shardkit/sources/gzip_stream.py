"""Gzip read front to back as `gzip -d` reads it: member after member, then nothing, or the zero bytes with which tapes
and block devices fill up a file.

Often the main process does it for all workers, so it is zlib-ng's work, in little more than half the time of Python's
zlib, or of Arrow's stream, which refuses those zeros besides (`benchmarks/bench_gunzip.py`).
"""

from __future__ import annotations

import io
from typing import IO, Any

from zlib_ng import zlib_ng

from shardkit.sources.unpacked_stream import UnpackedStream

_BLOCK_BYTES = 256 << 10  # of compressed bytes, read at once
_GZIP = 16 + zlib_ng.MAX_WBITS


class GzipStream(UnpackedStream):
    """The decompressed bytes of the gzip file `raw`, which is closed with it. Raises `OSError` for what is no gzip."""

    def __init__(self, raw: IO[bytes] | io.RawIOBase) -> None:
        super().__init__(raw)
        self._given = b""  # compressed bytes that were read and not used
        self._member: Any = None  # its decompressor, while one is read
        self._members = 0  # that are read to their end

    def _next_part(self, most: int) -> bytes:
        """At least one of the next bytes, at most `most`; none at the end."""
        while True:
            given = self._given or self._raw.read(_BLOCK_BYTES) or b""
            if self._member is None:
                if self._members:
                    given = given.lstrip(b"\0") or self._past_zeros()
                if not given:
                    return b""
                self._member = zlib_ng.decompressobj(_GZIP)
            part = self._decompress(given, most)
            if self._member.eof:
                self._given, self._member = self._member.unused_data, None
                self._members += 1
            else:
                self._given = self._member.unconsumed_tail
                if not given and not part:
                    raise OSError(f"it ends within its member {self._members + 1}: it was not written or sent whole")
            if part:
                return part

    def _past_zeros(self) -> bytes:
        """What comes after zero bytes that fill up the file; nothing at its end."""
        while block := self._raw.read(_BLOCK_BYTES):
            if block := block.lstrip(b"\0"):
                return block
        return b""

    def _decompress(self, given: bytes, most: int) -> bytes:
        try:
            part: bytes = self._member.decompress(given, most)
        except zlib_ng.error as error:  # type: ignore[misc]  # its stub takes the class for an instance
            if self._members and "header" in str(error):
                raise OSError(
                    "what follows its last whole member is no gzip; `gzip -dc` writes what comes before"
                ) from None
            raise OSError(str(error).replace("Error -3 while decompressing data: ", "")) from None
        return part
