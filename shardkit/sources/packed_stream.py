"""A .bz2 or .xz file read front to back, stream after stream. Whatever follows the last one is an error, and not, as to
the standard library's own files, the end.
"""

from __future__ import annotations

import bz2
import io
import lzma
from typing import IO, Any

from shardkit.sources.unpacked_stream import UnpackedStream

_BLOCK_BYTES = 256 << 10  # of packed bytes, read at once


class PackedStream(UnpackedStream):
    """The unpacked bytes of the file `raw`, which is closed with it; `packing` is `bz2` or `xz`. Raises `OSError` for
    what is none."""

    def __init__(self, raw: IO[bytes] | io.RawIOBase, packing: str) -> None:
        super().__init__(raw)
        self._packing = packing
        self._given = b""  # packed bytes that were read and not used
        self._one: Any = None  # the decompressor of the stream that is read
        self._streams = 0  # that are read to their end

    def _next_part(self, most: int) -> bytes:
        """At least one of the next bytes, at most `most`; none at the end."""
        while True:
            if self._one is None and not self._begin():
                return b""
            if self._one.needs_input and not self._given:
                self._given = self._raw.read(_BLOCK_BYTES) or b""
                if not self._given:
                    raise OSError(f"it ends within its stream {self._streams + 1}: it was not written or sent whole")
            given = b""
            if self._one.needs_input:
                given, self._given = self._given, b""
            try:
                part: bytes = self._one.decompress(given, most)
            except (OSError, lzma.LZMAError) as error:
                after = f", after {self._streams} whole ones" if self._streams else ""
                raise OSError(f"no {self._packing} in its stream {self._streams + 1}{after} ({error})") from None
            if self._one.eof:
                self._given = self._one.unused_data + self._given
                self._one, self._streams = None, self._streams + 1
            if part:
                return part

    def _begin(self) -> bool:
        """Begin the next stream, if there is one. Zeros between two of .xz fill up the file."""
        while True:
            self._given = self._given or self._raw.read(_BLOCK_BYTES) or b""
            if self._packing == "xz" and self._streams:
                at_end = not self._given
                self._given = self._given.lstrip(b"\0")
                if not self._given and not at_end:
                    continue
            if not self._given:
                return False
            self._one = lzma.LZMADecompressor() if self._packing == "xz" else bz2.BZ2Decompressor()
            return True
