"""A journal at a remote in segments: the bytes sent grow with the shards, and the segments joined are the journal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.journal_segments import (
    SEGMENT_BYTES,
    SEGMENT_LINES,
    SentSegments,
    joined_segments,
    segment_files,
)


def segments_of(lines: list[bytes]) -> dict[str, bytes]:
    return SentSegments(lines).up_to(len(lines))


def journal_lines(count: int) -> list[bytes]:
    return [b'{"identity": {}}\n', *(b"line %d\n" % number for number in range(1, count))]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=12), st.integers(1, 400))
def test_segments_written_as_the_lines_come_are_the_journal_again(steps: list[int], first: int) -> None:
    lines, remote = journal_lines(first + sum(steps)), dict[str, bytes]()
    segments = SentSegments(lines)
    for end in (first, *(first + sum(steps[: number + 1]) for number in range(len(steps)))):
        for name, content in segments.up_to(end).items():
            remote[name] = content  # one by one, as a folder gets them: at no moment is there a line out of its place
            assert b"".join(lines).startswith(joined_segments(remote))
        assert joined_segments(remote) == b"".join(lines[:end])


@given(st.integers(1, 600), st.data())
def test_what_is_before_a_lost_or_torn_segment_counts_and_nothing_after_it(count: int, data: st.DataObject) -> None:
    lines = journal_lines(count)
    segments = segments_of(lines)
    number = data.draw(st.integers(0, len(segments) - 1))
    name = segment_files(segments)[number]
    whole = b"".join(lines[: number * SEGMENT_LINES])
    assert joined_segments({other: text for other, text in segments.items() if other != name}) == whole
    kept = data.draw(st.integers(0, len(segments[name]) - 1))
    assert joined_segments({**segments, name: segments[name][:kept]}) == whole + segments[name][:kept]


def test_a_journal_that_an_earlier_version_left_in_one_file_goes_on_in_segments() -> None:
    lines = journal_lines(1000)
    remote = {JOURNAL_FILE: b"".join(lines[:300])}
    assert joined_segments(remote) == remote[JOURNAL_FILE]
    segments = SentSegments(lines, 300)
    remote |= segments.up_to(301)
    remote |= segments.up_to(1000)
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


def test_the_journal_of_14000_shards_costs_a_small_part_of_shards_of_2_mb() -> None:
    lines = [b"x" * 450 + b"\n"] * 14_001  # a journal's line, of a shard that one source file gave
    segments = SentSegments(lines)
    sent = sum(len(text) for end in range(1, 14_002) for text in segments.up_to(end).values())
    assert sent < 0.03 * 14_000 * 2_000_000
    assert len(segments_of(lines)) < 120  # so many files are read when the run goes on elsewhere


@given(st.lists(st.sampled_from([10, 5_000, 30_000, 70_000]), max_size=300), st.integers(0, 300))
def test_long_lines_of_shards_made_of_many_files_are_not_sent_again_and_again(sizes: list[int], known: int) -> None:
    lines = [b"x" * (size - 1) + b"\n" for size in [100, *sizes]]
    remote, segments = dict[str, bytes](), SentSegments(lines)
    for end in range(1, len(lines) + 1):
        changed = segments.up_to(end)
        assert sum(map(len, changed.values())) <= max(SEGMENT_BYTES, len(lines[end - 1]))
        remote |= changed
    assert remote == segments_of(lines)  # the same whoever cuts them, and however many there were before
    since = min(known, len(lines) - 1)
    assert remote | SentSegments(lines, since).up_to(len(lines)) == remote
    assert joined_segments(remote) == b"".join(lines)
