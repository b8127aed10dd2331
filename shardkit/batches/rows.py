"""The rows of one dataset: a folder, a `Manifest` read from one, or a remote whose shards arrive while they are read.

What a row holds is decided in `layouts.py`, which row comes when in `order.py`. A rank that needs a shard which has not
arrived yet waits in `ShardCache.wait` while it reads a row; if the shard cannot be fetched, that raises the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from shardkit.arguments import check_texts
from shardkit.batches.checks import check_count
from shardkit.batches.layouts import LAYOUTS, Contiguous, Layout, Packed, eot_of, make_layout
from shardkit.batches.order import Order
from shardkit.batches.padding import pads_much, warn_of_padding
from shardkit.batches.plan_helpers import helpers_of
from shardkit.batches.span_reader import SpanReader
from shardkit.batches.spans import ShardRows, SpanOrder, choose_span
from shardkit.dataset.documents import Location, document_starts, locate_token
from shardkit.dataset.manifest import PLAN_FOLDER, WORK_DIR, Manifest
from shardkit.dataset.token_stream import Tokens, open_split
from shardkit.errors import ShardError, UsageError
from shardkit.remote.address import is_remote
from shardkit.remote.streaming.cache import ShardCache

DatasetPlace = str | os.PathLike[str] | Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOptions:
    """What decides the rows (`seq_len` tokens each), and how they are reached. `span` is in shards.

    Raises `UsageError` for values that cannot be.
    """

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
    spanned: bool = False  # whether there are spans even if `span` is None: where a source is a remote

    def __post_init__(self) -> None:
        check_texts(split=self.split, revision=self.revision)
        if self.layout not in LAYOUTS:
            raise UsageError(f"--layout is {self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        check_count("seq_len", self.seq_len, least=1)
        check_count("seed", self.seed, least=0)
        for name, least in (("span", 1), ("cache_bytes", 1), ("eot_id", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=least)


def is_dataset_place(value: object) -> TypeGuard[DatasetPlace]:
    """Whether `value` can name a dataset: a path, an address or a `Manifest`."""
    return isinstance(value, str | os.PathLike | Manifest)


class DatasetRows:
    """The rows of one dataset, their layout and their order. For one thread at a time, as its stream."""

    def __init__(self, place: DatasetPlace, options: RowOptions, number: int = 0) -> None:
        self.cache: ShardCache | None = None
        if is_remote(place):
            self.cache = ShardCache.open(
                str(place),
                split=options.split,
                folder=options.cache,
                cache_bytes=options.cache_bytes,
                revision=options.revision,
            )
            self.manifest, self.stream = self.cache.manifest, self.cache.open_stream()
        else:
            self.manifest, self.stream = open_split(place, options.split, verify=options.verify)
        try:
            self._take(options, number)
        except BaseException:
            self.close()
            raise

    def _take(self, options: RowOptions, number: int) -> None:
        tokenizer = self.manifest.tokenizer
        eot_id = tokenizer.eot_id if tokenizer else options.eot_id
        if options.eot_id not in (None, eot_id):
            raise UsageError(f"--eot-id is {options.eot_id}, {self.name} was made with {eot_id}: leave it out")
        self.stream.eot_id = eot_id
        if options.layout != "contiguous" and (options.span is not None or options.cache_bytes is not None):
            raise UsageError(
                f"layout {options.layout!r} needs the whole split on disk: leave --span and --cache-bytes out, or "
                "use --layout=contiguous"
            )
        self.span: int | None = None
        self._span_reader: SpanReader | None = None
        self.layout = self._open_layout(options)
        if not self.layout.n_rows:
            raise UsageError(
                f"split {options.split!r} of {self.name} has {self.stream.tokens:,} tokens: 0 windows of "
                f"{options.seq_len:,} (layout {options.layout!r}): lower --seq-len, or use more data"
            )
        self.order = self._open_order(options, f":{number}" if number else "")

    @property
    def name(self) -> str:
        """The dataset's folder or remote, for messages."""
        return str(self.stream.directory) if self.cache is None else self.cache.name

    @property
    def revision(self) -> str | None:
        """The commit that a remote was opened at; None for a folder, and where there are no commits."""
        return None if self.cache is None else self.cache.revision or None

    def visits(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The visit to a span in which each position is read, 0 where there are no spans; of the shape of `positions`.

        Rows at different positions may be read in any order; in the order of their visits nothing is fetched twice.
        """
        return self.order.visits(positions) if isinstance(self.order, SpanOrder) else np.zeros_like(positions)

    def read(self, row: int, visit: int, out: Tokens) -> None:
        """Copy `row`, at a position in `visit`, into `out`, `(seq_len + 1,)`, of the stream's dtype.

        Waits for a shard that has not arrived yet. Raises `HubError` or `DiskFull` where it cannot be fetched, and
        `ShardError` where it is damaged.
        """
        if self._span_reader is None:
            self.layout.read(row, out)
        else:
            self._span_reader.read_row(row, visit, out)

    def check_ids(self, row: int, ids: Tokens, vocab_size: int) -> None:
        """Raise `ShardError`, which says where it is, for an id beyond the vocabulary in `ids`, what `read` gave."""
        wrong = np.flatnonzero(ids >= vocab_size)
        if not len(wrong):
            return
        before, column = 0, int(wrong[0])
        pieces = self.layout.pieces(row)
        while len(pieces) > 1 and column >= before + pieces[0][1]:
            before += pieces.pop(0)[1]
        number, offset = self.stream.shard_of(pieces[0][0] + column - before)  # the last target follows the last piece
        file = self.stream.directory / self.stream.shards[number].file
        raise ShardError(
            f"{file} holds id {ids[column]} at token {offset:,}, the vocabulary has {vocab_size:,} ids: the shard is "
            "damaged, or of another tokenizer; `shardkit verify` checks the others"
        )

    def enter(self, visit: int) -> None:
        """Tell the cache, if there is one, that rows of `visit` are read from now on."""
        if self._span_reader is not None:
            self._span_reader.enter(visit)

    @property
    def read_tokens(self) -> Callable[[int, Tokens], None]:
        """A function that copies tokens from one on, of a row in the visit that was entered last."""
        return self.stream.read if self._span_reader is None else self._span_reader.read

    def locate(self, token: int) -> Location:
        """Where `token` of the stream lies. A shard that was deleted is fetched again, and what is read stays."""
        if self.cache is None:
            return locate_token(self.manifest, self.stream, token)
        with self.cache.one_more(self.stream.shards[self.stream.shard_of(token)[0]].file):
            return locate_token(self.manifest, self.stream, token)

    def max_segments(self, seq_len: int) -> int:
        """The most segments (documents, parts of them, padding) in any row of `seq_len` tokens, or an upper bound.

        While shards are still arriving nobody can count them: then it is `seq_len`, a document for each token.
        """
        if self.cache is not None and isinstance(self.layout, Contiguous):
            return seq_len
        return self.layout.max_segments()

    def close(self) -> None:
        """Unmap every shard and leave the cache."""
        self.stream.close()
        if self.cache is not None:
            self.cache.close()

    @property
    def _plans(self) -> Path:
        return self.stream.directory / WORK_DIR / PLAN_FOLDER

    def _open_order(self, options: RowOptions, salt: str) -> Order | SpanOrder:
        """The order of the rows: by spans of shards where they are asked for, or may still be on their way."""
        shuffle, seed = options.shuffle, options.seed
        if options.layout != "contiguous" or (options.span is None and not options.spanned):
            return Order(n_windows=self.layout.n_rows, seed=seed, shuffle=shuffle, salt=salt)
        rows = ShardRows([shard.tokens for shard in self.stream.shards], options.seq_len)
        if self.cache is not None:
            self.cache.reserve_edges([edge.count for edge in rows.edges.values()])
        self.span = choose_span(
            [shard.bytes for shard in self.stream.shards],
            room=None if self.cache is None else self.cache.room_bytes,
            given=options.span,
            where=self.name,
        )
        order = SpanOrder(rows, span=self.span, seed=seed, shuffle=shuffle, salt=salt)
        if self.cache is not None:
            self._span_reader = SpanReader(self.cache, self.stream, order, rows)
        return order

    def _open_layout(self, options: RowOptions) -> Layout:
        """The layout; those that look for documents wait for the whole split, and for nothing if no EOT id is known."""
        if options.layout != "contiguous":
            eot_of(self.stream)
            if self.cache is not None:
                files = [shard.file for shard in self.stream.shards]
                self.cache.want(files)
                for file in files:
                    self.cache.wait(file)
        name, seq_len = options.layout, options.seq_len
        helpers = helpers_of(self.stream, options.split, name, seq_len) if self.cache is None else None
        layout = make_layout(name, self.stream, seq_len, cache=self._plans, helpers=helpers)
        if isinstance(layout, Packed) and pads_much(self.stream.tokens, options.seq_len, layout.n_rows):
            starts = document_starts(self.stream, eot_of(self.stream), self._plans)
            warn_of_padding(self.name, starts, self.stream.tokens, options.seq_len, layout.n_rows)
        return layout
