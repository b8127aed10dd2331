"""One rank's rows of any global batch, by position alone: a line read under a cut. No torch.

Reading keeps no place: any position may be asked for at any time. What comes next is the loader's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.layouts import Contiguous
from shardkit.batches.mixture import RowLine
from shardkit.batches.order import Cut
from shardkit.dataset.token_stream import Tokens
from shardkit.errors import ShardError

_PLANNED_ROWS = 1024
PAD_TARGET = -100  # what torch's cross_entropy passes over


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchForm:
    """What is made of the rows: `packed` ones may be padded, and end a document where a piece ends inside them."""

    packed: bool = False
    documents: bool = False
    ignore_index: int | None = None
    eot_id: int = 0

    @property
    def plain(self) -> bool:
        """Whether a batch is the rows as they are."""
        return not (self.packed or self.documents or self.ignore_index is not None)


class BatchReader:
    """Reads the `batch_size` rows that `rank` takes of the global batch at a position. For one thread at a time.

    `most_segments` is the most that a row may have, where a `form` with documents will be asked for.
    """

    def __init__(self, line: RowLine, cut: Cut, *, rank: int, seq_len: int, documents: bool = False) -> None:
        self.line = line
        self.cut = cut
        self.rank = rank
        self.seq_len = seq_len
        most = max(source.most_segments(seq_len) for source in line.sources) if documents else 1
        self.most_segments = min(most, seq_len)
        first = line.sources[0]
        plain = line.mixture is None and isinstance(first.layout, Contiguous) and not first.order.shuffle
        self._in_order = first if plain else None
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

    def arrange(self, position: int, rows: Tokens, form: BatchForm) -> list[NDArray[np.integer]]:
        """Inputs and targets of the batch in `rows`, int64 `(batch_size, seq_len)`, as `form` wants them.

        With `form.documents` also `cu_seqlens`, int32 `(most_segments * batch_size + 1,)`, and positions, int64
        `(batch_size, seq_len)`. All are fresh.
        """
        inputs, targets = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
        seams, used = self._seams(position) if form.packed else ([], [])
        targets.reshape(-1)[[seam - 1 for seam in seams]] = form.eot_id
        if form.ignore_index is not None:  # a document's first token is the target of the one before
            np.putmask(targets, targets == form.eot_id, form.ignore_index)
        for at, end in enumerate(used):
            targets[at, end:] = PAD_TARGET if form.ignore_index is None else form.ignore_index
        if not form.documents:
            return [inputs, targets]
        starts = np.equal(rows[:, :-1], form.eot_id)
        for at, end in enumerate(used):  # padding is EOT too, and is one segment
            starts[at, end:] = False
            starts[at, end : end + 1] = True
        starts.reshape(-1)[seams] = True
        starts[:, 0] = True
        return [inputs, targets, *self._segments(np.flatnonzero(starts), position)]

    def _seams(self, position: int) -> tuple[list[int], list[int]]:
        """Where the later pieces of packed rows begin, in the rows laid end to end, and how much of each is used."""
        seams, used = [], []
        for at, (number, index) in enumerate(self.places(position)):
            layout = self.line.sources[number].layout
            edges = list(accumulate(count for _, count in layout.pieces(index)))
            seams += [at * self.seq_len + edge for edge in edges[:-1]]
            used.append(edges[-1])
        return seams, used

    def _segments(self, found: NDArray[np.intp], position: int) -> list[NDArray[np.integer]]:
        """`cu_seqlens` and positions of segments that begin at `found`, in the rows laid end to end."""
        size, slots = self.cut.batch_size, self.cut.batch_size * self.seq_len
        cu_seqlens = np.full(size * self.most_segments + 1, slots, np.int32)
        if len(found) >= len(cu_seqlens):
            raise ShardError(f"the batch at position {position} has {len(found)} segments: the shards were replaced")
        cu_seqlens[: len(found)] = found
        positions = np.arange(slots) - np.repeat(found, np.diff(found, append=slots))
        return [cu_seqlens, positions.reshape(size, self.seq_len)]
