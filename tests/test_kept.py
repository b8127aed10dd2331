"""Kept arrays: taken as they are where they are right, made again where not, by one process at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shardkit.kept import Parts, kept_arrays

DTYPES = {"small": "<u2", "large": "<i8"}
MAKER = """
import os, sys, time, pathlib, numpy as np
from shardkit.kept import kept_arrays
folder, log, wait = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
def make():
    with open(log, "a") as file:
        file.write("made\\n")
    yield np.arange(3), np.arange(5)
    time.sleep(wait)
    yield np.arange(2), np.arange(1)
if len(sys.argv) > 4:
    os.seteuid(int(sys.argv[4]))
found = kept_arrays(folder, "rows", "key", {"small": "<u2", "large": "<i8"}, make)
print([array.tolist() for array in found.values()])
"""
MADE = "[[0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 0]]"


def start(folder: Path, log: Path, wait: float, user: int | None = None) -> subprocess.Popen[str]:
    """A process that wants the arrays, as `user`, and takes `wait` seconds in the middle of making them."""
    arguments = [str(folder), str(log), str(wait), *([] if user is None else [str(user)])]
    command = [sys.executable, "-c", MAKER, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def maker(value: int, calls: list[int]) -> Callable[[], Parts]:
    def make() -> Iterator[tuple[np.ndarray, ...]]:
        calls.append(value)
        yield np.full(3, value), np.full(2, value)
        yield np.full(1, value), np.empty(0, np.int64)

    return make


def kept(folder: Path | None, value: int, calls: list[int], key: str = "key") -> list[list[int]]:
    """What `kept_arrays` gives, made of `value`s where it has to be made; `calls` gets a `value` then."""
    found = kept_arrays(folder, "rows", key, DTYPES, maker(value, calls))
    assert [array.dtype.str for array in found.values()] == list(DTYPES.values())
    return [array.tolist() for array in found.values()]


def home_of(folder: Path) -> Path:
    (home,) = [path for path in folder.iterdir() if path.is_dir()]
    return home


def test_what_is_kept_is_made_once_and_of_another_key_anew(tmp_path: Path) -> None:
    calls: list[int] = []
    folder = tmp_path / "a" / "b"
    assert kept(folder, 7, calls) == kept(folder, 8, calls) == [[7] * 4, [7] * 2]
    assert kept(folder, 9, calls, key="other") == [[9] * 4, [9] * 2]
    assert kept(None, 5, calls) == [[5] * 4, [5] * 2]
    assert calls == [7, 9, 5]
    names = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in names if "train" in name or "val" in name or name.endswith(".tmp")]


def test_kept_arrays_are_plain_files_that_numpy_reads_and_are_mapped_read_only(tmp_path: Path) -> None:
    found = kept_arrays(tmp_path, "rows", "key", DTYPES, maker(3, []))
    assert np.load(home_of(tmp_path) / "small.npy").tolist() == [3] * 4
    with pytest.raises(ValueError, match="read-only"):
        found["small"][0] = 1


def test_arrays_may_be_empty(tmp_path: Path) -> None:
    for _ in range(2):
        found = kept_arrays(tmp_path, "rows", "key", DTYPES, lambda: iter(()))
        assert [array.shape for array in found.values()] == [(0,), (0,)]


def cut(home: Path) -> None:
    os.truncate(home / "large.npy", 130)


def flip(home: Path) -> None:
    data = bytearray((home / "small.npy").read_bytes())
    data[-1] ^= 1
    (home / "small.npy").write_bytes(data)


def lose(home: Path) -> None:
    (home / "small.npy").unlink()


def lose_key(home: Path) -> None:
    (home / "kept.json").unlink()


def foreign_key(home: Path) -> None:
    text = (home / "kept.json").read_text()
    (home / "kept.json").write_text(text.replace('"key": "key"', '"key": "yek"'))


def no_json(home: Path) -> None:
    (home / "kept.json").write_bytes(b"\xff[")


def other_json(home: Path) -> None:
    (home / "kept.json").write_text("[]")


def outside(home: Path) -> None:
    text = (home / "kept.json").read_text()
    (home / "kept.json").write_text(text.replace("small.npy", "../small.npy"))


@pytest.mark.parametrize("damage", [cut, flip, lose, lose_key, foreign_key, no_json, other_json, outside])
def test_what_is_damaged_or_foreign_is_made_again_and_kept(damage: Callable[[Path], None], tmp_path: Path) -> None:
    calls: list[int] = []
    kept(tmp_path, 1, calls)
    damage(home_of(tmp_path))
    assert kept(tmp_path, 2, calls) == kept(tmp_path, 3, calls) == [[2] * 4, [2] * 2]
    assert calls == [1, 2]


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    folder, log = tmp_path / "kept", tmp_path / "log"
    first = start(folder, log, 1.0)
    wait_for(log)
    others = [start(folder, log, 0) for _ in range(2)]
    assert [result(process) for process in (first, *others)] == [MADE] * 3
    assert log.read_text() == "made\n"


def test_a_killed_maker_frees_those_who_wait_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder, log = tmp_path / "kept", tmp_path / "log"
    first = start(folder, log, 600)
    wait_for(log)
    second = start(folder, log, 0)
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert result(second) == MADE
    assert log.read_text() == "made\nmade\n"
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))
    assert kept(folder, 1, []) == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 0]]


def test_a_folder_that_cannot_be_written_serves_what_it_has_and_keeps_nothing(tmp_path: Path) -> None:
    calls: list[int] = []
    (tmp_path / "file").touch()
    assert kept(tmp_path / "file" / "kept", 4, calls) == kept(tmp_path / "file", 4, calls) == [[4] * 4, [4] * 2]
    with open_to_all() as folder:
        log = folder / "log"
        log.touch()
        log.chmod(0o666)
        nobody = 65534 if os.geteuid() == 0 else None  # root may write anywhere
        (folder / "kept").mkdir()
        (folder / "kept").chmod(0o555)
        assert result(start(folder / "kept", log, 0, user=nobody)) == MADE
        assert not list((folder / "kept").iterdir())
        (folder / "kept").chmod(0o755)
        assert result(start(folder / "kept", log, 0)) == MADE
        (folder / "kept").chmod(0o555)
        assert result(start(folder / "kept", log, 0, user=nobody)) == MADE
        assert log.read_text() == "made\n" * 2  # the third found it there


@contextlib.contextmanager
def open_to_all() -> Iterator[Path]:
    """A folder that another user may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as temp:
        Path(temp).chmod(0o755)
        yield Path(temp)


def test_a_disk_that_fills_up_leaves_the_arrays_in_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    calls: list[int] = []

    def make() -> Iterator[tuple[np.ndarray, ...]]:
        calls.append(1)
        yield np.zeros(50_000, np.int64), np.zeros(50_000, np.int64)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        found = kept_arrays(tmp_path, "rows", "key", DTYPES, make)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [len(array) for array in found.values()] == [50_000] * 2
    assert len(calls) == 2
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
