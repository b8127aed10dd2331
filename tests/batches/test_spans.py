"""Spans: shards from all over, every row once an epoch, and what a row needs is here or has passed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.batches.spans import ShardRows, SpanOrder, choose_span
from shardkit.errors import UsageError

FROZEN_SHARDS = [[2, 3], [1, 0], [4], [3, 2], [4, 0], [1]]
FROZEN_ROWS = [44, 31, 40, 47, 41, 28, 39, 38, 29, 31, 35, 44, 41, 48, 38, 30]
TOKENS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def shards_of(row: int, tokens: list[int], seq_len: int) -> list[int]:
    """The shards that hold the tokens of `row`, by looking at each."""
    ends = np.cumsum(tokens)
    return sorted(
        {int(np.searchsorted(ends, token, side="right")) for token in range(row * seq_len, (row + 1) * seq_len + 1)}
    )


@given(
    tokens=TOKENS,
    span=st.integers(1, 5),
    seq_len=st.integers(1, 60),
    seed=st.integers(0, 2**63),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_every_row_comes_once_an_epoch_and_reads_only_shards_that_are_or_were_here(
    tokens: list[int], span: int, seq_len: int, seed: int, shuffle: bool, data: st.DataObject
) -> None:
    rows = ShardRows(tokens, seq_len)
    edges = rows.edges
    order = SpanOrder(rows, span=span, seed=seed, shuffle=shuffle)
    count = rows.n_rows
    if not count:
        return
    positions = np.arange(3 * count)
    windows, visits = order.windows(positions), order.visits(positions)
    assert np.all(np.diff(visits) >= 0)
    assert visits[-1] < 3 * order.n_spans
    for epoch in range(3):
        ours = slice(epoch * count, (epoch + 1) * count)
        assert sorted(windows[ours]) == list(range(count))
        assert shuffle or list(windows[ours]) == list(range(count))
        passed: set[int] = set()
        at = iter(zip(visits[ours].tolist(), windows[ours].tolist(), strict=True))
        following = next(at, None)
        for visit in range(epoch * order.n_spans, (epoch + 1) * order.n_spans):
            here, gone = set(order.shards(visit)), set(order.seams(visit))
            assert len(here) <= span
            assert not here & passed
            assert gone <= passed
            while following is not None and following[0] == visit:
                read = shards_of(following[1], tokens, seq_len)
                assert set(read) <= here | gone
                assert (len(read) == 1) == (following[1] not in rows.seams)
                for shard in set(read) - here:  # its edge holds what the row needs
                    edge, start = edges[shard], sum(tokens[:shard])
                    low, high = (
                        max(following[1] * seq_len, start),
                        min((following[1] + 1) * seq_len + 1, start + tokens[shard]),
                    )
                    kept = [*range(edge.head), *range(edge.tail, edge.tokens)]
                    place = edge.place_of(low - start)
                    assert kept[place : place + high - low] == list(range(low - start, high - start))
                following = next(at, None)
            passed |= here
        assert passed == set(range(len(tokens)))
    some = np.array(data.draw(st.lists(st.integers(0, 3 * count - 1), max_size=20)), np.int64)
    assert SpanOrder(rows, span=span, seed=seed, shuffle=shuffle).windows(some).tolist() == windows[some].tolist()


def test_a_span_is_of_shards_from_all_over_and_of_other_ones_in_the_next_epoch() -> None:
    order = SpanOrder(ShardRows([1000] * 400, 50), span=4, seed=1, shuffle=True)
    epochs = [[order.shards(epoch * 100 + span) for span in range(100)] for epoch in range(3)]
    for spans in epochs:
        gaps = np.abs(np.diff(np.array(spans), axis=1))
        assert 100 < gaps.mean() < 170  # 134 of random ones, 1 of neighbours
    together = [{frozenset(pair) for span in spans for pair in pairwise(span)} for spans in epochs]
    assert len(together[0] & together[1]) < 10
    assert len(together[1] & together[2]) < 10
    assert SpanOrder(ShardRows([1000] * 400, 50), span=4, seed=2, shuffle=True).shards(0) != epochs[0][0]


def test_the_order_of_spans_is_frozen() -> None:
    """A saved state means the same rows for ever: these change only with SPAN_ORDER_VERSION."""
    order = SpanOrder(ShardRows([100, 90, 110, 50, 70], 7), span=2, seed=1337, shuffle=True)
    assert [order.shards(visit) for visit in range(6)] == FROZEN_SHARDS
    assert order.windows(np.arange(8)).tolist() == FROZEN_ROWS[:8]
    assert order.windows(np.arange(8) + order.n_windows).tolist() == FROZEN_ROWS[8:]
    salted = SpanOrder(ShardRows([100, 90, 110, 50, 70], 7), span=2, seed=1337, shuffle=True, salt=":1")
    assert salted.windows(np.arange(8)).tolist() != FROZEN_ROWS[:8]


@given(sizes=TOKENS, room=st.integers(0, 600))
def test_any_two_spans_of_the_length_that_is_chosen_fit_the_room(sizes: list[int], room: int) -> None:
    def most(span: int) -> int:
        return sum(sorted(sizes)[-2 * span :])

    try:
        span = choose_span(sizes, room=room, given=None, where="x")
    except UsageError:
        assert most(1) > room
        return
    assert most(span) <= room
    assert span == min(4, len(sizes)) or most(span + 1) > room


def test_a_span_that_is_given_is_taken_or_refused() -> None:
    assert choose_span([10] * 9, room=None, given=7, where="x") == 7
    with pytest.raises(UsageError, match=r"x: a span of 3 shards and the next one take 60 B.* cache_bytes leaves 50 B"):
        choose_span([10] * 9, room=50, given=3, where="x")
