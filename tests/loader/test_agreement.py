"""What ranks say of each other's data; that they do is shown with real ranks in test_loader_torchrun.py."""

from __future__ import annotations

from typing import Any

import pytest

from shardkit.loader.agreement import describe_difference

DATA: dict[str, Any] = {"name": "a", "revision": "c1", "fingerprint": "0" * 64, "seed": 0}


@pytest.mark.parametrize("change", [{}, {"name": "b"}, {"revision": None}])
def test_ranks_agree_wherever_the_same_shards_lie(change: dict[str, Any]) -> None:
    assert describe_difference([DATA, {**DATA, **change}]) is None
    assert describe_difference([{**DATA, **change}, DATA]) is None


def test_a_difference_names_both_ranks_fingerprints_and_revisions() -> None:
    line = describe_difference([DATA, DATA, {**DATA, "fingerprint": "1" * 64, "revision": "c2", "name": "b"}])
    assert line == (
        f"rank 2 would read other data than rank 0 (other revision, fingerprint): rank 0 has name a, fingerprint "
        f"{'0' * 16}, revision c1; rank 2 has name b, fingerprint {'1' * 16}, revision c2: give every rank the same "
        "dataset and options, of a Hub repo the same revision="
    )


@pytest.mark.parametrize("change", [{"seed": 1}, {"revision": "c2"}, {"fingerprint": ["0" * 64, "1" * 64]}])
def test_any_other_option_is_named(change: dict[str, Any]) -> None:
    (name,) = change
    line = describe_difference([DATA, {**DATA, **change}])
    assert line is not None
    assert f"(other {name})" in line


def test_a_rank_that_failed_comes_first() -> None:
    line = describe_difference([DATA, {**DATA, "seed": 1}, {"error": "no folder x"}])
    assert line == "rank 2 cannot open its data: no folder x"
