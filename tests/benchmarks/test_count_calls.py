"""What a shard asks of the Hub, whichever way it goes: counted by the benchmark, at two small sizes."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

import pytest

from benchmarks.count_calls import COMMIT_LIMIT, Count, api_calls, counted, expected, kind_of, row, table

WAYS = {True: ("push", "pull", "tokenize"), False: ("push", "stream")}


@pytest.mark.parametrize("xet", [True, False])
def test_no_call_is_made_for_one_shard_that_can_be_made_for_many(xet: bool) -> None:
    small, large = (dict(counted(shards, xet=xet, ways=WAYS[xet])) for shards in (2, 34))
    for way in WAYS[xet]:
        calls, each = expected(small[way], large[way], 14_000)
        sends = way in ("push", "tokenize")
        assert api_calls(each) <= (3 / 32 if sends else 0), (way, each)  # a commit, and what is asked around it
        assert each.get("resolve", 0) == (0 if sends else 1), way
        assert calls["listing"] in (14, 28, 42)


def test_the_table_says_how_the_counts_grow() -> None:
    small = Count(8, Counter({"commit": 3, "listing": 2, "resolve": 9}))
    large = Count(104, Counter({"commit": 4, "listing": 2, "resolve": 105, "store": 500}))
    options = Namespace(shards=14_000, shard_mb=200.0, mb_per_second=100.0)
    lines = list(table([row("push", small, large, options)], options))
    assert lines[-2] == "| push | 177 (commit 149, listing 28) | 0.010 | 14,001 | 149 | 18.8 | 32 | 150 |"
    assert lines[-1].endswith(f"| {COMMIT_LIMIT} | 1,000 | 5,000 |")


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("POST", "/api/datasets/a/b/commit/main", "commit"),
        ("GET", "/datasets/a/b/resolve/main/x.npy", "resolve"),
        ("POST", "/datasets/a/b.git/info/lfs/objects/batch", "LFS batch"),
        ("PUT", "/_lfs/datasets/a/b/0", "store"),
        ("GET", "/api/whoami-v2", "other"),
    ],
)
def test_a_request_is_of_one_kind(method: str, target: str, kind: str) -> None:
    assert kind_of(method, target) == kind
