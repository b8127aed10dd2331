"""Packing: best fit by the book, and plans that hold every token once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_data import EOT, streams

import shardkit.batches.packing
from shardkit.batches.packing import (
    Ints,
    PackingPlan,
    best_fit,
    bundle,
    document_blocks,
    plan_blocks,
    plan_dtypes,
    plan_of,
)
from shardkit.dataset.token_stream import Tokens


def plan(starts: list[int], tokens: int, seq_len: int, *, block_tokens: int = 1 << 26) -> PackingPlan:
    """The whole plan in memory."""
    dtypes = plan_dtypes(seq_len)
    blocks = plan_blocks(np.array(starts, np.int64), tokens, seq_len, block_tokens=block_tokens)
    columns = zip(*blocks, strict=True)
    return plan_of({name: np.concatenate(c).astype(dtypes[name]) for name, c in zip(dtypes, columns, strict=True)})


def rows_of(found: PackingPlan) -> list[list[tuple[int, int]]]:
    """Each row's pieces."""
    pieces = list(zip(found.piece_starts.tolist(), found.piece_counts.tolist(), strict=True))
    return [pieces[a:b] for a, b in zip([0, *found.row_ends.tolist()], found.row_ends.tolist(), strict=False)]


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as the books have it, one piece at a time: what each row has left, sorted."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [room for room in left if room >= length]
        room = min(fits, default=capacity)
        if fits:
            left.remove(room)
        left.append(room - length)
    return sorted(left)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=60), capacity=st.integers(12, 20))
def test_best_fit_fills_rows_as_one_piece_at_a_time_would(lengths: list[int], capacity: int) -> None:
    rows = best_fit(np.array(lengths), capacity)
    filled = np.bincount(rows, weights=lengths)
    assert sorted(capacity - filled) == one_by_one(lengths, capacity)


def test_best_fit_takes_the_tightest_row_and_earlier_pieces_first() -> None:
    assert best_fit(np.array([6, 2, 7, 3, 2, 4]), 10).tolist() == [1, 2, 0, 0, 2, 1]
    assert best_fit(np.array([10, 10, 1]), 10).tolist() == [0, 1, 2]
    assert best_fit(np.array([], np.int64), 10).tolist() == []


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=80),
    seq_len=st.integers(9, 200),
    block=st.integers(1, 50),
)
def test_bundles_are_as_long_as_they_may_be_and_never_bridge_a_full_piece(
    pieces: list[tuple[int, bool]], seq_len: int, block: int
) -> None:
    lengths, whole = np.array([n for n, _ in pieces]), np.array([w for _, w in pieces])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardkit.batches.packing, "_BLOCK_PIECES", block)
        heads, totals = bundle(lengths, whole, seq_len)
    expected, sums = [0], [pieces[0][0]]
    for place, (length, joins) in enumerate(pieces[1:], start=1):
        limit = seq_len // (8 if len(sums) % 8 else 64)
        if joins and sums[-1] + length <= limit:
            sums[-1] += length
        else:
            expected.append(place)
            sums.append(length)
    assert (heads.tolist(), totals.tolist()) == (expected, sums)


def test_a_tiny_plan_is_as_it_was_written_down() -> None:
    # documents of 3, 9, 4, 1, 2 and 2 tokens, the second in pieces of 4, 4 and 1
    found = plan([0, 3, 12, 16, 17, 19], 21, 4)
    assert rows_of(found) == [[(0, 3), (11, 1)], [(3, 4)], [(7, 4)], [(12, 4)], [(16, 1)], [(17, 2), (19, 2)]]
    assert (found.documents, found.splits, found.most_segments) == (6, 1, 2)
    assert {str(a.dtype) for a in (found.piece_starts, found.row_ends)} == {"int64"}
    assert plan_dtypes(65535)["piece_counts"] == "<u2"
    assert plan_dtypes(65536)["piece_counts"] == "<u4"


def test_short_neighbours_travel_as_one_piece() -> None:
    # at 32 tokens a row up to 4 are joined: documents of 1, 2, 1 | 2, 2 | 3 | 30
    found = plan([0, 1, 3, 4, 6, 8, 11], 41, 32)
    assert rows_of(found) == [[(0, 4), (4, 4), (8, 3)], [(11, 30)]]
    assert found.most_segments == 7  # the first row's six documents and its padding


@settings(max_examples=150, deadline=None)
@given(tokens=streams(), seq_len=st.integers(1, 40), block_tokens=st.integers(1, 200))
def test_every_token_is_in_one_piece_of_one_row(tokens: Tokens, seq_len: int, block_tokens: int) -> None:
    starts = np.flatnonzero(tokens == EOT).tolist()
    found = plan(starts, len(tokens), seq_len, block_tokens=block_tokens)
    rows = rows_of(found)
    pieces = sorted(piece for row in rows for piece in row)
    assert [start for start, _ in pieces] == [0, *np.cumsum([count for _, count in pieces])[:-1].tolist()]
    assert sum(count for _, count in pieces) == len(tokens)
    assert all(row == sorted(row) and sum(count for _, count in row) <= seq_len for row in rows)
    assert [row[0][0] for row in rows] == sorted(row[0][0] for row in rows)
    begins = sorted({0, *starts})
    ends = [*begins[1:], len(tokens)]
    assert found.documents == len(begins)
    assert found.splits == sum(end - begin > seq_len for begin, end in zip(begins, ends, strict=True))
    for start, count in pieces:  # a piece ends where a document does, or fills a row
        assert start + count in ends or count == seq_len
    most = max(
        sum(1 + sum(start < s < start + count for s in starts) for start, count in row)
        + (sum(count for _, count in row) < seq_len)
        for row in rows
    )
    assert found.most_segments == most


@settings(max_examples=100, deadline=None)
@given(tokens=streams(), block_tokens=st.integers(1, 100))
def test_blocks_are_cut_at_the_first_start_from_each_multiple_on(tokens: Tokens, block_tokens: int) -> None:
    starts = np.flatnonzero(tokens == EOT)
    blocks = list(document_blocks(starts, len(tokens), block_tokens))
    begins: Ints = np.concatenate([b for b, _ in blocks])
    assert begins.tolist() == sorted({0, *starts.tolist()})
    assert np.array_equal(np.concatenate([n for _, n in blocks]), np.diff(begins, append=len(tokens)))
    heads = {int(b[0]) for b, _ in blocks}
    multiples = range(block_tokens, len(tokens), block_tokens)
    expected = {min((s for s in starts.tolist() if s >= multiple), default=0) for multiple in multiples}
    assert heads == {0} | (expected - {starts[0] if len(starts) else 0})


@pytest.mark.parametrize(
    ("mean", "seq_len", "most_pieces"),
    [(1000, 512, 2), (1000, 2048, 3), (1000, 32_768, 11), (100, 2048, 11), (20, 1024, 11), (5, 1024, 11)],
)
def test_documents_of_natural_lengths_waste_next_to_nothing_in_few_pieces(
    mean: int, seq_len: int, most_pieces: int
) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(mean) - 0.5, 1.0, 10_000_000 // mean).astype(int) + 1
    found = plan((np.cumsum(lengths) - lengths).tolist(), int(lengths.sum()), seq_len)
    assert int(lengths.sum()) / (len(found.row_ends) * seq_len) > 0.997
    assert len(found.piece_starts) / len(found.row_ends) < most_pieces
