"""Rows that became no document are recorded as runs, up to a bound, however many there are and however they came."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.dataset import records
from shardkit.dataset.manifest import Manifest, ShardInfo, SourceInfo
from shardkit.dataset.records import SourceFile, add_skipped, bounded_maps, joined_figures
from shardkit.dataset.row_map import RowMap
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


@given(
    rows=st.sets(st.integers(0, 99), min_size=1).map(sorted), cuts=st.sets(st.integers(1, 99), max_size=6).map(sorted)
)
def test_beyond_the_bound_rows_are_mapped_and_every_documents_row_is_known(rows: list[int], cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "LISTED_RUNS", 3)
        file = SourceFile(path="a", bytes=1, rows=100, documents=100 - len(rows))
        for first, stop in zip([0, *cuts], [*cuts, 100], strict=True):
            file = add_skipped(file, runs_of([row for row in rows if first <= row < stop]))
        assert (file.skipped, file.unlisted_rows) == (len(rows), 0)
        assert len(file.skipped_rows) <= 6
        kept = [row for row in range(100) if row not in rows]
        assert [file.row_of(number) for number in range(len(kept))] == kept


def test_a_row_in_ten_of_a_million_takes_a_byte_for_nine_rows_and_a_stretch_next_to_nothing() -> None:
    numbers = np.random.default_rng(0)
    file = SourceFile(path="a", bytes=1)
    for first in range(0, 1_000_000, 2_000):
        left_out = np.flatnonzero(numbers.random(2_000) >= 0.1) + first
        file = add_skipped(file, runs_of(left_out.tolist()))
    assert sum(map(len, file.skipped_maps)) < 111_000
    assert len(str(RowMap.of_runs([(7, 50_000_006)]))) < 9_000


def test_a_map_that_is_none_is_refused_and_of_a_damaged_one_no_row_is_known() -> None:
    text = str(RowMap.of_runs([(3, 4), (6, 6)]))
    assert (text.rpartition(":")[0], RowMap.of(text).row_of(3)) == ("3:4:3", 5)
    for bad in ("", "x", "3:4:5:AA", "3:4:0:AA", "3:99999999999:1:AA", f"-{text}", text + "!"):
        with pytest.raises(ValueError, match="expected a map of rows"):
            SourceFile(path="a", bytes=1, skipped_maps=(bad,))
    for bad in ("3:4:2:" + text.rpartition(":")[2], "3:4:3:AAAA", text[:-4]):
        file = SourceFile(path="a", bytes=1, rows=9, documents=9 - RowMap.of(bad).skipped, skipped_maps=(bad,))
        assert (file.row_of(2), file.row_of(3)) == (2, None)


def test_maps_are_bounded_for_a_whole_source_and_then_rows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LISTED_RUNS", 0)
    files = [add_skipped(SourceFile(path=name, bytes=1, rows=9, documents=7), [(1, 1), (5, 5)]) for name in "abc"]
    monkeypatch.setattr(records, "MAPS_BYTES", len(files[0].skipped_maps[0]))
    bounded = bounded_maps(files)
    assert bounded[0] == files[0]
    for file in bounded[1:]:
        assert (file.skipped_maps, file.unlisted_rows, file.skipped, file.row_of(0)) == ((), 2, 2, None)
    assert bounded_maps(bounded) == bounded
    assert bounded_maps([bounded[1], files[0]])[1].skipped_maps == ()  # however the one before came to be so


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
        assert bounded_maps([replace(joined, tokens=41)]) == bounded_maps([figures(0, 41)])


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
    assert "skipped_maps" not in text
    assert Manifest.from_json(text) == manifest
    stated = {"path": "a", "bytes": 9, "rows": 6, "documents": 3, "tokens": 5, "skipped_rows": [1, 2, 3]}
    old = read_record(SourceFile, stated)
    assert (old.skipped, old.row_of(1)) == (3, 4)
    assert add_skipped(old, [(4, 4)]).skipped_rows == ((1, 4),)
