"""Which source each place of a mixture's line is of: exact shares by formula, at any place, in any process. No files.

The sources are halved again and again. A half with share `s` of its pair has `floor(n * s + 1/2)` of the pair's first
`n` places: a closed formula, so place `n` is found without the places before it. A source's count among the first `n`
places is never further from `n` times its share than half a place for each halving above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError

_MOST_RATIO = 10_000
_MOST_PARTS = 1 << 20  # a pair's shares are fractions of at most so many parts: places up to 2**42 fit 64 bits


class Mixture:
    """Sources by `weights` (any positive numbers): `source, index = mixture.place(positions)`.

    Raises `UsageError` for a weight that is not positive, or less than a ten-thousandth of another.

    >>> Mixture([3, 1]).place(np.arange(8))
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

    def place(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each position, and its index among that source's places: int64, shaped as `positions`."""
        sources = np.zeros(positions.shape, np.int64)
        indices = np.empty(positions.shape, np.int64)
        self._halve(0, len(self.shares), np.asarray(positions), np.ones(positions.shape, bool), sources, indices)
        return sources, indices

    def _halve(
        self, low: int, high: int, at: NDArray[np.int64], chosen: NDArray[np.bool_],
        sources: NDArray[np.int64], indices: NDArray[np.int64],
    ) -> None:  # fmt: skip
        if high - low == 1:
            sources[chosen], indices[chosen] = low, at[chosen]
            return
        middle = (low + high) // 2
        share = sum(self.shares[low:middle]) / sum(self.shares[low:high])
        share = Fraction(share).limit_denominator(_MOST_PARTS)
        before, after = _count(at, share), _count(at + 1, share)
        first = after > before
        self._halve(low, middle, before, chosen & first, sources, indices)
        self._halve(middle, high, at - before, chosen & ~first, sources, indices)


def _count(places: NDArray[np.int64], share: Fraction) -> NDArray[np.int64]:
    """`floor(places * share + 1/2)`."""
    result: NDArray[np.int64] = (2 * share.numerator * places + share.denominator) // (2 * share.denominator)
    return result
