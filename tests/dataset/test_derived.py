"""Kept arrays: taken as they are where they are right, made again where not, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import json
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

from shardkit.dataset.derived import Parts, derived_arrays
from shardkit.files import sha256_file

DTYPES = {"small": "<u2", "large": "<i8"}
MAKER = """
import os, sys, time, pathlib, numpy as np
from shardkit.dataset.derived import derived_arrays
folder, log, go = map(pathlib.Path, sys.argv[1:4])
def make():
    with open(log, "a") as file:
        file.write("made\\n")
    yield np.arange(3), np.arange(5)
    while not go.exists():
        time.sleep(0.01)
    yield np.arange(2), np.arange(1)
if len(sys.argv) > 4:
    os.seteuid(int(sys.argv[4]))
print("begun", flush=True)
found = derived_arrays(folder, "rows", "key", {"small": "<u2", "large": "<i8"}, make)
print([array.tolist() for array in found.values()])
"""
MADE = "[[0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 0]]"


def start(folder: Path, log: Path, go: Path, user: int | None = None) -> subprocess.Popen[str]:
    """A process that is about to want the arrays, as `user`; in the middle of making them it waits for `go`."""
    arguments = [str(folder), str(log), str(go), *([] if user is None else [str(user)])]
    command = [sys.executable, "-c", MAKER, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n", process.communicate()
    return process


def result(process: subprocess.Popen[str]) -> str:
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()  # `communicate` forgets what `readline` read ahead
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
    """What `derived_arrays` gives, made of `value`s where it has to be made; `calls` gets a `value` then."""
    found = derived_arrays(folder, "rows", key, DTYPES, maker(value, calls))
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
    found = derived_arrays(tmp_path, "rows", "key", DTYPES, maker(3, []))
    assert np.load(home_of(tmp_path) / "small.npy").tolist() == [3] * 4
    with pytest.raises(ValueError, match="read-only"):
        found["small"][0] = 1


def test_arrays_may_be_empty(tmp_path: Path) -> None:
    for _ in range(2):
        found = derived_arrays(tmp_path, "rows", "key", DTYPES, lambda: iter(()))
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


def nested_json(home: Path) -> None:
    (home / "kept.json").write_text("[" * 100_000)


def of_a_stranger(home: Path) -> None:
    """Arrays of another shape and type, whose hashes are right."""
    np.save(home / "small.npy", np.zeros((2, 2), "<f8"))
    (home / "kept.json").write_text(
        json.dumps({"key": "key", "files": {f"{name}.npy": sha256_file(home / f"{name}.npy") for name in DTYPES}})
    )


def outside(home: Path) -> None:
    text = (home / "kept.json").read_text()
    (home / "kept.json").write_text(text.replace("small.npy", "../small.npy"))


@pytest.mark.parametrize(
    "damage", [cut, flip, lose, lose_key, foreign_key, no_json, other_json, nested_json, of_a_stranger, outside]
)
def test_what_is_damaged_or_foreign_is_made_again_and_kept(damage: Callable[[Path], None], tmp_path: Path) -> None:
    calls: list[int] = []
    kept(tmp_path, 1, calls)
    damage(home_of(tmp_path))
    assert kept(tmp_path, 2, calls) == kept(tmp_path, 3, calls) == [[2] * 4, [2] * 2]
    assert calls == [1, 2]


def test_a_file_system_without_locks_keeps_the_arrays_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    calls: list[int] = []
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert kept(tmp_path, 1, calls) == kept(tmp_path, 2, calls) == [[1] * 4, [1] * 2]
    assert calls == [1]


def test_of_several_processes_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    folder, log, go = tmp_path / "kept", tmp_path / "log", tmp_path / "go"
    first = start(folder, log, go)
    wait_for(log)
    others = [start(folder, log, go) for _ in range(2)]
    time.sleep(0.2)  # they have come to the lock
    go.touch()
    assert [result(process) for process in (first, *others)] == [MADE] * 3
    assert log.read_text() == "made\n"


def test_a_killed_maker_frees_those_who_wait_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder, log, go = tmp_path / "kept", tmp_path / "log", tmp_path / "go"
    first = start(folder, log, go)
    wait_for(log)
    second = start(folder, log, go)
    time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    go.touch()
    assert result(second) == MADE
    assert log.read_text() == "made\nmade\n"
    assert not list(folder.glob(".*.tmp"))
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
        assert result(start(folder / "kept", log, log, user=nobody)) == MADE
        assert not list((folder / "kept").iterdir())
        (folder / "kept").chmod(0o755)
        assert result(start(folder / "kept", log, log)) == MADE
        (folder / "kept").chmod(0o555)
        assert result(start(folder / "kept", log, log, user=nobody)) == MADE
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
        found = derived_arrays(tmp_path, "rows", "key", DTYPES, make)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [len(array) for array in found.values()] == [50_000] * 2
    assert len(calls) == 1
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_disk_that_fills_up_in_the_middle_loses_nothing_of_what_was_written_before(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    calls: list[int] = []

    def make() -> Iterator[tuple[np.ndarray, ...]]:
        for number in range(5):
            calls.append(number)
            yield np.full(50_000, number), np.full(50_000, number)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))  # the larger array does not fit
        found = derived_arrays(tmp_path, "rows", "key", DTYPES, make)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert calls == list(range(5))
    for array in found.values():
        assert array.tolist() == np.repeat(np.arange(5), 50_000).tolist()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
