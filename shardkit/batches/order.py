"""Which windows a batch holds: pure arithmetic on (seed, epoch, position). No files, no torch, no state.

A split of `tokens` tokens is one stream of `n = (tokens - 1) // seq_len` windows: window `i` is the tokens
`[i * seq_len, i * seq_len + seq_len + 1)`, inputs and the one more token that its last target needs. Up to
`seq_len` tokens at the stream's very end fill no window.

The order of all epochs is one endless line of positions: position `p` is place `p % n` of epoch `p // n`, and each
epoch is a permutation of its own. With spans (runs of windows that a bounded disk can hold at once) an epoch takes one
span after the other, and each is a permutation of its own. A run cuts that line into global batches of `batch_size *
world_size` positions, and each global batch into `world_size` runs of `batch_size`, one a rank. The cut never changes
the line, so every window comes exactly once an epoch under any cut, and a run may go on from any position under another
cut. An epoch's remainder is carried: the batch that closes epoch `e` is filled up from the beginning of epoch `e + 1`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
_ROUNDS = 8


def count_windows(tokens: int, seq_len: int) -> int:
    """Windows in a stream of `tokens` tokens; 0 where it is too short for one."""
    return max(0, (tokens - 1) // seq_len)


class Permutation:
    """A seeded bijection of `0..size-1` by formula: no memory beyond its eight round keys, any place in O(1).

    A Feistel network over `a * b >= size` pairs, with `a` and `b` near the square root, so that at most one place in
    `sqrt(size)` falls outside and is walked on along its cycle until it is inside.
    """

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._left = isqrt(size - 1) + 1 if size > 1 else 1
        self._right = -(-size // self._left)
        digest = hashlib.blake2b(f"{ORDER_VERSION}:{size}:{key}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each place goes: int64 of any shape in, the same shape out; places are in `0..size-1`."""
        values = self._encrypt(places.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64).reshape(places.shape)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        width = np.uint64(self._right)
        left, right = values // width, values % width
        for number, key in enumerate(self._keys):
            if number % 2:
                right = (right + _mix(left, key) % width) % width
            else:
                left = (left + _mix(right, key) % np.uint64(self._left)) % np.uint64(self._left)
        return left * width + right


def _mix(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A 64-bit finalizer (murmur3's constants) of `values ^ key`; its top 32 bits are the well mixed ones."""
    mixed = (values ^ key) * np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    return mixed >> np.uint64(32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The endless line of windows of one split. `seed` and `shuffle` decide it, and `n_windows` (at least 1).

    `spans` are the first windows of the spans within which the shuffle mixes, ascending from 0; none: it mixes all.
    """

    n_windows: int
    seed: int
    shuffle: bool
    spans: tuple[int, ...] = ()
    salt: str = ""  # so that two orders of one seed differ

    def windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The window at each position of the line: int64 of any shape, the same shape out, in `0..n_windows-1`."""
        epochs, places = np.divmod(positions, self.n_windows)
        if not self.shuffle:
            return places
        result = np.empty_like(places)
        for epoch in set(epochs.ravel().tolist()):  # np.unique would import numpy.ma, 50 ms before the first batch
            chosen = epochs == epoch
            result[chosen] = self._mixed(epoch, places[chosen])
        return result

    def span_of(self, window: int) -> int:
        """The span that `window` is in."""
        return bisect_right(self.spans, window) - 1

    def _mixed(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.spans:
            return Permutation(self.n_windows, f"{self.seed}:{epoch}{self.salt}")(places)
        result = np.empty_like(places)
        ends = (*self.spans[1:], self.n_windows)
        spans = np.searchsorted(self.spans, places, side="right") - 1
        for span in set(spans.tolist()):
            chosen = spans == span
            first = self.spans[span]
            mix = Permutation(ends[span] - first, f"{self.seed}:{epoch}:{span}{self.salt}")
            result[chosen] = first + mix(places[chosen] - first)
        return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How a run cuts the line: batch `step` begins at position `origin_window + (step - origin_step) * global_batch`.

    A run from the start has both origins 0. One that was resumed under another `batch_size` or `world_size` counts
    its steps on from the step at which it was resumed.
    """

    batch_size: int
    world_size: int
    origin_step: int = 0
    origin_window: int = 0

    @property
    def global_batch(self) -> int:
        """Windows that all ranks take in one step."""
        return self.batch_size * self.world_size

    def resumed(self, *, step: int, window: int) -> Cut:
        """This cut, counting from a saved `step` and `window`; the origin is 0 where the saved run was cut alike."""
        alike = window == step * self.global_batch
        return Cut(
            batch_size=self.batch_size,
            world_size=self.world_size,
            origin_step=0 if alike else step,
            origin_window=0 if alike else window,
        )

    def window(self, step: int) -> int:
        """The position at which batch `step` begins; negative before the origin of a re-cut run."""
        return self.origin_window + (step - self.origin_step) * self.global_batch

    def step(self, window: int) -> int:
        """The first step that begins at `window` or later."""
        return self.origin_step - (self.origin_window - window) // self.global_batch

    def positions(self, window: int, *, steps: int, rank: int) -> NDArray[np.int64]:
        """Positions of `rank` in the `steps` batches from position `window` on: int64 `(steps, batch_size)`."""
        starts = window + self.global_batch * np.arange(steps, dtype=np.int64)[:, None]
        return starts + rank * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
