"""The endless sequence of rows that a run reads: of one dataset, or of several that are mixed.

Which row of a dataset is at a position is decided in `order.py`, of which dataset in `mixture.py`, and what is in the
row in `layouts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.layouts import LayoutStats
from shardkit.batches.mixture import Mixture
from shardkit.batches.order import ORDER_VERSION
from shardkit.batches.rows import DatasetPlace, DatasetRows, RowOptions, is_dataset_place
from shardkit.batches.spans import SPAN_ORDER_VERSION
from shardkit.batches.state import make_identity
from shardkit.dataset.documents import Location
from shardkit.errors import UsageError
from shardkit.remote.address import is_remote
from shardkit.remote.streaming.cache import cache_folder_name

Sources = DatasetPlace | Sequence[tuple[DatasetPlace, float]]


class RowSequence:
    """The rows of one source or of a mixture: `rows_at(positions)` says which ones, `sources[n].read` reads one.

    For one thread at a time. `n_rows` are the rows of an epoch, `identity` what decides them and their order. Raises
    `UsageError` for sources that do not mix, and what opening one raises.
    """

    def __init__(self, sources: Sources, options: RowOptions) -> None:
        pairs = _weighted(sources)
        mixture = Mixture([weight for _, weight in pairs])
        self.mixture = mixture if len(pairs) > 1 else None
        self.seq_len = options.seq_len
        self.sources: list[DatasetRows] = []
        try:
            for number, (place, _) in enumerate(pairs):
                self.sources.append(DatasetRows(place, _options_for(place, pairs, options), number))
                _check_one_vocabulary(self.sources[0], self.sources[-1])
        except BaseException:
            self.close()
            raise
        self.n_rows = sum(source.layout.n_rows for source in self.sources)
        spans = [source.span if options.shuffle else None for source in self.sources]
        self.identity = make_identity(
            fingerprint=self._each([source.manifest.fingerprint for source in self.sources]),
            split=options.split,
            seq_len=options.seq_len,
            shuffle=options.shuffle,
            seed=options.seed,
            layout=options.layout,
            span=self._each(spans),
            order=SPAN_ORDER_VERSION if any(spans) else ORDER_VERSION,
            weights=None if self.mixture is None else [str(share) for share in self.mixture.shares],
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens, as the shards hold them."""
        return self.sources[0].stream.dtype

    def rows_at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The source's number, its row, and the visit that reads it: int64, all of the shape of `positions`."""
        if self.mixture is None:
            source = self.sources[0]
            return np.zeros_like(positions), source.order.windows(positions), source.visits(positions)
        numbers, rows = self.mixture.assign(positions)
        visits = np.zeros_like(rows)
        for number, source in enumerate(self.sources):
            chosen = numbers == number
            visits[chosen] = source.visits(rows[chosen])
            rows[chosen] = source.order.windows(rows[chosen])
        return numbers, rows, visits

    def locate(self, position: int) -> Location:
        """Where the first token of the row at `position` lies and came from."""
        numbers, rows, _ = self.rows_at(np.array([position]))
        source = self.sources[int(numbers[0])]
        return source.locate(source.layout.pieces(int(rows[0]))[0][0])

    def describe(self) -> dict[str, Any]:
        """The identity, and what else tells datasets apart: `rows`, their `name`, and the `revision` of a remote."""
        return {
            "rows": self.n_rows,  # which a damaged shard changes
            "name": ", ".join(source.name for source in self.sources),
            "revision": self._each([source.revision for source in self.sources]),
            **self.identity,
        }

    def stats(self) -> LayoutStats:
        """The layout's figures, over all sources."""
        parts = [source.layout.stats() for source in self.sources]
        rows, tokens = sum(part.rows for part in parts), sum(part.tokens for part in parts)
        documents, splits = [part.documents for part in parts], [part.splits for part in parts]
        return LayoutStats(
            layout=parts[0].layout,
            rows=rows,
            seq_len=self.seq_len,
            tokens=tokens,
            use=sum(part.use * part.rows for part in parts) / rows,
            pad=sum(part.pad * part.rows for part in parts) / rows,
            crop=sum(part.crop * part.tokens for part in parts) / tokens,
            documents=None if None in documents else sum(filter(None, documents)),
            splits=None if None in splits else sum(filter(None, splits)),
        )

    def close(self) -> None:
        """Close every source."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> RowSequence:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _each(self, values: list[Any]) -> Any:
        """One value for one source, a list for a mixture."""
        return values[0] if self.mixture is None else values


def _weighted(sources: Sources) -> list[tuple[DatasetPlace, float]]:
    """Each source with its weight. Raises `UsageError` for what is neither a dataset nor a list of such pairs."""
    if is_dataset_place(sources):
        return [(sources, 1.0)]
    pairs: list[Any] = list(sources) if isinstance(sources, Sequence) else []
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 and is_dataset_place(pair[0]) for pair in pairs):
        raise UsageError(f"source is {sources!r:.200}: expected a dataset, or a list of pairs (dataset, weight)")
    return pairs


def _options_for(place: DatasetPlace, pairs: list[tuple[DatasetPlace, float]], options: RowOptions) -> RowOptions:
    """What of the options is for `place`. Raises `UsageError` for options of a remote where no source is one."""
    remotes = [source for source, _ in pairs if is_remote(source)]
    for name in ("cache", "cache_bytes", "revision"):
        if not remotes and getattr(options, name) is not None:
            raise UsageError(f"{name} is for a remote, {place} is here: leave it out")
    cache = options.cache
    if cache is not None and len(remotes) > 1:  # a folder for each
        cache = cache / cache_folder_name(str(place), options.revision, options.split)
    return replace(options, cache=cache, spanned=bool(remotes))


def _check_one_vocabulary(first: DatasetRows, other: DatasetRows) -> None:
    """Refuse to mix datasets of different vocabularies: an id would mean two things."""
    ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
    if first.stream.dtype != other.stream.dtype or (ours and theirs and ours.ranks_sha256 != theirs.ranks_sha256):
        raise UsageError(
            f"{first.name} ({ours.name if ours else 'unknown'}, {first.stream.dtype}) and {other.name} "
            f"({theirs.name if theirs else 'unknown'}, {other.stream.dtype}) have different vocabularies: tokenize "
            "both with one tokenizer"
        )
