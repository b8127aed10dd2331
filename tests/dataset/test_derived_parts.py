"""Arrays that are made in parts: by several processes at once, each part once, and the whole as if by one."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shardkit.dataset import checked_once
from shardkit.dataset.derived import derived_arrays
from shardkit.dataset.derived_parts import Part, arrays_of_parts

DTYPES = {"items": "<u2", "ends": "<i8"}
INDICES = {"ends": "items"}
PARTS = 9
ITEMS = [number for number in range(PARTS) for _ in range(number)]
ENDS = [number * (number + 1) // 2 for number in range(PARTS)]
MAKER = """
import os, sys, time, pathlib, numpy as np
from shardkit.dataset.derived_parts import arrays_of_parts
folder, log, others, dies_at = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
made = []
def make(number):
    made.append(number)
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {number}\\n")
    while len({line.split()[0] for line in log.read_text().splitlines()}) < others:
        time.sleep(0.01)
    if len(made) == dies_at:
        os._exit(7)
    return np.full(number, number), np.array([number])
found = arrays_of_parts(folder, "rows", "key", {"items": "<u2", "ends": "<i8"}, 9, make, indices={"ends": "items"})
print([array.tolist() for array in found.values()])
"""


def start(folder: Path, log: Path, *, others: int = 1, dies_at: int = 0) -> subprocess.Popen[str]:
    """A process that wants the arrays. Its parts are done once `others` processes, it among them, have begun some."""
    arguments = [str(folder), str(log), str(others), str(dies_at)]
    return subprocess.Popen([sys.executable, "-c", MAKER, *arguments], stdout=subprocess.PIPE, text=True)


def begin_and_die(folder: Path) -> None:
    """A process finishes three parts and dies in the fourth."""
    process = start(folder / "kept", folder / "log", dies_at=4)
    process.communicate()
    assert process.returncode == 7


def maker(calls: list[int]) -> Callable[[int], Part]:
    def make(number: int) -> Part:
        calls.append(number)
        return np.full(number, number), np.array([number])

    return make


def made(folder: Path | None, calls: list[int], parts: int = PARTS) -> list[list[int]]:
    found = arrays_of_parts(folder, "rows", "key", DTYPES, parts, maker(calls), indices=INDICES)
    assert [array.dtype.str for array in found.values()] == list(DTYPES.values())
    return [array.tolist() for array in found.values()]


def test_parts_are_laid_end_to_end_and_indices_count_from_the_beginning_of_all(tmp_path: Path) -> None:
    calls: list[int] = []
    assert made(None, calls) == made(tmp_path / "kept", calls) == made(tmp_path / "kept", calls) == [ITEMS, ENDS]
    assert sorted(calls) == sorted([*range(PARTS)] * 2)
    assert made(tmp_path / "one", [], parts=1) == [[], [0]]
    assert [path.name for path in tmp_path.rglob("*") if ".parts" in path.name or path.name.endswith(".tmp")] == []


def test_processes_that_want_the_same_make_it_together_and_each_part_once(tmp_path: Path) -> None:
    processes = [start(tmp_path / "kept", tmp_path / "log", others=3) for _ in range(3)]
    for process in processes:
        assert process.communicate()[0] == f"[{ITEMS}, {ENDS}]\n"
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(number) for _, number in lines) == list(range(PARTS))
    assert len({process for process, _ in lines}) == 3
    assert made(tmp_path / "kept", calls := []) == [ITEMS, ENDS]
    assert calls == []


def test_what_a_killed_process_finished_is_not_made_again(tmp_path: Path) -> None:
    begin_and_die(tmp_path)
    calls: list[int] = []
    assert made(tmp_path / "kept", calls) == [ITEMS, ENDS]
    assert len(calls) == PARTS - 3
    assert [path.name for path in (tmp_path / "kept").iterdir() if ".parts" in path.name] == []


def test_a_part_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    begin_and_die(tmp_path)
    (parts,) = (tmp_path / "kept").glob("*.parts")
    for part in parts.glob("0*"):
        if part.is_dir():
            os.truncate(part / "ends.npy", 128)
    assert made(tmp_path / "kept", calls := []) == [ITEMS, ENDS]
    assert sorted(calls) == list(range(PARTS))


def test_where_nothing_can_be_kept_each_part_is_made_once_and_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert made(tmp_path / "file" / "kept", calls := []) == [ITEMS, ENDS]
    assert calls == list(range(PARTS))


def test_the_whole_is_never_in_memory_while_it_is_made(tmp_path: Path) -> None:
    tracemalloc.start()
    arrays = derived_arrays(
        tmp_path, "rows", "key", {"items": "<i8"}, lambda: ((np.full(250_000, n),) for n in range(12))
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert arrays["items"].nbytes == 24_000_000
    assert peak < 8_000_000


def test_large_arrays_are_hashed_by_one_process_of_a_machine_and_again_where_they_changed_or_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    sha256_file = checked_once.sha256_file

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(checked_once, "sha256_file", count)
    monkeypatch.setattr(checked_once, "_LARGE_BYTES", 0)
    assert made(tmp_path, []) == made(tmp_path, calls := []) == [ITEMS, ENDS]
    assert hashed.count("items.npy") == calls.count(0) == 0  # who wrote it had read it back
    (home,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    damaged = bytearray((home / "items.npy").read_bytes())
    damaged[-1] ^= 1
    before = (home / "items.npy").stat()
    (home / "items.npy").write_bytes(damaged)
    os.utime(home / "items.npy", ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # also within a tick of its clock
    assert made(tmp_path, calls) == [ITEMS, ENDS]
    assert hashed.count("items.npy") > 0
    assert sorted(calls) == list(range(PARTS))
    hashed.clear()
    assert made(tmp_path, calls) == [ITEMS, ENDS]
    assert hashed.count("items.npy") == 0
    monkeypatch.setattr(checked_once, "_SECONDS", -1.0)
    assert made(tmp_path, calls) == [ITEMS, ENDS]
    assert hashed.count("items.npy") == 1
    assert len(calls) == PARTS
