"""Which shards go for the next one: never more than the bound, never a wanted one, oldest want first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.remote.streaming.contents import CacheContents, in_order_of_need, too_much

HUGE = 10**18
names = st.sampled_from("abcdefgh")


def test_readers_are_served_in_turn_nearest_need_first() -> None:
    assert in_order_of_need([["a", "b", "c"], ["d", "b"], []]) == ["a", "d", "b", "c"]
    assert in_order_of_need([["c", "a"], ["a"]]) == ["a", "c"]


def test_what_was_wanted_last_goes_last() -> None:
    contents = CacheContents({"a": 1, "b": 1, "c": 1})
    contents.note_wanted(["c", "a"])
    contents.note_wanted(["a"])
    assert contents.to_delete(1, bound=3, free=HUGE, wanted=()) == ["b"]
    assert contents.to_delete(3, bound=3, free=HUGE, wanted=()) == ["b", "c", "a"]
    assert contents.to_delete(2, bound=3, free=HUGE, wanted=["b", "a"]) is None


def test_without_a_bound_nothing_goes_and_the_disk_decides() -> None:
    contents = CacheContents({"a": 10})
    contents.coming["b"] = 10
    assert contents.to_delete(10, bound=None, free=20, wanted=()) == []
    assert contents.to_delete(11, bound=None, free=20, wanted=()) is None


def test_a_full_disk_is_relieved_of_old_shards_where_there_is_a_bound() -> None:
    assert CacheContents({"a": 10}).to_delete(10, bound=1000, free=3, wanted=()) == ["a"]
    assert CacheContents({"a": 10}).to_delete(14, bound=1000, free=3, wanted=()) is None


@pytest.mark.parametrize(("bound", "beyond"), [(10, []), (9, ["c"]), (5, ["b", "c"]), (0, ["a", "b", "c"])])
def test_what_a_reader_wants_at_once_must_fit(bound: int, beyond: list[str]) -> None:
    assert too_much(["a", "b", "c"], {"a": 3, "b": 3, "c": 4}, bound) == beyond


@given(
    held=st.dictionaries(names, st.integers(1, 9)),
    coming=st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9)),
    wants=st.lists(st.lists(names, unique=True), max_size=5),
    size=st.integers(0, 20),
    bound=st.integers(0, 60),
    free=st.integers(0, 60),
)
def test_whatever_happens_the_bound_and_the_wanted_are_kept(
    held: dict[str, int], coming: dict[str, int], wants: list[list[str]], size: int, bound: int, free: int
) -> None:
    contents = CacheContents(held)
    contents.coming |= coming
    for shards in wants:
        contents.note_wanted(shards)
    wanted = set(wants[-1]) if wants else set()
    leaving = contents.to_delete(size, bound=bound, free=free, wanted=wanted)
    gone = sum(held[shard] for shard in held.keys() - wanted) if leaving is None else sum(held[s] for s in leaving)
    fits = contents.used - gone + size <= bound and free + gone - sum(coming.values()) >= size
    assert fits == (leaving is not None)
    if leaving:
        assert not wanted & set(leaving)
        last = held[leaving[-1]]  # one less would not do
        assert contents.used - gone + last + size > bound or free + gone - last - sum(coming.values()) < size
