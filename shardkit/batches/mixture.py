"""Which source is at each position of a mixture: exact shares by formula, at any position, in any process. No files.

The sources are split into two groups, each group again, and so on. Of the first `n` positions of two groups, the first
group gets `floor(n * s + 1/2)`, where `s` is its share of the two: a closed formula, so what is at position `n` is
known without the positions before it. A source's count among the first `n` positions differs from `n` times its share
by at most half a position for each split above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError

_MOST_RATIO = 10_000
_MOST_PARTS = 1 << 20  # a pair's shares are fractions of at most so many parts: positions up to 2**42 fit 64 bits


class Mixture:
    """Sources by `weights` (any positive numbers): `source, index = mixture.assign(positions)`.

    Raises `UsageError` for a weight that is not positive, or less than a ten-thousandth of another.

    >>> import numpy
    >>> Mixture([3, 1]).assign(numpy.arange(8))
    (array([0, 0, 1, 0, 0, 0, 1, 0]), array([0, 1, 0, 2, 3, 4, 1, 5]))
    """

    def __init__(self, weights: Sequence[float]) -> None:
        for weight in weights:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise UsageError(f"a mixture's weight is {weight!r}: expected a number above 0")
        exact = [Fraction(str(weight)) for weight in weights]
        if max(exact) > min(exact) * _MOST_RATIO:
            raise UsageError(
                f"a mixture's weights go from {min(weights)} to {max(weights)}: expected the largest to be at most "
                f"{_MOST_RATIO:,} times the smallest"
            )
        self.shares = [weight / sum(exact) for weight in exact]

    def assign(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source at each position, and how many positions before it are that source's: int64, as `positions`."""
        flat = np.array(positions, np.int64).ravel()
        sources, counts = self._halve(0, len(self.shares), flat)
        return sources.reshape(np.shape(positions)), counts.reshape(np.shape(positions))

    def _halve(self, low: int, high: int, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The same for the sources from `low` up to `high`, which have the positions `at` to themselves."""
        if high - low == 1:
            return np.full(at.shape, low, np.int64), at
        middle = (low + high) // 2
        share = sum(self.shares[low:middle]) / sum(self.shares[low:high])
        share = Fraction(share).limit_denominator(_MOST_PARTS)
        before = _count(at, share)
        is_first = _count(at + 1, share) > before
        sources, counts = np.empty_like(at), np.empty_like(at)
        sources[is_first], counts[is_first] = self._halve(low, middle, before[is_first])
        sources[~is_first], counts[~is_first] = self._halve(middle, high, (at - before)[~is_first])
        return sources, counts


def _count(positions: NDArray[np.int64], share: Fraction) -> NDArray[np.int64]:
    """`floor(positions * share + 1/2)`."""
    result: NDArray[np.int64] = (2 * share.numerator * positions + share.denominator) // (2 * share.denominator)
    return result
