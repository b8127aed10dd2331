"""What each layout makes of a stream of documents, for several lengths of row at once, while their starts go by: memory
does not grow with the stream. The rows are those of `batches/layouts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.order import count_windows
from shardkit.batches.packing import BLOCK_TOKENS, Ints, pack_block


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutFigures:
    """What a layout makes of a split: shares of all slots that are padded, of all tokens that are no row's input;
    `splits` are documents in several rows, `crossed` rows with tokens of several documents; None: not counted."""

    layout: str
    seq_len: int
    rows: int
    pad: float
    crop: float
    splits: int | None = None
    crossed: int | None = None


class LayoutCounter:
    """Counts for each of `seq_lens`: `add` the documents' starts in ascending order, then `figures`."""

    def __init__(self, seq_lens: Sequence[int]) -> None:
        self._each = [_OneLength(seq_len) for seq_len in seq_lens]
        self._pending: list[Ints] = []
        self._block_end = BLOCK_TOKENS
        self._at_first = True

    def add(self, starts: NDArray[np.int64]) -> None:
        """Documents start at these tokens of the stream, which follow those before."""
        for each in self._each:
            each.add(starts)
        while len(starts) and starts[-1] >= self._block_end:  # blocks are cut where `document_blocks` cuts them
            cut = int(np.searchsorted(starts, self._block_end))
            self._pending.append(starts[:cut])
            first = int(starts[cut])
            self._pack(first)
            self._block_end = (first // BLOCK_TOKENS + 1) * BLOCK_TOKENS
            starts = starts[cut:]
        self._pending.append(starts)

    def figures(self, tokens: int) -> list[LayoutFigures]:
        """Of the whole stream of `tokens` tokens, at its end."""
        self._pack(tokens, last=True)
        return [figures for each in self._each for figures in each.figures(tokens)]

    def _pack(self, end: int, *, last: bool = False) -> None:
        begins = np.concatenate(self._pending) if self._pending else np.empty(0, np.int64)
        self._pending = []
        if not len(begins) and not (last and self._at_first):
            return
        if self._at_first and (not len(begins) or begins[0] > 0):
            begins = np.concatenate([np.zeros(1, np.int64), begins])
        self._at_first = False
        lengths = np.diff(begins, append=end)
        for each in self._each:
            each.pack(begins, lengths)


class _OneLength:
    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len
        self._crossed, self._last_window = 0, -1
        self._aligned, self._next_row, self._last_row = 0, -1, 0  # the least token that the next row may begin at
        self._packed, self._splits = 0, 0

    def add(self, starts: NDArray[np.int64]) -> None:
        if not len(starts):
            return
        inside = starts[starts % self.seq_len != 0] // self.seq_len  # a window that begins with one is not cut by it
        if len(inside):
            self._crossed += int(np.count_nonzero(np.diff(inside, prepend=self._last_window)))
            self._last_window = int(inside[-1])
        following = np.searchsorted(starts, starts + self.seq_len).tolist()
        index = int(np.searchsorted(starts, self._next_row))
        while index < len(starts):
            self._aligned, last = self._aligned + 1, index
            index = following[index]
            self._last_row = int(starts[last])
            self._next_row = self._last_row + self.seq_len

    def pack(self, begins: Ints, lengths: Ints) -> None:
        self._packed += len(pack_block(begins, lengths, self.seq_len)[2])
        self._splits += int(np.count_nonzero(lengths > self.seq_len))

    def figures(self, tokens: int) -> list[LayoutFigures]:
        windows = count_windows(tokens, self.seq_len)
        crossed = self._crossed - (self._last_window >= windows)
        lacks_target = self._aligned > 0 and self._last_row + self.seq_len >= tokens
        aligned, slots = self._aligned - lacks_target, self._packed * self.seq_len
        return [
            self._figures("contiguous", windows, crop=1 - windows * self.seq_len / tokens, crossed=crossed),
            self._figures("document", aligned, crop=1 - aligned * self.seq_len / tokens),
            self._figures("packed", self._packed, pad=(slots - tokens) / slots, splits=self._splits),
        ]

    def _figures(
        self,
        layout: str,
        rows: int,
        *,
        pad: float = 0.0,
        crop: float = 0.0,
        splits: int | None = None,
        crossed: int | None = None,
    ) -> LayoutFigures:
        return LayoutFigures(
            layout=layout, seq_len=self.seq_len, rows=rows, pad=pad, crop=crop, splits=splits, crossed=crossed
        )
