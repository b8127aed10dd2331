"""Which source each place of a mixture's line is of: exact shares by formula, at any place, in any process. No files.

The sources are halved again and again. A half with share `s` of its pair has `floor(n * s + 1/2)` of the pair's first
`n` places: a closed formula, so place `n` is found without the places before it. A source's count among the first `n`
places is never further from `n` times its share than half a place for each halving above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.layouts import LayoutStats
from shardkit.batches.rows import _PLACES, DatasetPlace, DatasetRows, RowOptions, _check
from shardkit.batches.state import make_identity
from shardkit.errors import UsageError
from shardkit.remote.address import is_remote
from shardkit.remote.streaming.cache import cache_folder_name

Sources = DatasetPlace | Sequence[tuple[DatasetPlace, float]]


class RowLine:
    """The line of one source or of a mixture: `places(positions)` says which rows come, `read` reads one.

    Raises `UsageError` for sources that do not mix, and what opening one raises.
    """

    def __init__(self, sources: Sources, options: RowOptions) -> None:
        _check(options)
        pairs = _pairs(sources)
        mixture = Mixture([weight for _, weight in pairs])
        self.mixture = mixture if len(pairs) > 1 else None
        self.sources: list[DatasetRows] = []
        try:
            for number, (place, _) in enumerate(pairs):
                self.sources.append(DatasetRows(place, _options_of(place, pairs, options), number))
                _check_mixable(self.sources[0], self.sources[-1])
        except BaseException:
            self.close()
            raise
        self.n_rows = sum(source.layout.n_rows for source in self.sources)
        self.identity = make_identity(
            fingerprint=self._each([source.manifest.fingerprint for source in self.sources]), split=options.split,
            seq_len=options.seq_len, shuffle=options.shuffle, seed=options.seed, layout=options.layout,
            span=self._each([source.span if options.shuffle else None for source in self.sources]),
            weights=None if self.mixture is None else [str(share) for share in self.mixture.shares],
        )  # fmt: skip

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens, as the shards hold them."""
        return self.sources[0].stream.dtype

    def places(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source and the row at each position of the line: int64, shaped as `positions`."""
        if self.mixture is None:
            return np.zeros_like(positions), self.sources[0].order.windows(positions)
        numbers, rows = self.mixture.place(positions)
        for number, source in enumerate(self.sources):
            chosen = numbers == number
            rows[chosen] = source.order.windows(rows[chosen])
        return numbers, rows

    def stats(self) -> LayoutStats:
        """The layout's figures, over all sources."""
        parts = [source.layout.stats() for source in self.sources]
        rows, tokens = sum(part.rows for part in parts), sum(part.tokens for part in parts)
        documents, splits = ([part.documents for part in parts], [part.splits for part in parts])
        return LayoutStats(
            layout=parts[0].layout, rows=rows, seq_len=parts[0].seq_len, tokens=tokens,
            use=sum(part.use * part.rows for part in parts) / rows,
            pad=sum(part.pad * part.rows for part in parts) / rows,
            crop=sum(part.crop * part.tokens for part in parts) / tokens,
            documents=None if None in documents else sum(filter(None, documents)),
            splits=None if None in splits else sum(filter(None, splits)),
        )  # fmt: skip

    def close(self) -> None:
        """Close every source."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> RowLine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _each(self, values: list[Any]) -> Any:
        """One value for one source, a list for a mixture."""
        return values[0] if self.mixture is None else values


def _pairs(sources: Sources) -> list[tuple[DatasetPlace, float]]:
    if isinstance(sources, _PLACES):
        return [(sources, 1.0)]
    pairs: list[Any] = list(sources) if isinstance(sources, Sequence) else []
    if not pairs or not all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], _PLACES) for p in pairs):
        raise UsageError(f"source is {sources!r:.200}: expected a dataset, or a list of pairs (dataset, weight)")
    return pairs


def _options_of(place: DatasetPlace, pairs: list[tuple[DatasetPlace, float]], options: RowOptions) -> RowOptions:
    """What of the options is for `place`. Raises `UsageError` for options of a remote where there is none."""
    remotes = [one for one, _ in pairs if is_remote(one)]
    for name in ("cache", "cache_bytes", "revision"):
        if not remotes and getattr(options, name) is not None:
            raise UsageError(f"{name} is for a remote, {place} is here: leave it out")
    cache = options.cache
    if cache is not None and len(remotes) > 1:  # a folder of each
        cache = cache / cache_folder_name(str(place), options.revision, options.split)
    return replace(options, cache=cache, spanned=bool(remotes))


def _check_mixable(first: DatasetRows, other: DatasetRows) -> None:
    """Refuse to mix datasets of different vocabularies: an id would mean two things."""
    ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
    if first.stream.dtype != other.stream.dtype or (ours and theirs and ours.ranks_sha256 != theirs.ranks_sha256):
        raise UsageError(
            f"{first.name} ({ours.name if ours else 'unknown'}, {first.stream.dtype}) and {other.name} "
            f"({theirs.name if theirs else 'unknown'}, {other.stream.dtype}) have different vocabularies: tokenize "
            "both with one tokenizer"
        )


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
