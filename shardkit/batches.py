"""One rank's rows of any global batch, by position alone: a line read under a cut. No torch.

Reading keeps no place: any position may be asked for at any time. What comes next is the loader's to say.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import ShardError
from shardkit.layouts import Contiguous, Packed
from shardkit.lines import Line
from shardkit.order import Cut
from shardkit.stream import Tokens

_PLANNED_ROWS = 1024


class BatchReader:
    """Reads the `batch_size` rows that `rank` takes of the global batch at a position. For one thread at a time.

    `marks` says whether `mark` will be asked for: then `n_marks` is how many numbers it fills, the same for all.
    """

    def __init__(self, line: Line, cut: Cut, *, rank: int, seq_len: int, marks: bool = False) -> None:
        self.line = line
        self.cut = cut
        self.rank = rank
        self.seq_len = seq_len
        self.n_marks = 0
        if marks:
            most = max(source.most_segments(seq_len) for source in line.sources)
            self.n_marks = cut.batch_size * (1 + min(most, seq_len)) + 1
        first = line.sources[0]
        plain = line.mixture is None and isinstance(first.layout, Contiguous) and not first.order.shuffle
        self._in_order = first if plain and not marks else None
        self._plan: list[list[tuple[int, int]]] = []  # of the batches from _plan_start on: the formula pays in bulk
        self._plan_start = 0

    def places(self, position: int) -> list[tuple[int, int]]:
        """The rank's `batch_size` rows of the global batch at `position`: the source's number, and the row there."""
        index, rest = divmod(position - self._plan_start, self.cut.global_batch)
        if rest or not 0 <= index < len(self._plan):
            steps = max(1, _PLANNED_ROWS // self.cut.batch_size)
            numbers, rows = self.line.places(self.cut.positions(position, steps=steps, rank=self.rank))
            pairs = zip(numbers.tolist(), rows.tolist(), strict=True)
            self._plan = [list(zip(*pair, strict=True)) for pair in pairs]
            self._plan_start, index = position, 0
        return self._plan[index]

    def run(self, position: int) -> Tokens | None:
        """The batch as one run of `batch_size * seq_len + 1` tokens, straight out of the map, where it is one.

        That is of one contiguous source without a shuffle, inside one epoch and one shard; else None. Copy it out
        before the next read.
        """
        source = self._in_order
        if source is None:
            return None
        size = self.cut.batch_size
        window = (position + self.rank * size) % source.order.n_windows
        source.enter(window)
        # past the epoch's end too it is none: what follows the last window is too short for another
        return source.stream.run(window * self.seq_len, size * self.seq_len + 1)

    def rows(self, position: int, out: Tokens) -> None:
        """Copy the batch into `out`, `(batch_size, seq_len + 1)` of the shards' dtype: a row and its last target."""
        sources = self.line.sources
        for row, (number, index) in zip(out, self.places(position), strict=True):
            sources[number].read(index, row)

    def mark(self, position: int, rows: Tokens, out: NDArray[np.int32]) -> None:
        """Say in `out`, `(n_marks,)`, where the segments of the batch in `rows` lie.

        First how much of each row is used, `(batch_size,)`; then `cu_seqlens`, where each segment starts in the rows
        laid end to end, filled up with `batch_size * seq_len`. A row, a document and the padding begin a segment.
        """
        size, length = self.cut.batch_size, self.seq_len
        out[:size] = length
        starts = np.zeros((size, length), bool)
        for at, (number, index) in enumerate(self.places(position)):
            source = self.line.sources[number]
            np.equal(rows[at, :-1], source.required_eot(), out=starts[at])
            if isinstance(source.layout, Packed):  # padding is EOT too, and a part of a document has none
                edges = list(accumulate(count for _, count in source.layout.pieces(index)))
                out[at] = edges[-1]
                starts[at, edges[-1] :] = False
                starts[at, [edge for edge in edges if edge < length]] = True
        starts[:, 0] = True
        found = np.flatnonzero(starts)
        if len(found) > self.n_marks - size - 1:
            raise ShardError(f"the batch at position {position} has {len(found)} segments: the shards were replaced")
        out[size : size + len(found)] = found
        out[size + len(found) :] = size * length
