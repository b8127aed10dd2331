"""`journal`: what is in it happened; a torn line is cut off, anything else that is wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.dataset.journal import (
    JOURNAL_FILE,
    SEGMENT_BYTES,
    SEGMENT_LINES,
    Journal,
    Resume,
    acknowledged,
    changed_segments,
    joined_segments,
    segment_files,
)
from shardkit.dataset.manifest import ShardInfo, SourceFile
from shardkit.errors import OutputError

IDENTITY = {"source": "corpus", "shard tokens": 100, "max docs": None}


def shard(index: int) -> ShardInfo:
    return ShardInfo(
        file=f"x_train_{index:06d}.npy",
        split="train",
        index=index,
        tokens=100,
        documents=3,
        first_document=3 * index,
        sha256="a" * 64,
        bytes=328,
    )


def resume(number: int) -> Resume:
    stats = SourceFile(path="a", bytes=9, rows=number, documents=number, tokens=number, skipped_rows=(1, 2))
    return Resume(file=1, start=number, part=2, skip_tokens=3, documents=4, files={0: stats})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    journal = Journal.open(tmp_path, IDENTITY)
    for number in range(3):
        journal.append(shard(number), resume(number))
    return journal.path


def test_a_new_journal_starts_at_the_beginning(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    assert (journal.shards, journal.resume) == ([], Resume())
    assert Journal.open(tmp_path, IDENTITY).resume == Resume()


def test_what_was_appended_is_read_again(written: Path, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    assert journal.shards == [shard(0), shard(1), shard(2)]
    assert journal.resume == resume(2)


def test_figures_of_a_file_that_did_not_change_need_not_be_repeated(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    journal.append(shard(0), Resume(file=1, files={0: SourceFile(path="a", bytes=1, rows=5)}))
    journal.append(shard(1), Resume(file=2, files={1: SourceFile(path="b", bytes=1, rows=6)}))
    assert {n: f.rows for n, f in Journal.open(tmp_path, IDENTITY).resume.files.items()} == {0: 5, 1: 6}


def test_a_journal_cut_at_any_byte_goes_on_from_its_last_whole_line(written: Path, tmp_path: Path) -> None:
    data = written.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(first, len(data), 7):
        written.write_bytes(data[:length])
        journal = Journal.open(tmp_path, IDENTITY)
        whole = data[:length].count(b"\n") - 1
        assert len(journal.shards) == whole
        journal.append(shard(whole), resume(whole))
        assert len(Journal.open(tmp_path, IDENTITY).shards) == whole + 1


def test_another_run_is_refused_and_the_options_that_differ_are_named(written: Path, tmp_path: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(OutputError) as caught:
        Journal.open(tmp_path, {**IDENTITY, "shard tokens": 200, "max docs": 5})
    message = str(caught.value)
    assert "holds another run (max docs: null there, 5 now; shard tokens: 100 there, 200 now)" in message
    assert "--overwrite" in message
    assert written.read_bytes() == before


def test_long_options_are_shortened_in_the_message(written: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        Journal.open(tmp_path, {**IDENTITY, "source": "x" * 10_000})
    assert len(str(caught.value)) < 400


def damage(lines: list[bytes], kind: str) -> list[bytes]:
    changes: dict[str, Any] = {
        "empty": [],
        "not json": [lines[0], b"{\n", *lines[2:]],
        "not utf-8": [lines[0], b"\xff\n", *lines[2:]],
        "no identity": lines[1:],
        "a shard is missing": [lines[0], lines[1], lines[3]],
        "a shard is there twice": [*lines, lines[3]],
        "other fields": [lines[0], json.dumps({"shard": {}, "next": {}}).encode() + b"\n"],
        "no object": [lines[0], b"3\n"],
        "nested": [lines[0], b"[" * 100_000 + b"\n"],
    }
    return list(changes[kind])


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "not json",
        "not utf-8",
        "no identity",
        "a shard is missing",
        "a shard is there twice",
        "other fields",
        "no object",
        "nested",
    ],
)
def test_a_damaged_journal_is_refused_with_the_way_out(written: Path, tmp_path: Path, kind: str) -> None:
    written.write_bytes(b"".join(damage(written.read_bytes().splitlines(keepends=True), kind)))
    with pytest.raises(OutputError, match=r"journal\.jsonl is damaged .*--overwrite"):
        Journal.open(tmp_path, IDENTITY)


def journal_lines(count: int) -> list[bytes]:
    return [b'{"identity": {}}\n', *(b"line %d\n" % number for number in range(1, count))]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=12), st.integers(1, 400))
def test_segments_written_as_the_lines_come_are_the_journal_again(steps: list[int], first: int) -> None:
    lines, remote, sent = journal_lines(first + sum(steps)), dict[str, bytes](), 0
    for end in (first, *(first + sum(steps[: number + 1]) for number in range(len(steps)))):
        for name, content in changed_segments(lines[:end], sent).items() if end > sent else ():
            remote[name] = content  # one by one, as a folder gets them: at no moment is there a line out of its place
            assert b"".join(lines).startswith(joined_segments(remote))
        sent = end
        assert joined_segments(remote) == b"".join(lines[:end])


@given(st.integers(1, 600), st.data())
def test_what_is_before_a_lost_or_torn_segment_counts_and_nothing_after_it(count: int, data: st.DataObject) -> None:
    lines = journal_lines(count)
    segments = changed_segments(lines, 0)
    number = data.draw(st.integers(0, len(segments) - 1))
    name = segment_files(segments)[number]
    whole = b"".join(lines[: number * SEGMENT_LINES])
    assert joined_segments({other: text for other, text in segments.items() if other != name}) == whole
    kept = data.draw(st.integers(0, len(segments[name]) - 1))
    assert joined_segments({**segments, name: segments[name][:kept]}) == whole + segments[name][:kept]


def test_a_journal_that_an_earlier_version_left_in_one_file_is_gone_on_with_in_segments() -> None:
    lines = journal_lines(1000)
    remote = {JOURNAL_FILE: b"".join(lines[:300])}
    assert joined_segments(remote) == remote[JOURNAL_FILE]
    remote |= changed_segments(lines[:301], 300)
    remote |= changed_segments(lines, 301)
    assert joined_segments(remote) == b"".join(lines)
    assert remote[JOURNAL_FILE] == b"".join(lines[:300])  # not sent again


def test_only_segments_are_taken_for_segments_and_they_come_in_the_order_of_their_lines() -> None:
    names = [
        ".shardkit/journal-001024.jsonl",
        JOURNAL_FILE,
        ".shardkit/journal-000128.jsonl",
        ".shardkit/uploaded.json",
        "journal-000128.jsonl",
        ".shardkit/journal-000128.jsonl.part",
        ".shardkit/journal-1000000.jsonl",
    ]
    assert segment_files(names) == [
        JOURNAL_FILE,
        ".shardkit/journal-000128.jsonl",
        ".shardkit/journal-001024.jsonl",
        ".shardkit/journal-1000000.jsonl",
    ]


def test_the_lines_in_memory_are_those_of_the_file(written: Path, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    journal.append(shard(3), resume(3))
    assert b"".join(journal.lines) == written.read_bytes()
    assert acknowledged(b"".join(journal.lines), where="here")[1] == journal.shards


def test_the_journal_of_14000_shards_costs_a_small_part_of_shards_of_2_mb(written: Path, tmp_path: Path) -> None:
    line = written.read_bytes().splitlines(keepends=True)[-1]
    lines = [line] * 14_001
    sent, starts = 0, list[int]()
    for end in range(1, 14_002):
        sent += sum(len(text) for text in changed_segments(lines[:end], end - 1, starts).values())
    assert sent < 0.03 * 14_000 * 2_000_000
    assert len(changed_segments(lines, 0)) < 120  # so many files are read when the run goes on elsewhere


@given(st.lists(st.sampled_from([10, 5_000, 30_000, 70_000]), max_size=300), st.integers(0, 300))
def test_long_lines_of_shards_made_of_many_files_are_not_sent_again_and_again(sizes: list[int], known: int) -> None:
    lines = [b"x" * (size - 1) + b"\n" for size in [100, *sizes]]
    remote, starts = dict[str, bytes](), list[int]()
    for end in range(1, len(lines) + 1):
        changed = changed_segments(lines[:end], end - 1, starts)
        assert sum(map(len, changed.values())) <= max(SEGMENT_BYTES, len(lines[end - 1]))
        remote |= changed
    assert remote == changed_segments(lines, 0)  # the same whoever cuts them, and however many there were before
    since = min(known, len(lines) - 1)
    assert remote | changed_segments(lines, since) == remote
    assert joined_segments(remote) == b"".join(lines)


def test_a_source_file_that_is_another_by_now_is_named(tmp_path: Path) -> None:
    then = {**IDENTITY, "file states": [["a.jsonl", "9 bytes, modified 1"], ["b.jsonl", "9 bytes, modified 2"]]}
    Journal.open(tmp_path, then).append(shard(0), resume(0))
    assert Journal.open(tmp_path, then).shards == [shard(0)]
    now = {**IDENTITY, "file states": [["a.jsonl", "9 bytes, modified 1"], ["b.jsonl", "9 bytes, modified 3"]]}
    words = r"source file b\.jsonl: 9 bytes, modified 2 then, 9 bytes, modified 3 now\): .*--overwrite"
    with pytest.raises(OutputError, match=words):
        Journal.open(tmp_path, now)


def test_a_journal_of_an_earlier_version_which_knows_no_files_states_is_gone_on_with(tmp_path: Path) -> None:
    Journal.open(tmp_path, IDENTITY).append(shard(0), resume(0))
    now = {**IDENTITY, "file states": [["a.jsonl", "9 bytes, modified 1"]]}
    assert Journal.open(tmp_path, now).shards == [shard(0)]
