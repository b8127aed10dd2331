"""What documents are like, while they go by: lengths, copies, near-empty and repetitive ones. Memory is bounded."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

NEAR_EMPTY = 8  # tokens
_EXACT_LENGTHS = 1 << 16  # longer ones are kept one by one: there cannot be many
_MOST_HASHES = 1 << 22
_LOOKED_AT, _DECODED = 4096, 256  # documents of which repetition is counted, and of which the ids are kept
_GRAM, _SHORTEST, _LONGEST = 8, 64, 4096  # tokens
_EXAMPLES = 3
_WEIGHTS = np.random.default_rng(0).integers(1, 1 << 63, _GRAM, dtype=np.uint64) | np.uint64(1)
Ids = NDArray[np.unsignedinteger]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """Documents (empty ones left out) whose tokens are those of an earlier one, and their share of these documents'
    tokens. Of a large dataset both are estimates, from one in `thinned` of all hashes. `examples` are the documents
    with the most copies: how often they occur, and the number of the first."""

    documents: int = 0
    tokens_share: float = 0.0
    thinned: int = 1
    examples: tuple[tuple[int, int], ...] = ()


class DocumentCounter:
    """Fed with the blocks of a stream in their order. Of about `expected` documents some are looked at closely."""

    def __init__(self, expected: int) -> None:
        self._every = np.uint64(max(1, expected // _LOOKED_AT))
        self._kept_every = max(1, min(expected, _LOOKED_AT) // _DECODED)  # of these, for their ids
        self._exact = np.zeros(_EXACT_LENGTHS, np.int64)  # how many documents have that length
        self._long: list[int] = []
        self._digest = hashlib.sha256()
        self._length = self._number = -1  # of the document that is going by; no length: its beginning is not here
        self._copies = _CopyFinder()
        self.near_empty: list[tuple[int, Ids]] = []  # some of them: number and ids
        self.repetition: list[float] = []  # of each document that was looked at: the share of 8-grams seen before in it
        self.repetitive: list[tuple[float, int, Ids]] = []  # those with the most: share, number and ids
        self.looked_at: list[Ids] = []

    def jump(self, documents: int) -> None:
        """What comes next does not follow what came before; so many documents begin before it."""
        self._length, self._number = -1, documents - 1

    def add(self, block: Ids, starts: Ints) -> None:
        """The stream goes on with `block`, in which documents start at `starts` (their EOTs)."""
        data, size, places = block.data.cast("B"), block.itemsize, starts.tolist()
        self._go_on(data[: (places[0] if places else len(block)) * size], size)
        if not places:
            return
        self.end()
        digests = b"".join(hashlib.sha256(data[(a + 1) * size : b * size]).digest()[:8] for a, b in pairwise(places))
        if digests:
            self._count(block, starts, np.frombuffer(digests, np.uint64))
        self._digest, self._length = hashlib.sha256(), 0
        self._number += len(places)
        self._go_on(data[(places[-1] + 1) * size :], size)

    def end(self) -> None:
        """The document that was going by is at its end."""
        if self._length >= 0:
            digest = np.frombuffer(self._digest.digest()[:8], np.uint64)
            self._note(np.array([self._length]), digest, np.array([self._number]))
            self._length = -1

    @property
    def lengths(self) -> tuple[Ints, Ints]:
        """Each length, without the EOT, that documents have, ascending, and how many have it."""
        long, counts = np.unique(np.array(self._long, np.int64), return_counts=True)
        exact = np.flatnonzero(self._exact)
        return np.concatenate([exact, long]), np.concatenate([self._exact[exact], counts])

    @property
    def copies(self) -> Copies:
        """What is known of copies."""
        return self._copies.found()

    def _go_on(self, data: memoryview, size: int) -> None:
        if self._length >= 0:
            self._digest.update(data)
            self._length += len(data) // size

    def _count(self, block: Ids, starts: Ints, hashes: Hashes) -> None:
        """The documents that lie in one block."""
        lengths, first = np.diff(starts) - 1, self._number + 1
        self._note(lengths, hashes, np.arange(first, first + len(lengths)))

        def ids(place: int) -> Ids:
            begin = int(starts[place]) + 1
            return block[begin : begin + min(int(lengths[place]), _LONGEST)].copy()

        if len(self.near_empty) < _EXAMPLES:
            few = np.flatnonzero((lengths > 0) & (lengths <= NEAR_EMPTY))[: _EXAMPLES - len(self.near_empty)]
            self.near_empty += [(first + place, ids(place)) for place in few.tolist()]
        chosen = np.flatnonzero((lengths >= _SHORTEST) & ((hashes >> np.uint64(32)) % self._every == 0))
        for place in chosen[: 2 * _LOOKED_AT - len(self.repetition)].tolist():
            self._look_at(first + place, ids(place))

    def _look_at(self, number: int, ids: Ids) -> None:
        grams = np.lib.stride_tricks.sliding_window_view(ids, _GRAM).astype(np.uint64) @ _WEIGHTS
        repeated = 1 - len(np.unique(grams)) / len(grams)
        self.repetition.append(repeated)
        if len(self.repetition) % self._kept_every == 0:
            self.looked_at.append(ids)
        if any(np.array_equal(ids, other) for *_, other in self.repetitive):
            return
        heapq.heappush(self.repetitive, (repeated, -number, ids))
        if len(self.repetitive) > _EXAMPLES:
            heapq.heappop(self.repetitive)

    def _note(self, lengths: Ints, hashes: Hashes, numbers: Ints) -> None:
        is_long = lengths >= _EXACT_LENGTHS
        self._long += lengths[is_long].tolist()
        counts = np.bincount(lengths[~is_long])
        self._exact[: len(counts)] += counts
        self._copies.add(hashes[lengths > 0], numbers[lengths > 0], lengths[lengths > 0])


class _CopyFinder:
    """Hashes of documents, each with how often it came, the number of the first such document, and its length: of all
    documents, or, where there are too many different ones, of one in `_thinned`, by the hash."""

    def __init__(self) -> None:
        self._parts: list[tuple[Hashes, Ints, Ints, Ints]] = []
        self._kept, self._thinned = 0, 1

    def add(self, hashes: Hashes, numbers: Ints, lengths: Ints) -> None:
        self._keep(hashes, np.ones(len(hashes), np.int64), numbers, lengths)
        if self._kept <= _MOST_HASHES:
            return
        self._join()
        while self._kept > _MOST_HASHES // 2 and self._thinned < 1 << 32:
            self._thinned *= 2
            (part,), self._parts, self._kept = self._parts, [], 0
            self._keep(*part)

    def found(self) -> Copies:
        if not self._kept:
            return Copies(thinned=self._thinned)
        self._join()
        _, counts, numbers, lengths = self._parts[0]
        most = [place for place in np.argsort(-counts, kind="stable")[:_EXAMPLES].tolist() if counts[place] > 1]
        return Copies(
            documents=int((counts - 1).sum()) * self._thinned,
            tokens_share=int(((counts - 1) * lengths).sum()) / int((counts * lengths).sum()),
            thinned=self._thinned,
            examples=tuple((int(counts[place]), int(numbers[place])) for place in most),
        )

    def _keep(self, hashes: Hashes, counts: Ints, numbers: Ints, lengths: Ints) -> None:
        kept = hashes % np.uint64(self._thinned) == 0
        self._parts.append((hashes[kept], counts[kept], numbers[kept], lengths[kept]))
        self._kept += int(np.count_nonzero(kept))

    def _join(self) -> None:
        """Put the parts together, a line for each hash."""
        hashes, counts, numbers, lengths = map(np.concatenate, zip(*self._parts, strict=True))
        order = np.argsort(hashes, kind="stable")  # the first document of a hash comes first
        firsts = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order[0]]))
        chosen = order[firsts]
        self._parts = [(hashes[chosen], np.add.reduceat(counts[order], firsts), numbers[chosen], lengths[chosen])]
        self._kept = len(chosen)
