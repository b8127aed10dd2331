"""Reads the rows of a remote whose shards arrive span by span: decides what is fetched when, and which edges stay.

Each byte is fetched at most once an epoch. A shard is here while its span is read, and the span before that; afterwards
only its edge is, for the seam rows of later spans (`spans.py` says what these are). A run that goes on in mid-epoch, in
a folder without the edges of the shards that have passed, fetches those shards once more, ahead of time where there is
room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from shardkit.batches.spans import ShardRows, SpanOrder
from shardkit.dataset.token_stream import Tokens, TokenStream
from shardkit.errors import HubError, ShardError
from shardkit.remote.streaming.cache import ShardCache


class SpanReader:
    """Goes through the visits of `order`, and reads tokens of the rows of each. For one thread at a time."""

    def __init__(self, cache: ShardCache, stream: TokenStream, order: SpanOrder, rows: ShardRows) -> None:
        self._cache, self._stream, self._order = cache, stream, order
        self._seams, self._edges = rows.seams, rows.edges
        self._sizes = [shard.bytes for shard in stream.shards]
        self._largest = max(self._sizes)
        self._entered = -1
        self._here: list[int] = []

    def enter(self, visit: int) -> None:
        """From now on rows of `visit` are read: keep the edges of what is left, and fetch what comes next."""
        if visit == self._entered:
            return
        self._save_edges(in_turn=visit == self._entered + 1)
        self._entered = -1  # until all of this is done: it may fail, and is begun anew then
        here, following = self._order.shards(visit), self._order.shards(visit + 1)
        missing = list(self._lacking(visit))
        for first in range(0, len(missing), len(here)):
            group = missing[first : first + len(here)]
            self._cache.switch(self._stream, [*group, *here])
            for shard in group:
                self._save_edge(shard)
        ahead = [shard for shard in self._lacking(visit + 1) if shard not in here]
        self._cache.switch(self._stream, self._that_fit([*here, *following], ahead))
        self._entered, self._here = visit, here

    def read_row(self, row: int, visit: int, out: Tokens) -> None:
        """Copy `row`, which a position in `visit` has, into `out`."""
        self.enter(visit)
        read = self.read if row in self._seams else self._stream.read
        read(row * (len(out) - 1), out)

    def read(self, token: int, out: Tokens) -> None:
        """Copy `len(out)` tokens from `token` on, of a row of the visit that was entered last."""
        while len(out):
            shard, offset = self._stream.shard_of(token)
            count = min(len(out), self._stream.starts[shard + 1] - token)
            if shard in self._here:
                self._stream.read(token, out[:count])
            else:
                out[:count] = self._edge_of(shard, offset, count)
            token, out = token + count, out[count:]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_entered": -1, "_here": []}

    def _save_edges(self, *, in_turn: bool) -> None:
        """Keep the edges of the span that is left; if the visit to come is not the next, of all that has arrived."""
        if self._entered < 0:
            return
        skipped = [] if in_turn else self._order.shards(self._entered + 1)
        for shard in [*self._order.shards(self._entered), *skipped]:
            if self._lacks(shard) and (in_turn or self._cache.has_arrived(self._stream.shards[shard].file)):
                with suppress(HubError):  # this rank has read no row of it; a rank that needs it raises the reason
                    self._save_edge(shard)

    def _save_edge(self, shard: int) -> None:
        if not self._lacks(shard):  # another rank was first
            return
        edge, start = self._edges[shard], self._stream.starts[shard]
        tokens = np.empty(edge.count, self._stream.dtype)
        ends = (start, edge.head), (start + edge.tail, edge.tokens - edge.tail)
        self._stream.gather([end for end in ends if end[1]], tokens)
        self._cache.save_edge(self._name(shard), tokens)

    def _lacking(self, visit: int) -> Iterator[int]:
        return filter(self._lacks, self._order.seams(visit))

    def _lacks(self, shard: int) -> bool:
        return shard in self._edges and self._cache.edge(self._name(shard), self._edges[shard].count) is None

    def _edge_of(self, shard: int, offset: int, count: int) -> Tokens:
        edge = self._edges[shard]
        if (tokens := self._cache.edge(self._name(shard), edge.count)) is None:  # it was there when we entered
            visit, self._entered = self._entered, -1
            self.enter(visit)
            tokens = self._cache.edge(self._name(shard), edge.count)
        if tokens is None:
            raise ShardError(f"{self._cache.directory} was changed while it was read: make a new loader, it goes on")
        place = edge.place_of(offset)
        part: Tokens = tokens[place : place + count]
        return part

    def _name(self, shard: int) -> str:
        edge = self._edges[shard]
        return f"{self._stream.shards[shard].sha256[:32]}-{edge.head}-{edge.tail}"

    def _that_fit(self, needed: Sequence[int], ahead: Sequence[int]) -> list[int]:
        """All that is `needed`, and as much of what may come `ahead` as leaves room for one more shard."""
        shards, room = list(dict.fromkeys(needed)), self._cache.room_bytes
        taken = sum(self._sizes[shard] for shard in shards)
        for shard in ahead:
            if room is None or taken + self._sizes[shard] + self._largest <= room:
                shards.append(shard)
                taken += self._sizes[shard]
        return list(dict.fromkeys(shards))
