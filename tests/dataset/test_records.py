"""Rows that became no document are recorded as runs, up to a bound, however many there are and however they came."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.dataset import records
from shardkit.dataset.manifest import Manifest, ShardInfo, SourceInfo
from shardkit.dataset.records import SourceFile, add_skipped, joined_figures
from shardkit.dataset.typed_json import read_record


def runs_of(rows: list[int]) -> list[tuple[int, int]]:
    groups = [[row for _, row in group] for _, group in groupby(enumerate(rows), lambda pair: pair[1] - pair[0])]
    return [(group[0], group[-1]) for group in groups]


def test_single_rows_stay_as_they_were_and_three_in_a_row_are_a_run() -> None:
    file = add_skipped(SourceFile(path="a", bytes=1), [(1, 1), (4, 5), (7, 9), (12, 1_000_000)])
    assert file.skipped_rows == (1, 4, 5, (7, 9), (12, 1_000_000))
    assert file.skipped == 1 + 2 + 3 + 999_989


@given(
    rows=st.sets(st.integers(0, 60)).map(sorted),
    cuts=st.lists(st.integers(0, 60), max_size=4).map(sorted),
)
def test_the_runs_are_the_same_however_the_rows_came_in_and_say_every_documents_row(
    rows: list[int], cuts: list[int]
) -> None:
    file = SourceFile(path="a", bytes=1, rows=61, documents=61 - len(rows))
    whole = add_skipped(file, runs_of(rows))
    part = file
    for first, stop in zip([0, *cuts], [*cuts, 61], strict=True):
        part = add_skipped(part, runs_of([row for row in rows if first <= row < stop]))
    assert part == whole
    assert whole.skipped == len(rows)
    kept = [row for row in range(61) if row not in rows]
    assert [whole.row_of(number) for number in range(len(kept))] == kept


def test_beyond_the_bound_rows_are_counted_and_the_rows_of_documents_are_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "LISTED_RUNS", 3)
    file = SourceFile(path="a", bytes=1, rows=40, documents=33)
    runs = [(1, 1), (5, 6), (9, 9), (10, 10), (20, 21)]
    file = add_skipped(file, runs)
    assert (file.skipped_rows, file.unlisted_rows, file.skipped) == ((1, 5, 6, 9, 10), 2, 7)
    assert file.row_of(0) is None
    file = add_skipped(file, [(22, 22)])  # no run may grow after some were left out
    assert (file.unlisted_rows, file.skipped) == (3, 8)


@given(rows=st.sets(st.integers(0, 40)).map(sorted), cuts=st.lists(st.integers(0, 41), max_size=3).map(sorted))
def test_what_parts_say_of_a_file_joined_is_what_one_run_says(rows: list[int], cuts: list[int]) -> None:
    def figures(first: int, stop: int) -> SourceFile:
        skipped = [row - first for row in rows if first <= row < stop]
        file = SourceFile(path="a", bytes=1, rows=stop - first, documents=stop - first - len(skipped), tokens=stop)
        return add_skipped(file, runs_of(skipped))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "LISTED_RUNS", 3)
        joined = SourceFile(path="a", bytes=1)
        for first, stop in zip([0, *cuts], [*cuts, 41], strict=True):
            joined = joined_figures(joined, figures(first, stop))
        assert replace(joined, tokens=41) == figures(0, 41)


def test_manifests_hold_runs_as_pairs_and_older_lists_of_rows_are_read() -> None:
    file = add_skipped(SourceFile(path="a", bytes=9, rows=30, documents=2), [(2, 29)])
    shard = ShardInfo(
        file="p_train_000000.npy",
        split="train",
        index=0,
        tokens=4,
        documents=2,
        first_document=0,
        sha256="0" * 64,
        bytes=136,
    )
    manifest = Manifest(dtype="uint16", tokens_per_shard=4, shards=(shard,), source=SourceInfo(id="a", files=(file,)))
    text = manifest.to_json()
    assert "unlisted_rows" not in text
    assert Manifest.from_json(text) == manifest
    stated = {"path": "a", "bytes": 9, "rows": 6, "documents": 3, "tokens": 5, "skipped_rows": [1, 2, 3]}
    old = read_record(SourceFile, stated)
    assert (old.skipped, old.row_of(1)) == (3, 4)
    assert add_skipped(old, [(4, 4)]).skipped_rows == ((1, 4),)
