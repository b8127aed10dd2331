"""`journal`: what is in it happened; a line that is not what was written is where the run goes on from."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.dataset import journal as journal_module
from shardkit.dataset import records
from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.journal import Journal, Resume, parse_journal
from shardkit.dataset.manifest import ShardInfo, SourceFile
from shardkit.dataset.records import add_skipped
from shardkit.errors import OutputError, ShardkitWarning

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
        (tmp_path / shard(number).file).touch()
    return journal.path


def opened(folder: Path) -> Journal:
    """The journal of `folder`, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShardkitWarning)
        return Journal.open(folder, IDENTITY)


def test_a_line_has_the_maps_of_skipped_rows_that_no_line_before_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LISTED_RUNS", 0)
    journal, file = Journal.open(tmp_path, IDENTITY), SourceFile(path="a", bytes=9)
    states = []
    for number in range(4):
        if number == 2:  # a run goes on
            journal = opened(tmp_path)
            assert journal.resume.files == {0: file}
        file = add_skipped(file, [(9 * number, 9 * number), (9 * number + 3, 9 * number + 3)])
        states.append(file)
        journal.append(shard(number), Resume(file=0, start=number, files={0: file}))
        (tmp_path / shard(number).file).touch()
    assert opened(tmp_path).resume.files == {0: file}
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()[1:]]
    assert [line["next"]["files"]["0"]["skipped_maps"] for line in lines] == [[text] for text in file.skipped_maps]
    again = Journal.open(tmp_path / "bounded", IDENTITY)
    monkeypatch.setattr(journal_module, "MAPS_BYTES", sum(map(len, file.skipped_maps[:2])))
    for number, state in enumerate(states):
        again.append(shard(number), Resume(file=0, start=number, files={0: state}))
        (tmp_path / "bounded" / shard(number).file).touch()
    found = opened(tmp_path / "bounded").resume.files[0]
    assert (found.skipped_maps, found.unlisted_rows, found.skipped) == (file.skipped_maps[:2], 4, 8)


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
    assert (
        "holds another run with 3 finished shards (max docs: null there, 5 now; shard tokens: 100 there, 200" in message
    )
    assert "overwrite=True" in message
    assert written.read_bytes() == before


def test_long_options_are_shortened_in_the_message(written: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        Journal.open(tmp_path, {**IDENTITY, "source": "x" * 10_000})
    assert len(str(caught.value)) < 400


def test_one_changed_value_in_any_line_is_where_the_run_goes_on_from(written: Path, tmp_path: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines)):
        for value in re.finditer(rb'\d+|"[^"]*"|null|\[|\{', lines[number]):
            for other in (b"0", b"200001", b'"x"', b"null", b"[]", b"-1", b"true", b"1e9", b""):
                changed = lines[number][: value.start()] + other + lines[number][value.end() :]
                if changed == lines[number]:
                    continue
                text = b"".join([*lines[:number], changed, *lines[number + 1 :]])
                content = parse_journal(text, where="here")
                assert content.damaged
                assert content.shards == [shard(n) for n in range(number - 1)]
                assert content.resume == (resume(number - 2) if number > 1 else Resume())
        written.write_bytes(text)
        said = f"damaged from line {number + 1} on: the run goes on from shard {number - 1},"
        with pytest.warns(ShardkitWarning, match=said):
            assert Journal.open(tmp_path, IDENTITY).lines == lines[:number]
        assert written.read_bytes() == b"".join(lines[:number])


@given(st.data())
def test_a_flipped_bit_a_lost_or_moved_line_or_a_cut_never_changes_what_is_believed(data: st.DataObject) -> None:
    check = CheckedLines()
    lines = [check.seal({"identity": IDENTITY})]
    lines += [check.seal({"shard": asdict(shard(n)), "next": asdict(resume(n))}) for n in range(5)]
    text = bytearray(b"".join(lines))
    kind = data.draw(st.sampled_from(["bit", "lost", "moved", "twice", "cut"]))
    first = data.draw(st.integers(0, len(lines) - 1))
    if kind == "bit":
        text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del text[data.draw(st.integers(0, len(text) - 1)) :]
    elif kind == "lost":
        text = bytearray(b"".join(lines[:first] + lines[first + 1 :]))
    elif kind == "twice":
        text = bytearray(b"".join([*lines[: first + 1], *lines[first:]]))
    else:
        text = bytearray(b"".join(lines[first:] + lines[:first]))
    try:
        journal = parse_journal(bytes(text), where="here")
    except OutputError as error:
        assert str(error).startswith("here is damaged (its first line does not hold)")
        assert not bytes(text).startswith(lines[0])
        return
    held = len(journal.shards)
    assert journal.shards == [shard(n) for n in range(held)]
    assert journal.resume == (resume(held - 1) if held else Resume())
    assert bytes(text).startswith(b"".join(lines[: held + 1]))
    assert not bytes(text).startswith(b"".join(lines[: held + 2])) or held == 5  # no line that holds is given up


def test_lines_written_after_a_damaged_one_hold(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole.replace(b'"start": 1', b'"start": 7'))
    journal = opened(tmp_path)
    for number in (1, 2):
        journal.append(shard(number), resume(number))
    assert written.read_bytes() == whole  # the very bytes that it was, at whatever line it was begun again


@pytest.mark.parametrize(
    "head", [b"", b"{\n", b"\xff\n", b"3\n", b"[" * 100_000 + b"\n", b'{"identity": 3, "check": ""}\n', None]
)
def test_a_journal_of_which_nothing_holds_is_refused_with_the_way_out_or_begun_anew_where_no_shard_is(
    written: Path, tmp_path: Path, head: bytes | None
) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([head, *lines[1:]] if head is not None else lines[1:]))
    before = written.read_bytes()
    with pytest.raises(OutputError, match=r"journal\.jsonl is damaged .*: start again with overwrite=True") as caught:
        Journal.open(tmp_path, IDENTITY)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert written.read_bytes() == before
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    assert opened(tmp_path).shards == []
    assert opened(tmp_path).lines == lines[:1]


def test_a_journal_of_an_earlier_version_is_refused_in_one_line(written: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in written.read_bytes().splitlines()]
    for record in records:
        del record["check"]
    written.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records))
    with pytest.raises(
        OutputError, match=r"begun by an earlier version, its lines have no checksums: .*overwrite=True"
    ):
        Journal.open(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../x_train_000000.npy"},
        {"file": "x.npy"},
        {"file": 3},
        {"tokens": "100"},
        {"tokens": -1},
        {"bytes": True},
        {"index": 1},
        {"sha256": None},
        {"more": 1},
    ],
)
def test_a_forged_line_that_holds_is_refused_all_the_same(change: dict[str, Any]) -> None:
    forged = [{"identity": IDENTITY}, {"shard": {**asdict(shard(0)), **change}, "next": asdict(resume(0))}]
    with pytest.raises(OutputError, match="there is damaged"):
        parse_journal(b"".join(map(CheckedLines().seal, forged)), where="there")
    places = [{"skip_tokens": -1}, {"file": "0"}, {"files": [1]}, {"files": {"0": {}}}, {"start": None}, {"else": 1}]
    for place in places:
        forged = [{"identity": IDENTITY}, {"shard": asdict(shard(0)), "next": {**asdict(resume(0)), **place}}]
        with pytest.raises(OutputError, match="there is damaged"):
            parse_journal(b"".join(map(CheckedLines().seal, forged)), where="there")


def test_a_run_whose_journal_was_taken_away_or_written_by_another_appends_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    journal.append(shard(0), resume(0))
    other = Journal.open(tmp_path, IDENTITY)
    other.append(shard(1), resume(1))
    before = journal.path.read_bytes()
    with pytest.raises(OutputError, match=r"journal\.jsonl was written to by somebody else"):
        journal.append(shard(1), resume(1))
    assert journal.path.read_bytes() == before
    journal.path.unlink()
    with pytest.raises(OutputError, match=r"cannot write .*journal\.jsonl"):
        other.append(shard(2), resume(2))
    assert not journal.path.exists()


def test_the_lines_in_memory_are_those_of_the_file(written: Path, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    journal.append(shard(3), resume(3))
    assert b"".join(journal.lines) == written.read_bytes()
    assert parse_journal(b"".join(journal.lines), where="here").shards == journal.shards


def test_a_source_file_that_is_another_by_now_is_named(tmp_path: Path) -> None:
    then = {**IDENTITY, "file states": [["a.jsonl", "9 bytes, modified 1"], ["b.jsonl", "9 bytes, modified 2"]]}
    Journal.open(tmp_path, then).append(shard(0), resume(0))
    assert Journal.open(tmp_path, then).shards == [shard(0)]
    now = {**IDENTITY, "file states": [["a.jsonl", "9 bytes, modified 1"], ["b.jsonl", "9 bytes, modified 3"]]}
    words = r"source file b\.jsonl: 9 bytes, modified 2 then, 9 bytes, modified 3 now\): .*overwrite=True"
    with pytest.raises(OutputError, match=words):
        Journal.open(tmp_path, now)


def test_a_run_whose_journal_has_no_states_of_the_source_files_goes_on(tmp_path: Path) -> None:
    Journal.open(tmp_path, IDENTITY).append(shard(0), resume(0))
    now = {**IDENTITY, "file states": [["a.jsonl", "9 bytes, modified 1"]]}
    assert Journal.open(tmp_path, now).shards == [shard(0)]
