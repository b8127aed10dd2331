"""Which rows of a part of a source file were skipped, where they are too many to be listed: a bit a row, compressed."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_TEXT = re.compile(r"([0-9]{1,18}):([0-9]{1,10}):([0-9]{1,10}):([A-Za-z0-9+/=]*)")
_MOST_ROWS = 1 << 33


@dataclass(frozen=True, slots=True)
class RowMap:
    """Of `rows` rows, from number `first` on, `skipped` were skipped. Which, is a bit a row, packed as `numpy.packbits`
    does; `bits` has them deflated, in base64. Where one row in ten is read, that is a byte for nine rows."""

    first: int
    rows: int
    skipped: int
    bits: str

    def __str__(self) -> str:
        return f"{self.first}:{self.rows}:{self.skipped}:{self.bits}"

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(text: str) -> RowMap:
        """The map that `str` made `text` of. Raises `ValueError` for what is none."""
        match = _TEXT.fullmatch(text)
        if match is None or not 0 < int(match[3]) <= int(match[2]) <= _MOST_ROWS:
            raise ValueError(f" is {text[:60]!r}, expected a map of rows")
        return RowMap(int(match[1]), int(match[2]), int(match[3]), match[4])

    @staticmethod
    def of_runs(runs: Sequence[tuple[int, int]]) -> RowMap:
        """The map of runs of skipped rows, (first, last), in order."""
        first, rows = runs[0][0], runs[-1][1] + 1 - runs[0][0]
        steps = np.zeros(rows + 1, np.int8)
        begins, ends = np.asarray(runs, np.int64).T - first
        steps[begins] = 1
        steps[ends + 1] -= 1
        skipped = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
        packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS, strategy=zlib.Z_FILTERED)  # of single bits the shortest
        packed = packer.compress(np.packbits(skipped).tobytes()) + packer.flush()
        return RowMap(first, rows, int(np.count_nonzero(skipped)), base64.b64encode(packed).decode())

    def runs(self) -> list[tuple[int, int]] | None:
        """The runs of skipped rows, (first, last). None where the map is damaged."""
        kept = _kept(self)
        if kept is None:
            return None
        ends = np.concatenate([[-1], kept, [self.rows]])
        gaps = np.flatnonzero(np.diff(ends) > 1)
        firsts, lasts = self.first + ends[gaps] + 1, self.first + ends[gaps + 1] - 1
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))

    def row_of(self, row: int) -> int | None:
        """The row that number `row`, at least `first`, has, if it is counted without those that were skipped here. None
        where the map is damaged."""
        number, kept = row - self.first, self.rows - self.skipped
        if number >= kept:
            return row + self.skipped
        rows = _kept(self)
        return None if rows is None else self.first + int(rows[number])


@lru_cache(maxsize=16)
def _kept(rows: RowMap) -> NDArray[np.int64] | None:
    """Which rows of a map were read, counted from its first; None where it is damaged."""
    size, unpacker = -(-rows.rows // 8), zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        packed = unpacker.decompress(base64.b64decode(rows.bits, validate=True), size + 1)
    except (ValueError, zlib.error):
        return None
    if len(packed) != size or not unpacker.eof:
        return None
    kept = np.flatnonzero(np.unpackbits(np.frombuffer(packed, np.uint8), count=rows.rows) == 0)
    return kept if len(kept) == rows.rows - rows.skipped else None
