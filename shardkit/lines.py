"""The endless line of rows that a loader walks along: of one dataset, or of a mixture of several. No torch.

A dataset is a folder, a `Manifest` read from one, or a remote whose shards arrive in a cache while they are read. What
a row holds is the layout's to say, which row comes when the order's, and of which dataset the mixture's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.cache import ShardCache
from shardkit.cache_folder import default_folder, full_name
from shardkit.errors import HubError, UsageError
from shardkit.layouts import LAYOUTS, Contiguous, Layout, LayoutStats, make_layout, most_segments
from shardkit.manifest import PLAN_FOLDER, Manifest
from shardkit.mixture import Mixture
from shardkit.order import Order
from shardkit.provenance import Location, locate_token
from shardkit.remotes import is_remote
from shardkit.spans import Span, choose_span, cut_spans, needed_shards
from shardkit.state import is_count, make_identity
from shardkit.stream import Tokens, open_split, open_stream

Place = str | os.PathLike[str] | Manifest
Sources = Place | Sequence[tuple[Place, float]]
_PLACES = (str, os.PathLike, Manifest)


@dataclass(frozen=True, kw_only=True, slots=True)
class LineOptions:
    """What decides the rows (`seq_len` tokens each), and how they are reached. `span` is in shards."""

    split: str
    seq_len: int
    shuffle: bool
    seed: int
    layout: str = "contiguous"
    eot_id: int | None = None
    span: int | None = None
    cache: Path | None = None
    cache_bytes: int | None = None
    revision: str | None = None
    verify: bool = False
    spanned: bool = False  # whether there are spans also where none is given: where a source is a remote


class Source:
    """One dataset's part of a line. For one thread at a time, as its stream."""

    def __init__(self, place: Place, options: LineOptions, number: int = 0) -> None:
        self.cache: ShardCache | None = None
        if is_remote(place):
            try:
                self.cache = ShardCache.open(
                    str(place), split=options.split, folder=options.cache, cache_bytes=options.cache_bytes,
                    revision=options.revision,
                )  # fmt: skip
            except HubError as error:
                if "://" in str(place):
                    raise
                raise type(error)(f"{error} (nor is there a folder {place} here)") from error
            self.manifest, self.stream = self.cache.manifest, open_stream(self.cache.manifest, options.split)
            self.stream.wait = self.cache.wait
        else:
            self.manifest, self.stream = open_split(place, options.split, verify=options.verify)
        self._entered = -1
        try:
            self._take(options, number)
        except BaseException:
            self.close()
            raise

    def _take(self, options: LineOptions, number: int) -> None:
        tokenizer = self.manifest.tokenizer
        self.eot_id = tokenizer.eot_id if tokenizer else options.eot_id
        if options.eot_id not in (None, self.eot_id):
            raise UsageError(f"eot_id is {options.eot_id}, {self.name} was made with {self.eot_id}: leave it out")
        self.span, self._spans = self._cut_spans(options)
        self.layout = self._lay_out(options)
        if not self.layout.n_rows:
            raise UsageError(
                f"split {options.split!r} of {self.name} has {self.stream.tokens:,} tokens: 0 windows of "
                f"{options.seq_len:,} (layout {options.layout!r}): lower seq_len, or use more data"
            )
        self.order = Order(
            n_windows=self.layout.n_rows, seed=options.seed, shuffle=options.shuffle,
            spans=tuple(span.first_row for span in self._spans), salt=f":{number}" if number else "",
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The dataset's folder or remote, for messages."""
        return str(self.stream.directory) if self.cache is None else self.cache.name

    def read(self, row: int, out: Tokens) -> None:
        """Copy `row` into `out`, `(seq_len + 1,)`, of the stream's dtype. Waits for shards that are on their way."""
        self.enter(row)
        self.layout.read(row, out)

    def enter(self, row: int) -> None:
        """Tell the cache, if there is one, that rows of `row`'s span are read from now on."""
        if self.cache is None:
            return
        number = self.order.span_of(row)
        if number != self._entered:
            needed = needed_shards(self._spans, number)
            self.stream.keep(needed)
            self.cache.want([self.stream.shards[shard].file for shard in needed])
            self._entered = number

    def locate(self, token: int) -> Location:
        """Where `token` of the stream lies. A shard that was deleted is fetched again, and what is read stays."""
        if self.cache is None:
            return locate_token(self.manifest, self.stream, token)
        shard, cache = self.stream.shards[self.stream.shard_of(token)[0]].file, copy(self.cache)
        try:
            cache.want([shard])
            cache.wait(shard)
            return locate_token(self.manifest, self.stream, token)
        finally:
            cache.close()

    def most_segments(self, seq_len: int) -> int:
        """The most segments that a row has: its own start, and each document's and the padding's inside it.

        Of a stream of which only a part is here at a time it is the most that there can be, `seq_len`.
        """
        if self.cache is not None and isinstance(self.layout, Contiguous):
            return seq_len
        return most_segments(self.layout, self.stream, eot_id=self.required_eot(), cache=self._plans)

    def required_eot(self) -> int:
        """The end-of-text token's id. Raises `UsageError` where nothing says it."""
        if self.eot_id is None:
            raise UsageError(
                f"{self.name} has no manifest.json, so nothing says which id ends a document: give eot_id (GPT-2's is "
                "50256)"
            )
        return self.eot_id

    def close(self) -> None:
        """Unmap every shard and leave the cache."""
        self.stream.close()
        if self.cache is not None:
            self.cache.close()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_entered": -1}

    @property
    def _plans(self) -> Path:
        return self.stream.directory / ".shardkit" / PLAN_FOLDER

    def _cut_spans(self, options: LineOptions) -> tuple[int | None, tuple[Span, ...]]:
        if options.layout != "contiguous":
            if options.span is not None or options.cache_bytes is not None:
                raise UsageError(
                    f"layout {options.layout!r} needs the whole split on disk: leave span and cache_bytes out, or use "
                    "layout='contiguous'"
                )
            return None, ()
        if options.span is None and not options.spanned:
            return None, ()
        shards = self.stream.shards
        room = None if self.cache is None else self.cache.room_bytes
        tokens = [shard.tokens for shard in shards]
        span = choose_span(
            tokens, [shard.bytes for shard in shards], seq_len=options.seq_len, room=room, given=options.span,
            where=self.name,
        )  # fmt: skip
        return span, cut_spans(tokens, span=span, seq_len=options.seq_len)

    def _lay_out(self, options: LineOptions) -> Layout:
        if options.layout == "contiguous":
            return Contiguous(self.stream, options.seq_len)
        eot_id = self.required_eot()
        if self.cache is not None:
            files = [shard.file for shard in self.stream.shards]
            self.cache.want(files)
            for file in files:
                self.cache.wait(file)
        return make_layout(
            options.layout, self.stream, options.seq_len, eot_id=eot_id, cache=self._plans,
        )  # fmt: skip


class Line:
    """The line of one source or of a mixture: `places(positions)` says which rows come, `read` reads one.

    Raises `UsageError` for sources that do not mix, and what opening one raises.
    """

    def __init__(self, sources: Sources, options: LineOptions) -> None:
        _check(options)
        pairs = _pairs(sources)
        mixture = Mixture([weight for _, weight in pairs])
        self.mixture = mixture if len(pairs) > 1 else None
        self.sources: list[Source] = []
        try:
            for number, (place, _) in enumerate(pairs):
                self.sources.append(Source(place, _options_of(place, pairs, options), number))
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

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _each(self, values: list[Any]) -> Any:
        """One value for one source, a list for a mixture."""
        return values[0] if self.mixture is None else values


def _pairs(sources: Sources) -> list[tuple[Place, float]]:
    if isinstance(sources, _PLACES):
        return [(sources, 1.0)]
    pairs: list[Any] = list(sources) if isinstance(sources, Sequence) else []
    if not pairs or not all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], _PLACES) for p in pairs):
        raise UsageError(f"source is {sources!r:.200}: expected a dataset, or a list of pairs (dataset, weight)")
    return pairs


def _options_of(place: Place, pairs: list[tuple[Place, float]], options: LineOptions) -> LineOptions:
    """What of the options is for `place`. Raises `UsageError` for options of a remote where there is none."""
    remotes = [one for one, _ in pairs if is_remote(one)]
    for name in ("cache", "cache_bytes", "revision"):
        if not remotes and getattr(options, name) is not None:
            raise UsageError(f"{name} is for a remote, {place} is here: leave it out")
    cache = options.cache
    if cache is not None and len(remotes) > 1:  # a folder of each
        cache = cache / default_folder(*full_name(str(place), options.revision), options.split).name
    return replace(options, cache=cache, spanned=bool(remotes))


def _check(options: LineOptions) -> None:
    if options.layout not in LAYOUTS:
        raise UsageError(f"layout is {options.layout!r}: expected one of {', '.join(LAYOUTS)}")
    for name in ("seq_len", "span", "cache_bytes", "eot_id", "seed"):
        value, least = getattr(options, name), int(name not in ("eot_id", "seed"))
        if value is not None and not (is_count(value) and value >= least):
            raise UsageError(f"{name} is {value!r}: expected a whole number of at least {least}")


def _check_mixable(first: Source, other: Source) -> None:
    """Refuse to mix datasets of different vocabularies: an id would mean two things."""
    ours, theirs = first.manifest.tokenizer, other.manifest.tokenizer
    if first.stream.dtype != other.stream.dtype or (ours and theirs and ours.ranks_sha256 != theirs.ranks_sha256):
        raise UsageError(
            f"{first.name} ({ours.name if ours else 'unknown'}, {first.stream.dtype}) and {other.name} "
            f"({theirs.name if theirs else 'unknown'}, {other.stream.dtype}) have different vocabularies: tokenize "
            "both with one tokenizer"
        )
