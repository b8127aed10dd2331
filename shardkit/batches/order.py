"""What decides the order of windows: arithmetic on (seed, epoch, position). No files, no torch, no state.

A split of `tokens` tokens is one stream of `n = (tokens - 1) // seq_len` windows: window `i` is the tokens
`[i * seq_len, i * seq_len + seq_len + 1)`, inputs and the one more token that its last target needs. Up to
`seq_len` tokens at the stream's very end fill no window.

All epochs together are one endless sequence of positions, counted from 0: position `p` is number `p % n` of epoch
`p // n`. `Order` says which window is at a position: each epoch is a permutation of its own. Where the shards come
one after the other, `spans.py` does.

`Cut` says which positions a batch holds. A run cuts the sequence into global batches of `batch_size * world_size`
positions, and each global batch into `world_size` runs of `batch_size`, one for each rank. The cut never changes the
sequence, so every window comes exactly once an epoch under any cut, and a run may go on from any position under another
cut. An epoch's remainder is carried: the batch that closes epoch `e` is filled up from the beginning of epoch `e + 1`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.checks import check_count

ORDER_VERSION = 1
_ROUNDS = 8


def count_windows(tokens: int, seq_len: int) -> int:
    """Windows in a stream of `tokens` tokens; 0 where it is too short for one."""
    return max(0, (tokens - 1) // seq_len)


class Permutation:
    """A seeded bijection of `0..size-1` by formula: eight round keys are all its memory, any number takes O(1).

    A Feistel network over `a * b >= size` pairs, with `a` and `b` near the square root. At most one number in
    `sqrt(size)` is sent outside of `0..size-1`; it is sent on, again and again, until it is inside.
    """

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._left = isqrt(size - 1) + 1 if size > 1 else 1
        self._right = -(-size // self._left)
        digest = hashlib.blake2b(f"{ORDER_VERSION}:{size}:{key}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """What each number in `0..size-1` is sent to: int64 of any shape in, the same shape out."""
        values = self._encrypt(numbers.astype(np.uint64).ravel())
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64).reshape(numbers.shape)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        width = np.uint64(self._right)
        left, right = values // width, values % width
        for turn, key in enumerate(self._keys):
            if turn % 2:
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
    """The window at each position of the endless sequence, for one split of `n_windows` (at least 1) windows.

    The whole epoch is shuffled at once; span by span it is in `spans.py`. `salt` makes the orders of two datasets
    differ that are mixed under one seed.
    """

    n_windows: int
    seed: int
    shuffle: bool
    salt: str = ""

    def windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The window, in `0..n_windows-1`, at each position: int64 of any shape in, the same shape out."""
        epochs, indices = np.divmod(positions, self.n_windows)
        if not self.shuffle:
            return indices
        result = np.empty_like(indices)
        for epoch in set(epochs.ravel().tolist()):  # np.unique would import numpy.ma, 50 ms before the first batch
            chosen = epochs == epoch
            result[chosen] = Permutation(self.n_windows, f"{self.seed}:{epoch}{self.salt}")(indices[chosen])
        return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How a run cuts the sequence of positions into global batches, one a step, and each of those into ranks' batches.

    Batch `step` begins at position `origin_position + (step - origin_step) * global_batch`. A run from the start has
    both origins 0. One that was resumed under another `batch_size` or `world_size` counts its steps on from there.
    Raises `UsageError` for sizes below 1.
    """

    batch_size: int
    world_size: int
    origin_step: int = 0
    origin_position: int = 0

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, least=1)
        check_count("world_size", self.world_size, least=1)

    @property
    def global_batch(self) -> int:
        """Windows that all ranks together read in one step."""
        return self.batch_size * self.world_size

    def resumed(self, *, step: int, position: int) -> Cut:
        """This cut, counting from a saved `step` and `position`; the origin is 0 where the saved run was cut alike."""
        alike = position == step * self.global_batch
        return Cut(
            batch_size=self.batch_size,
            world_size=self.world_size,
            origin_step=0 if alike else step,
            origin_position=0 if alike else position,
        )

    def position_of(self, step: int) -> int:
        """The position at which batch `step` begins; negative before the origin of a run that was cut anew."""
        return self.origin_position + (step - self.origin_step) * self.global_batch

    def step_at(self, position: int) -> int:
        """The first step whose batch begins at `position` or later."""
        return self.origin_step - (self.origin_position - position) // self.global_batch

    def positions(self, begin: int, *, steps: int, rank: int) -> NDArray[np.int64]:
        """Positions of `rank` in the `steps` batches from position `begin` on: int64 `(steps, batch_size)`."""
        starts = begin + self.global_batch * np.arange(steps, dtype=np.int64)[:, None]
        return starts + rank * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
