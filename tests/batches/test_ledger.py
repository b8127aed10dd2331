"""The ledger: equal for equal data under any cut, different for any other, and merged over ranks and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardkit.batches.ledger import Ledger, LedgerWriter, merge_ledger
from shardkit.batches.order import Cut
from shardkit.errors import OutputError, StateError

IDENTITY = {"seed": 1, "fingerprint": "f"}
ROWS = (np.arange(1800) * 7919 % 50_000).reshape(200, 9).astype("<u2")  # those at 200 positions


def feed(
    folder: Path, cut: tuple[int, int], *, start: int = 0, steps: int = 4, rows: NDArray[np.uint16] = ROWS
) -> None:
    """Write what all ranks would of `steps` global batches from position `start` on."""
    batch_size, world_size = cut
    for rank in range(world_size):
        whole = Cut(batch_size=batch_size, world_size=world_size)
        writer = LedgerWriter(folder, IDENTITY, whole, rank)
        for position in range(start, start + steps * whole.global_batch, whole.global_batch):
            first = position + rank * batch_size
            writer.hash_rows(position, rows[first : first + batch_size])
            writer.record(position)
        writer.close()


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=2),
    start=st.integers(0, 20),
)
def test_ledgers_are_equal_under_any_cut(
    cuts: list[tuple[int, int]], start: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    merged = []
    for batch_size, world_size in cuts:
        folder = tmp_path_factory.mktemp("ledger")
        feed(folder, (batch_size, world_size), start=start, steps=144 // (batch_size * world_size))
        merged.append(merge_ledger(folder))
    first, second = merged
    assert start + 144 in first.running
    assert first.running[start + 144] == second.running[start + 144]
    assert first.first_difference(second) is None


def test_the_ledger_is_frozen(tmp_path: Path) -> None:
    feed(tmp_path, (2, 2), steps=2)
    assert merge_ledger(tmp_path).running == {
        4: "4654ea045d01eaf5eab1d9930b2332c2",
        8: "bfee6eb89fdf1a6b612cdfcf9ed57d36",
    }


@pytest.mark.parametrize("change", ["a token", "two rows swapped", "a row given twice"])
def test_other_data_shows_at_the_batch_in_which_it_came(change: str, tmp_path: Path) -> None:
    rows = ROWS.copy()
    if change == "a token":
        rows[9, 3] ^= 1
    elif change == "two rows swapped":
        rows[[9, 10]] = rows[[10, 9]]
    else:
        rows[9] = rows[10]
    feed(tmp_path / "one", (2, 2))
    feed(tmp_path / "other", (2, 2), rows=rows)
    assert merge_ledger(tmp_path / "one").first_difference(merge_ledger(tmp_path / "other")) == 12


def test_a_killed_run_and_its_resumes_merge_to_the_uninterrupted_one(tmp_path: Path) -> None:
    feed(tmp_path / "whole", (1, 1), steps=48)
    feed(tmp_path / "parts", (2, 4), steps=3)  # saved at 16, killed after 24
    last = sorted((tmp_path / "parts").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-20])  # the last rank was in its third batch
    feed(tmp_path / "parts", (1, 2), start=16, steps=4)  # saved at 20, killed after 24
    feed(tmp_path / "parts", (4, 1), start=20, steps=7)
    whole, parts = merge_ledger(tmp_path / "whole"), merge_ledger(tmp_path / "parts")
    assert whole.first_difference(parts) is None
    assert whole.running[48] == parts.running[48]
    assert sorted(parts.running) == [8, 16, 18, 20, 22, 24, 28, 32, 36, 40, 44, 48]


def test_a_resumed_run_that_gave_other_data_is_found_out(tmp_path: Path) -> None:
    feed(tmp_path, (2, 2), steps=4)
    feed(tmp_path, (2, 1), start=8, steps=2, rows=ROWS[::-1])
    with pytest.raises(StateError, match="gave other data between 8 and 12 than the run before it"):
        merge_ledger(tmp_path)


def test_a_ledger_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="holds no ledger"):
        merge_ledger(tmp_path)
    feed(tmp_path, (1, 3), steps=2)
    files = sorted(tmp_path.iterdir())
    kept = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(StateError, match="lacks rank 1 of the run from window 0"):
        merge_ledger(tmp_path)
    files[1].write_bytes(without_checks(kept).replace(b"[3,", b"[4,"))
    with pytest.raises(StateError, match="no entry for position 3 on every rank"):
        merge_ledger(tmp_path)
    for damaged in (b"", b"{}\n", b"[1]\n", kept[:-5] + b"?\n", b"\xff\n"):
        files[1].write_bytes(damaged)
        with pytest.raises(StateError, match="is not a whole ledger file"):
            merge_ledger(tmp_path)
    files[1].write_bytes(without_checks(kept).replace(b'"seed": 1', b'"seed": 2'))
    with pytest.raises(StateError, match="is of another dataset or order"):
        merge_ledger(tmp_path)
    files[1].write_bytes(kept)
    feed(tmp_path, (1, 3), start=7, steps=1)
    with pytest.raises(StateError, match="files of an earlier run are missing"):
        merge_ledger(tmp_path)


def without_checks(ledger: bytes) -> bytes:
    """A file of a ledger as the first releases wrote it."""
    header, *entries = map(json.loads, ledger.splitlines())
    del header["check"]
    return b"".join(json.dumps(record).encode() + b"\n" for record in (header, *(entry[:2] for entry in entries)))


def test_a_ledger_of_the_first_releases_is_read(tmp_path: Path) -> None:
    feed(tmp_path / "now", (2, 2))
    feed(tmp_path / "then", (2, 2))
    for path in (tmp_path / "then").iterdir():
        path.write_bytes(without_checks(path.read_bytes()))
    assert merge_ledger(tmp_path / "then") == merge_ledger(tmp_path / "now")


def test_a_changed_byte_is_a_damaged_file_and_never_other_data(tmp_path: Path) -> None:
    feed(tmp_path, (1, 1), steps=3)
    whole, [path] = merge_ledger(tmp_path), list(tmp_path.iterdir())
    text = path.read_bytes()
    for place in range(len(text) - 1):  # without the last line's end, that line is a torn one
        path.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        with pytest.raises(StateError, match=r"is not a whole ledger file"):
            merge_ledger(tmp_path)
    path.write_bytes(text[:-1])
    assert merge_ledger(tmp_path).running.items() < whole.running.items()


def test_ledgers_that_cannot_be_compared_say_so() -> None:
    one = Ledger(identity=IDENTITY, start=0, running={4: "a"})
    with pytest.raises(StateError, match="of different data"):
        one.first_difference(Ledger(identity={"seed": 2}, start=0, running={4: "a"}))
    with pytest.raises(StateError, match="no batch end in common"):
        one.first_difference(Ledger(identity=IDENTITY, start=0, running={5: "a"}))


def test_a_ledger_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write the ledger in .*/file"):
        feed(tmp_path / "file", (1, 1))


@pytest.mark.parametrize(
    "change",
    [
        *(('"rank": 1', f'"rank": {value}') for value in ("-1", "1.0", "true", "null", "2", "[]")),
        *(('"world_size": 2', f'"world_size": {value}') for value in ("0", "-1", '"2"', "1e999", "{}", "1" * 5_000)),
        *(('"batch_size": 3', f'"batch_size": {value}') for value in ("0", "-3", "NaN", "3.0", "18446744073709551616")),
        *(("[6, ", f"[{value}, ") for value in ("-3", "3.0", "true", "null", "1e999", "[" * 100_000)),
        *(('"]', value) for value in ('00"]', '", 1]', "]", '"}')),
        ('{"', "[" * 100_000 + '{"'),
        ('{"', '["start", "batch_size", "world_size", "rank", "'),
    ],
)
def test_a_hostile_ledger_file_is_refused_in_one_line(tmp_path: Path, change: tuple[str, str]) -> None:
    feed(tmp_path, (3, 2), steps=2)
    path = sorted(tmp_path.iterdir())[1]
    text = without_checks(path.read_bytes()).decode()  # else that would find it
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(StateError, match="is not a whole ledger file") as caught:
        merge_ledger(tmp_path)
    assert len(str(caught.value)) < 500


def test_a_ledger_that_claims_countless_ranks_costs_no_memory(tmp_path: Path) -> None:
    feed(tmp_path, (3, 2), steps=2)
    for path in tmp_path.iterdir():
        text = without_checks(path.read_bytes()).decode()
        path.write_text(text.replace('"world_size": 2', f'"world_size": {1 << 60}'))
    with pytest.raises(StateError, match="lacks rank 2, 3, 4, 5, 6 and more of the run"):
        merge_ledger(tmp_path)
