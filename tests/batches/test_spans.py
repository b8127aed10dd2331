"""Spans: every row is in one, what is needed for it is named, and two of them fit the bound."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.batches.order import count_windows
from shardkit.batches.spans import choose_span, cut_spans, needed_shards
from shardkit.errors import UsageError

TOKENS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@given(tokens=TOKENS, span=st.integers(1, 5), seq_len=st.integers(1, 20))
def test_each_row_reads_only_shards_that_are_needed_for_its_span(tokens: list[int], span: int, seq_len: int) -> None:
    spans = cut_spans(tokens, span=span, seq_len=seq_len)
    starts = [0, *accumulate(tokens)]
    rows = count_windows(sum(tokens), seq_len)
    firsts = [one.first_row for one in spans]
    assert firsts == sorted(set(firsts))
    assert not rows or firsts[0] == 0
    for row in range(rows):
        number = max(at for at, first in enumerate(firsts) if first <= row)
        read = {
            at for at in range(len(tokens)) if starts[at] < (row + 1) * seq_len + 1 and starts[at + 1] > row * seq_len
        }
        assert read <= set(spans[number].reads)
        assert read <= set(needed_shards(spans, number))
        assert min(read) // span >= min(spans[number].shards) // span  # a row belongs where it begins


def test_rows_go_by_where_they_begin_and_the_next_span_is_needed_too() -> None:
    spans = cut_spans([100, 100, 100, 100, 50], span=2, seq_len=30)
    assert [one.first_row for one in spans] == [0, 7]  # no row begins in the last 50 tokens
    assert [list(one.reads) for one in spans] == [[0, 1, 2], [2, 3, 4]]
    assert needed_shards(spans, 0) == [0, 1, 2, 3]
    assert needed_shards(spans, 1) == [2, 3, 4, 0, 1]


@given(tokens=TOKENS, room=st.integers(0, 600), seq_len=st.integers(1, 20))
def test_a_span_that_is_chosen_fits_the_room(tokens: list[int], room: int, seq_len: int) -> None:
    def most(span: int) -> int:
        spans = cut_spans(tokens, span=span, seq_len=seq_len)
        return max((sum(tokens[s] for s in needed_shards(spans, at)) for at in range(len(spans))), default=0)

    try:
        span = choose_span(tokens, tokens, seq_len=seq_len, room=room, given=None, where="x")
    except UsageError:
        assert most(1) > room
        return
    assert most(span) <= room
    assert span == min(4, len(tokens)) or most(span + 1) > room


def test_a_span_that_is_given_is_taken_or_refused() -> None:
    assert choose_span([10] * 9, [10] * 9, seq_len=5, room=None, given=7, where="x") == 7
    with pytest.raises(UsageError, match=r"x: a span of 3 shards and the next one take 60 B.* cache_bytes leaves 50 B"):
        choose_span([10] * 9, [10] * 9, seq_len=5, room=50, given=3, where="x")
