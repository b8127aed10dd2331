"""Layouts: what row `i` of a split is, for rows of `seq_len` inputs and the target after the last. No order, no torch.

- `contiguous`: the stream in windows; rows begin and end anywhere in a document.
- `document`: every row begins at a document's start; if a document goes on past the row's end, the rest of it is left
  out.
- `packed`: rows are filled with whole documents, best-fit, and long ones are split; nothing is lost, a little padded.
  Which documents share a row is decided in `packing.py`.

A row's text is decided by the split's tokens, `seq_len` and the layout alone: not by shard ends, ranks or world size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from shardkit.batches.order import count_windows
from shardkit.batches.packing import (
    BLOCK_TOKENS,
    PACKING_VERSION,
    PackingPlan,
    most_blocks,
    plan_blocks,
    plan_dtypes,
    plan_of,
)
from shardkit.dataset.derived import derived_arrays
from shardkit.dataset.derived_parts import Helpers, arrays_of_parts
from shardkit.dataset.documents import Starts, document_starts, starts_key
from shardkit.dataset.token_stream import Tokens, TokenStream
from shardkit.errors import UsageError
from shardkit.files import counted
from shardkit.notebook import html_lines

LAYOUTS = ("contiguous", "document", "packed")
ALIGNED_VERSION = 1
_BLOCK = 1 << 20  # documents or rows that are looked at together
_PART_BLOCKS = 32  # of a packing plan, that one process packs at a time: 2.1 Gtok, a second or two


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutStats:
    """What a layout makes of a split of `tokens` tokens: `rows` rows of `seq_len` input slots each.

    `use` is the share of slots that hold a token, `pad` of those that hold none, `crop` the share of tokens that are no
    row's input. `documents` are those that begin in the split, and the part of one that the split may begin with;
    `splits` of them are in several rows. A layout that does not count them has None.
    """

    layout: str
    rows: int
    seq_len: int
    tokens: int
    use: float
    pad: float
    crop: float
    documents: int | None = None
    splits: int | None = None

    def __str__(self) -> str:
        documents = "" if self.documents is None else f" in {counted(self.documents, 'document')}"
        splits = "" if self.splits is None else f" ({self.splits:,} split)"
        return (
            f"{self.layout}: {self.rows:,} rows of {self.seq_len:,} from {self.tokens:,} tokens{documents}{splits}: "
            f"use {self.use:.2%}, pad {self.pad:.2%}, crop {self.crop:.2%}"
        )

    def _repr_html_(self) -> str:
        return html_lines(str(self))


class Layout(Protocol):
    """What row `i` of a split is, `i` in `0..n_rows-1`. For one thread at a time, as the stream is."""

    n_rows: int

    def read(self, row: int, out: Tokens) -> None:
        """Fill `out`, `(seq_len + 1,)` of the stream's dtype: the inputs, padded with EOT, and the last target."""

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """The row's inputs as (stream token, count), end to end; counts add up to `seq_len` less the padding.

        A document starts at each EOT in a piece; a piece that does not begin with one begins inside a document.
        """

    def stats(self) -> LayoutStats:
        """Use, crop and padding of the whole split."""

    def max_segments(self) -> int:
        """The most segments in any row: its documents or parts of documents, and its padding; 0 where no rows are."""


class Contiguous:
    """Row `i` is tokens `[i * seq_len, i * seq_len + seq_len + 1)`; up to `seq_len` tokens at the end are cropped.

    `max_segments` scans the split for documents, and keeps what it found in the folder `cache`.
    """

    def __init__(self, stream: TokenStream, seq_len: int, cache: Path | None) -> None:
        self._stream = stream
        self._seq_len = seq_len
        self._cache = cache
        self.n_rows = count_windows(stream.tokens, seq_len)

    def read(self, row: int, out: Tokens) -> None:
        self._stream.read(row * self._seq_len, out)

    def pieces(self, row: int) -> list[tuple[int, int]]:
        return [(row * self._seq_len, self._seq_len)]

    def stats(self) -> LayoutStats:
        return _unpadded("contiguous", self.n_rows, self._seq_len, self._stream.tokens, None)

    def max_segments(self) -> int:
        rows = np.arange(self.n_rows, dtype=np.int64) * self._seq_len
        starts = document_starts(self._stream, eot_of(self._stream), self._cache)
        return _max_documents(rows, self._seq_len, starts)


class DocumentAligned:
    """Row 0 begins at the first document's start, the next at the first start after that row's inputs, and so on.

    A row reads on into the documents that follow. The rest of the document that its end cuts is cropped, as are the
    tokens before the split's first start, and those at its end that fill no row.
    """

    def __init__(self, stream: TokenStream, seq_len: int, starts: Starts, cache: Path | None) -> None:
        self._stream = stream
        self._seq_len = seq_len
        self._starts = starts
        self._rows = _rows_of_documents(stream, seq_len, starts, cache)
        self.n_rows = len(self._rows)

    def read(self, row: int, out: Tokens) -> None:
        self._stream.read(self._rows.item(row), out)

    def pieces(self, row: int) -> list[tuple[int, int]]:
        return [(self._rows.item(row), self._seq_len)]

    def stats(self) -> LayoutStats:
        leading = not len(self._starts) or self._starts[0] > 0
        return _unpadded("document", self.n_rows, self._seq_len, self._stream.tokens, len(self._starts) + int(leading))

    def max_segments(self) -> int:
        return _max_documents(self._rows, self._seq_len, self._starts)


class Packed:
    """Rows of `plan`. Every token of the split is an input exactly once; what a row does not fill is EOT.

    A piece is a full row of one document, or the last part of a document or a whole one, with the whole ones that
    follow it in the stream. The row's last target is the document's next token if the row is full of that document,
    else EOT, as in the stream. Where a piece that does not begin with EOT follows another piece, the target before the
    seam comes out as the later piece's first token, though it should be EOT: the reader mends it, by `pieces`.
    """

    def __init__(self, stream: TokenStream, seq_len: int, plan: PackingPlan) -> None:
        self._stream = stream
        self._seq_len = seq_len
        self._plan = plan
        self._eot_id = eot_of(stream)
        self.n_rows = len(plan.row_ends)

    def read(self, row: int, out: Tokens) -> None:
        pieces = self.pieces(row)
        token, count = pieces[0]
        if count == self._seq_len and token + count < self._stream.tokens:
            self._stream.read(token, out)  # the one more token is the last target
        else:
            out[self._stream.gather(pieces, out) :] = self._eot_id

    def pieces(self, row: int) -> list[tuple[int, int]]:
        plan = self._plan
        begin = plan.row_ends.item(row - 1) if row else 0
        end = plan.row_ends.item(row)
        return list(zip(plan.piece_starts[begin:end].tolist(), plan.piece_counts[begin:end].tolist(), strict=True))

    def stats(self) -> LayoutStats:
        tokens, slots = self._stream.tokens, self.n_rows * self._seq_len
        return LayoutStats(
            layout="packed",
            rows=self.n_rows,
            seq_len=self._seq_len,
            tokens=tokens,
            use=tokens / slots,
            pad=(slots - tokens) / slots,
            crop=0.0,
            documents=self._plan.documents,
            splits=self._plan.splits,
        )

    def max_segments(self) -> int:
        return self._plan.most_segments


def make_layout(
    name: str, stream: TokenStream, seq_len: int, *, cache: Path | None, helpers: Helpers | None = None
) -> Layout:
    """The layout `name`. `contiguous` looks at nothing; the others scan the split once and keep what they find.

    `cache` is the folder that keeps it, made where it is missing; None keeps nothing. `helpers` work on
    it too. Raises `UsageError`.
    """
    if name == "contiguous":
        return Contiguous(stream, seq_len, cache)
    if name == "document":
        return DocumentAligned(stream, seq_len, document_starts(stream, eot_of(stream), cache, helpers), cache)
    if name == "packed":
        return Packed(stream, seq_len, _packing_plan(stream, seq_len, cache, helpers))
    raise UsageError(f"--layout is {name!r}: expected one of {', '.join(LAYOUTS)}")


def eot_of(stream: TokenStream) -> int:
    """The id of the token that begins each document of `stream`. Raises `UsageError` where nothing says it."""
    if stream.eot_id is None:
        raise UsageError(
            f"{stream.directory} has no manifest.json, so nothing says which id ends a document: give --eot-id "
            "(GPT-2's is 50256)"
        )
    return stream.eot_id


def _packing_plan(stream: TokenStream, seq_len: int, cache: Path | None, helpers: Helpers | None) -> PackingPlan:
    eot_id = eot_of(stream)
    key = json.dumps(["packed", PACKING_VERSION, BLOCK_TOKENS, seq_len, starts_key(stream, eot_id)])
    dtypes, parts = plan_dtypes(seq_len), -(-most_blocks(stream.tokens, BLOCK_TOKENS) // _PART_BLOCKS)

    @lru_cache(maxsize=1)
    def starts() -> Starts:
        return document_starts(stream, eot_id, cache)  # the helpers of the plan want these first, too

    def pack(part: int) -> tuple[Starts, ...]:
        chosen = slice(part * _PART_BLOCKS, (part + 1) * _PART_BLOCKS)
        blocks = plan_blocks(starts(), stream.tokens, seq_len, block_tokens=BLOCK_TOKENS, chosen=chosen)
        return tuple(map(np.concatenate, zip(*blocks, strict=True))) or (np.empty(0, np.int64),) * len(dtypes)

    indices = {"row_ends": "piece_starts"}
    return plan_of(arrays_of_parts(cache, "packed", key, dtypes, parts, pack, indices=indices, helpers=helpers))


def _rows_of_documents(stream: TokenStream, seq_len: int, starts: Starts, cache: Path | None) -> Starts:
    """The tokens at which rows begin that begin with a document; kept where there are many."""

    def rows() -> Iterator[tuple[Starts]]:
        return ((block,) for block in _aligned_rows(starts, seq_len, stream.tokens))

    key = json.dumps(["aligned", ALIGNED_VERSION, seq_len, starts_key(stream, eot_of(stream))])
    kept = cache if len(starts) > _BLOCK else None
    return np.asarray(derived_arrays(kept, "aligned", key, {"rows": "<i8"}, rows)["rows"], np.int64)


def _unpadded(layout: str, rows: int, seq_len: int, tokens: int, documents: int | None) -> LayoutStats:
    return LayoutStats(
        layout=layout,
        rows=rows,
        seq_len=seq_len,
        tokens=tokens,
        use=1.0,
        pad=0.0,
        crop=(tokens - rows * seq_len) / tokens,
        documents=documents,
    )


def _aligned_rows(starts: Starts, seq_len: int, tokens: int) -> Iterator[Starts]:
    """The starts that rows begin at: the first, then always the first that is `seq_len` or more after the one before.

    Rows that lack their last target are left out.
    """
    index = 0  # of the next row's start, counted from the block's first
    for first in range(0, len(starts), _BLOCK):
        block = np.asarray(starts[first : first + _BLOCK])
        following = (np.searchsorted(starts, block + seq_len) - first).tolist()
        rows = []
        while index < len(block):
            rows.append(index)
            index = following[index]
        index -= len(block)
        begins = block[rows]
        yield begins[begins + seq_len < tokens]


def _max_documents(rows: Starts, seq_len: int, starts: Starts) -> int:
    """The most documents that any row of `seq_len` tokens has tokens of; `rows` are the tokens that rows begin at."""
    most = 0
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        inside = np.searchsorted(starts, block + seq_len) - np.searchsorted(starts, block, side="right")
        most = max(most, 1 + int(inside.max()))
    return most
