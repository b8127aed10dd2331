"""Spans: shards that a bounded disk can hold at once, drawn from all over the source. Pure arithmetic, no files.

Each epoch permutes the shards, by a formula of seed and epoch, and cuts that sequence into spans of `span` shards. The
rows of one span are shuffled among themselves while the next span's shards arrive. Without a shuffle the shards keep
their order, and so do the rows.

A row that lies in one shard is read while that shard's span is. A seam row begins in one shard and ends in another one,
which the permutation has put into any other span: it is read in the last of its shards' spans, and what it needs of the
others, their edges, is kept until then (`remote/streaming/edges.py`). At most one seam row begins in a shard.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.order import Permutation, count_windows
from shardkit.errors import UsageError
from shardkit.files import counted, format_bytes

AUTO_SPAN = 4  # shards: of FineWeb-Edu 400M tokens to mix, 800 MB before the first batch
SPAN_ORDER_VERSION = 2  # 1 took neighbouring shards, in the same order in every epoch
_EPOCHS_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """What seam rows need of a shard of so many `tokens`: its first `head` tokens, and those from `tail` on."""

    head: int
    tail: int
    tokens: int

    @property
    def count(self) -> int:
        """How many tokens that is."""
        return self.head + self.tokens - self.tail

    def place_of(self, offset: int) -> int:
        """Where in the edge the shard's token at `offset` is."""
        return offset - self.tail + self.head if offset >= self.tail else offset


class _Epoch(NamedTuple):
    """One epoch: shards as they come, where each span begins, runs of rows (first row, position) span by span, and the
    numbers of the seams span by span, with the spans that they are read in."""

    shards: list[int]
    span_starts: NDArray[np.int64]
    run_rows: NDArray[np.int64]
    run_starts: NDArray[np.int64]
    seams: NDArray[np.int64]
    seam_spans: NDArray[np.int64]


class ShardRows:
    """Which rows of `seq_len` tokens lie in which of the shards, which hold `tokens`.

    Shard `i` has whole the rows from `firsts[i]` up to `ends[i]`. `seams` are the rows that no shard has whole, with
    the shards that each reads, and `edges`, by shard, what is ever needed of those when they are gone.
    """

    def __init__(self, tokens: Sequence[int], seq_len: int) -> None:
        starts = [0, *accumulate(tokens)]
        self.seq_len, self.starts, self.n_rows = seq_len, starts, count_windows(starts[-1], seq_len)
        firsts = np.minimum(-(-np.array(starts, np.int64) // seq_len), self.n_rows)
        self.firsts = firsts[:-1]
        self.ends = np.clip((np.array(starts[1:], np.int64) - 1) // seq_len, firsts[:-1], firsts[1:])
        self.seams = {
            row: range(shard, bisect_right(starts, (row + 1) * seq_len))
            for shard, row in enumerate(self.ends.tolist())
            if row < firsts[shard + 1]
        }
        self.edges = self._find_edges()

    def _find_edges(self) -> dict[int, Edge]:
        heads: dict[int, int] = {}
        tails: dict[int, int] = {}
        for row, shards in self.seams.items():
            tails[shards[0]] = row * self.seq_len - self.starts[shards[0]]
            end = (row + 1) * self.seq_len + 1
            for shard in shards[1:]:
                heads[shard] = max(heads.get(shard, 0), min(end, self.starts[shard + 1]) - self.starts[shard])
        sizes = {shard: self.starts[shard + 1] - self.starts[shard] for shard in sorted(heads.keys() | tails.keys())}
        return {
            shard: Edge(head=heads.get(shard, 0), tail=tails.get(shard, size), tokens=size)
            for shard, size in sizes.items()
        }


class SpanOrder:
    """The row at each position of the endless sequence, where an epoch takes one span of shards after the other.

    A visit is a span in an epoch: visit `v` is span `v % n_spans` of epoch `v // n_spans`. `salt` makes the orders of
    two datasets differ that are mixed under one seed.
    """

    def __init__(self, rows: ShardRows, *, span: int, seed: int, shuffle: bool, salt: str = "") -> None:
        self.shuffle, self.n_windows = shuffle, rows.n_rows
        self.n_spans = -(-len(rows.firsts) // span)
        self._rows, self._span, self._seed, self._salt = rows, span, seed, salt
        self._seams = list(rows.seams.values())
        self._epochs: dict[int, _Epoch] = {}

    def windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row, in `0..n_windows-1`, at each position: int64 of any shape in, the same shape out."""
        indices = positions % self.n_windows
        if not self.shuffle:
            return indices
        result = np.empty_like(indices)
        visits = self.visits(positions)
        for visit in set(visits.ravel().tolist()):
            chosen = visits == visit
            number, span = divmod(visit, self.n_spans)
            epoch = self._epoch(number)
            first, end = epoch.span_starts[span : span + 2].tolist()
            permutation = Permutation(end - first, f"{self._seed}:{number}:{span}{self._salt}")
            places = first + permutation(indices[chosen] - first)
            runs = np.searchsorted(epoch.run_starts, places, side="right") - 1
            result[chosen] = epoch.run_rows[runs] + places - epoch.run_starts[runs]
        return result

    def visits(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The visit in which each position is: int64, of the shape of `positions`."""
        epochs, indices = np.divmod(positions, self.n_windows)
        result = epochs * self.n_spans
        for number in set(epochs.ravel().tolist()):
            chosen = epochs == number
            result[chosen] += np.searchsorted(self._epoch(number).span_starts, indices[chosen], side="right") - 1
        return result

    def shards(self, visit: int) -> list[int]:
        """The shards of a visit's span."""
        number, span = divmod(visit, self.n_spans)
        return self._epoch(number).shards[span * self._span : (span + 1) * self._span]

    def seams(self, visit: int) -> list[int]:
        """The shards of which a visit's seam rows need an edge: they are of earlier spans, and may be gone."""
        number, span = divmod(visit, self.n_spans)
        own, epoch = {*self.shards(visit)}, self._epoch(number)
        first, end = np.searchsorted(epoch.seam_spans, [span, span + 1]).tolist()
        read = [self._seams[seam] for seam in epoch.seams[first:end].tolist()]
        return list(dict.fromkeys(shard for shards in read for shard in shards if shard not in own))

    def _epoch(self, number: int) -> _Epoch:
        found = self._epochs.get(number)
        if found is None:
            found = self._lay_out(number)
            kept = {number: found, **self._epochs}
            self._epochs = dict(list(kept.items())[:_EPOCHS_KEPT])
        return found

    def _lay_out(self, number: int) -> _Epoch:
        firsts, ends, seams = self._rows.firsts, self._rows.ends, self._rows.seams
        places = np.arange(len(firsts))
        shards = (
            Permutation(len(places), f"{self._seed}:{number}:shards{self._salt}")(places) if self.shuffle else places
        )
        span_of = np.empty_like(places)
        span_of[shards] = places // self._span
        seam_spans = np.array([span_of[read.start : read.stop].max() for read in self._seams], np.int64)
        rows = np.concatenate([firsts[shards], np.array([*seams], np.int64)])
        counts = np.concatenate([(ends - firsts)[shards], np.ones(len(seams), np.int64)])
        spans = np.concatenate([places // self._span, seam_spans])
        order = np.argsort(spans if self.shuffle else rows, kind="stable")
        order = order[counts[order] > 0]
        in_turn = np.argsort(seam_spans, kind="stable")
        sizes = np.bincount(spans, weights=counts, minlength=self.n_spans).astype(np.int64)
        return _Epoch(
            shards=shards.tolist(),
            span_starts=np.concatenate([[0], np.cumsum(sizes)]),
            run_rows=rows[order],
            run_starts=np.cumsum(counts[order]) - counts[order],
            seams=in_turn,
            seam_spans=seam_spans[in_turn],
        )


def choose_span(sizes: Sequence[int], *, room: int | None, given: int | None, where: str) -> int:
    """How many shards a span has: `given`, or the most, up to 4, of which two spans always fit `room` bytes.

    `sizes` are the shards' in bytes, None for `room` is no bound, `where` is for messages. Raises `UsageError` where no
    span fits.
    """
    least, given = 0, given and min(given, len(sizes))
    for span in range(min(AUTO_SPAN, len(sizes)), 0, -1) if given is None else [given]:
        least = sum(sorted(sizes)[-2 * span :])
        if room is None or least <= room:
            return span
    raise UsageError(
        f"{where}: a span of {counted(given or 1, 'shard')} and the next one take {format_bytes(least)}, cache_bytes "
        f"leaves {format_bytes(max(0, room or 0))} for shards: give more, or a smaller span"
    )
