"""Which rows of a source are read: `--sample` by where a row is, `--where` by what is in its columns.

Whether a row is in a sample is a formula of its file's name and its place in the file, so it is the same on any
machine, and a larger sample holds a smaller one. A row that is left out is known by its number as any skipped row is.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.sources.where import Where, parse_where

_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows to read: those that `where` keeps (None: all) of a `sample` of them, a share of 1 (None: all)."""

    where: Where | None = None
    sample: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns beside the text that it looks at."""
        return self.where.columns if self.where is not None else ()

    def in_sample(self, path: str, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of the rows of the file `path` at these places (numbers of rows, or of a line's first byte) is
        in the sample."""
        if self.sample is None:
            return np.ones(len(places), bool)
        first = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little")
        mixed = np.uint64(first) + (places.astype(np.uint64) + np.uint64(1)) * _GOLDEN  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        return (mixed ^ (mixed >> np.uint64(31))) < np.uint64(int(self.sample * 2**64))

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether `where` keeps the row with these values of `columns`. Raises `ValueError` for one that it cannot
        compare."""
        return self.where is None or self.where.keeps(row)


@lru_cache(maxsize=8)
def choice(where: str | None, sample: float | None) -> Choice:
    """What the two options mean. Raises `UsageError`."""
    return Choice(None if where is None else parse_where(where), None if sample == 1 else sample)


def share(sample: Any) -> float:
    """`sample` as a share. Raises `UsageError` for what is none."""
    if type(sample) is bool or not isinstance(sample, int | float | np.floating) or not 0 < sample <= 1:
        raise UsageError(
            f"--sample is {reprlib.repr(sample)}: expected a share of the rows, more than 0 and at most 1 (0.1 is 10 %)"
        )
    return float(sample)
