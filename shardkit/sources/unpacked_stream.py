"""What the streams of packed files have in common: they are read front to back, a part at a time."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import IO

_MOST_BYTES = 4 << 20  # of one part


class UnpackedStream(io.RawIOBase):
    """The unpacked bytes of the file `raw`, which is closed with it."""

    def __init__(self, raw: IO[bytes] | io.RawIOBase) -> None:
        self._raw = raw

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, fewer only at the end; all that are left without a size."""
        left = (1 << 62) if size is None or size < 0 else size
        parts: list[bytes] = []
        while left and (part := self._next_part(min(left, _MOST_BYTES))):
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file too."""
        self._raw.close()
        super().close()

    @abstractmethod
    def _next_part(self, most: int) -> bytes:
        """At least one of the next bytes, at most `most`; none at the end. Raises `OSError`."""
