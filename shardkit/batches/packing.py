"""Which pieces of documents share a row: best-fit packing without loss. Pure arithmetic on the documents' starts.

A document is cut into full pieces of `seq_len` tokens, rows of their own, and a last piece of the 1 to `seq_len` tokens
that are left. Last pieces are packed best-fit decreasing: the longest first, each into the row with the least room that
holds it. Neighbouring short documents are joined into pieces of at most 1/8 row; every eighth such piece has
at most 1/64 row, to fill small gaps: so a row is read in ten pieces at most or so, however short
documents are, and use stays within 0.3 % of packing them one by one. Every token of the stream is in one piece.

A block of about `BLOCK_TOKENS` tokens is packed at a time, cut at the first document's start from each multiple on:
that bounds memory, and the pieces of a row lie within 128 MB of shards. It costs a part-filled row or two a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PACKING_VERSION = 1
BLOCK_TOKENS = 1 << 26
_BUNDLE_SHARE = 8  # of a row; at 4 use falls
_FILLER_SHARE = 64
_FILLER_EVERY = 8
_BLOCK_PIECES = 1 << 18
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingPlan:
    """The rows of one split, in the order of their first tokens in the stream; the pieces of each, likewise.

    Row `i` holds the pieces `row_ends[i-1]` (0 for the first row) to `row_ends[i]`; piece `j` is the `piece_counts[j]`
    tokens from stream token `piece_starts[j]` on.
    """

    piece_starts: NDArray[np.integer]  # int64
    piece_counts: NDArray[np.integer]  # uint16, or uint32 for rows longer than that
    row_ends: NDArray[np.integer]  # int64
    documents: int
    splits: int  # documents in several rows
    most_segments: int  # of any row: its documents or parts of them, and its padding if it has any


def plan_dtypes(seq_len: int) -> dict[str, str]:
    """The arrays that `plan_blocks` gives for each block, and their dtypes."""
    return {
        "piece_starts": "<i8",
        "piece_counts": "<u2" if seq_len <= np.iinfo(np.uint16).max else "<u4",
        "row_ends": "<i8",
        "totals": "<i8",
    }


def plan_of(arrays: dict[str, NDArray[np.integer]]) -> PackingPlan:
    """The plan whose blocks were laid end to end in `arrays`."""
    totals = arrays["totals"].reshape(-1, 3)
    documents, splits = totals[:, :2].sum(axis=0).tolist()
    return PackingPlan(
        piece_starts=arrays["piece_starts"],
        piece_counts=arrays["piece_counts"],
        row_ends=arrays["row_ends"],
        documents=documents,
        splits=splits,
        most_segments=int(totals[:, 2].max()),
    )


def plan_blocks(
    starts: Ints, tokens: int, seq_len: int, *, block_tokens: int = BLOCK_TOKENS, chosen: slice = slice(None)
) -> Iterator[tuple[Ints, Ints, Ints, Ints]]:
    """Piece starts, piece counts, row ends, and totals (documents, splits, most segments) of each block in turn.

    `starts` are the documents' starts in a stream of `tokens` tokens (at least 1), ascending. Of `chosen` blocks alone,
    row ends count from the first one's beginning.
    """
    done = 0
    for begins, lengths in document_blocks(starts, tokens, block_tokens, chosen):
        pieces, counts, row_ends, most = pack_block(begins, lengths, seq_len)
        totals = np.array([len(begins), np.count_nonzero(lengths > seq_len), most], np.int64)
        yield pieces, counts, row_ends + done, totals
        done += len(pieces)


def most_blocks(tokens: int, block_tokens: int) -> int:
    """The most blocks that a stream of `tokens` tokens is packed in: fewer, where none begins in a block's tokens."""
    return -(-tokens // block_tokens)


def document_blocks(
    starts: Ints, tokens: int, block_tokens: int, chosen: slice = slice(None)
) -> Iterator[tuple[Ints, Ints]]:
    """The documents' starts and lengths, block by block; a part of a document that leads the stream is the first."""
    cuts = np.searchsorted(starts, np.arange(block_tokens, tokens, block_tokens)).tolist()
    bounds = [*sorted({0, *cuts} - {len(starts)}), len(starts)] if len(starts) else [0, 0]
    for first, last in list(pairwise(bounds))[chosen]:
        begins = np.asarray(starts[first:last], np.int64)
        if first == 0 and (not len(begins) or begins[0] > 0):
            begins = np.concatenate([[0], begins])
        end = starts[last] if last < len(starts) else tokens
        yield begins, np.diff(begins, append=end)


def pack_block(begins: Ints, lengths: Ints, seq_len: int) -> tuple[Ints, Ints, Ints, int]:
    """Pack whole documents into rows: piece starts, piece counts, the pieces up to each row's end, most segments."""
    full = (lengths - 1) // seq_len
    before = np.cumsum(full) - full
    full_starts = np.repeat(begins, full) + seq_len * (np.arange(full.sum()) - np.repeat(before, full))
    heads, last_counts = bundle(lengths - full * seq_len, full == 0, seq_len)
    last_starts = (begins + full * seq_len)[heads]
    rows = best_fit(last_counts, seq_len)
    segments = np.bincount(rows, weights=np.diff(heads, append=len(begins)))
    segments += np.bincount(rows, weights=last_counts) < seq_len
    row_starts = np.full(len(segments), np.iinfo(np.int64).max)
    np.minimum.at(row_starts, rows, last_starts)
    starts = np.concatenate([full_starts, last_starts])
    counts = np.concatenate([np.full(len(full_starts), seq_len), last_counts])
    row_of = np.concatenate([full_starts, row_starts[rows]])  # a row's first token names it
    order = np.lexsort((starts, row_of))
    row_of = row_of[order]
    row_ends = np.append(np.flatnonzero(row_of[1:] != row_of[:-1]) + 1, len(row_of))
    return starts[order], counts[order], row_ends, int(segments.max())


def bundle(lengths: Ints, whole: NDArray[np.bool_], seq_len: int) -> tuple[Ints, Ints]:
    """Join last pieces of documents that follow each other: each bundle's first piece, and its tokens.

    A `whole` document lies right after the last piece before it; of one that is split, full pieces lie between. A piece
    that is longer than a bundle may be stays alone.
    """
    ends = np.cumsum(lengths)
    breaks = np.append(np.flatnonzero(~whole), len(lengths))
    heads: list[int] = []
    piece = 0
    for first in range(0, len(lengths), _BLOCK_PIECES):
        pieces = np.arange(first, min(first + _BLOCK_PIECES, len(lengths)))
        run_ends = breaks[np.searchsorted(breaks, pieces, side="right")]
        before = ends[pieces] - lengths[pieces]
        large, small = (
            np.minimum(np.searchsorted(ends, before + limit, side="right"), run_ends).clip(min=pieces + 1).tolist()
            for limit in (seq_len // _BUNDLE_SHARE, seq_len // _FILLER_SHARE)
        )
        while piece < first + len(pieces):
            heads.append(piece)
            piece = (small if len(heads) % _FILLER_EVERY == 0 else large)[piece - first]
    return np.array(heads), np.add.reduceat(lengths, heads)


def best_fit(lengths: Ints, capacity: int) -> Ints:
    """The row, from 0, of each of `lengths` (1 to `capacity`): best-fit decreasing, earlier pieces first among equals.

    All pieces of one length are placed together: each step fills as many rows of equal room as they need, so that it
    takes about as many steps as there are lengths, not pieces.
    """
    order = np.argsort(-lengths, kind="stable")
    of_length = np.bincount(lengths, minlength=1)
    rows = np.empty(len(lengths), np.int64)
    open_rows: dict[int, Ints] = {}  # those with so much room left
    rooms = 0  # the keys of open_rows, as bits: the least that is large enough is found in one step
    n_rows = done = 0
    for length in np.flatnonzero(of_length)[::-1].tolist():
        stop = done + int(of_length[length])
        while done < stop:
            enough = rooms >> length
            room = length + (enough & -enough).bit_length() - 1 if enough else capacity
            each = room // length  # once a piece is in, its row is the best fit for the next, while one fits
            wanted = -(-(stop - done) // each)
            if enough:
                rows_here = open_rows.pop(room)
                rooms ^= 1 << room
            else:
                rows_here = np.arange(n_rows, n_rows + wanted)
                n_rows += wanted
            taken, spare = rows_here[:wanted], rows_here[wanted:]
            placed = min(stop - done, each * len(taken))
            rows[order[done : done + placed]] = np.repeat(taken, each)[:placed]
            done += placed
            in_last = placed - each * (len(taken) - 1)
            groups = ((room, spare), (room - each * length, taken[:-1]), (room - in_last * length, taken[-1:]))
            for left, group in groups:
                if left and len(group):
                    held = open_rows.get(left)
                    open_rows[left] = group if held is None else np.concatenate([held, group])
                    rooms |= 1 << left
    return rows
