"""`journal`: what is in it happened; a torn line is cut off, anything else that is wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardkit.dataset.journal import Journal, Resume
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
