"""`locks`: one holder at a time, also on a file system without locks (Lustre, NFS without its lock service, FUSE)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_data import make_dataset

from shardkit import lock_owners, locks
from shardkit.dataset.journal import JOURNAL_FILE, first_line
from shardkit.errors import DiskFull, OutputError
from shardkit.lock_owners import OWNER_SUFFIX, STALE_SECONDS
from shardkit.locks import hold_lock, is_locked, lock_for_process
from shardkit.remote.pull import pull
from shardkit.tokenization.output_folder import claim

HASTY = Path(__file__).parent / "support" / "hasty"
HOLD = """
import sys
from pathlib import Path
from shardkit.locks import hold_lock
with hold_lock(Path(sys.argv[1]), busy="held"):
    print("ready", flush=True)
    sys.stdin.read()
"""
LOOK = """
import sys
from pathlib import Path
from shardkit.locks import is_locked
print(is_locked(Path(sys.argv[1])))
"""
CODES = sorted({*locks.NO_LOCKS})


@pytest.fixture(params=CODES, ids=[errno.errorcode[code] for code in CODES])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for every process that the test starts."""

    def refuse(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "lockf", refuse)
    monkeypatch.setenv("WITHOUT_LOCKS", errno.errorcode[request.param])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HASTY), os.environ.get("PYTHONPATH", "")]))


@contextlib.contextmanager
def other_holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        try:
            yield holder
        finally:
            holder.kill()


def owner_of(path: Path) -> Path:
    return path.with_name(path.name + OWNER_SUFFIX)


def owned_elsewhere(path: Path, *, seconds_ago: float, host: str = "far", text: str | None = None) -> None:
    """The owner file of a process that this machine cannot see."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = {"host": host, "pid": os.getpid(), "started": "1", "key": "abc"}
    owner_of(path).write_text(json.dumps(stated) if text is None else text)
    then = time.time() - seconds_ago
    os.utime(owner_of(path), (then, then))


def hold_often(path: Path) -> int:
    """The most threads that held the lock at a time, of many that want it."""
    holders = most = 0

    def hold() -> None:
        nonlocal holders, most
        for _ in range(40):
            with hold_lock(path, busy=None, remove=True):
                holders += 1
                most = max(most, holders)
                os.sched_yield()
                holders -= 1

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


def is_held_until_its_holder_ends(path: Path) -> None:
    with (
        other_holder(path),
        pytest.raises(OutputError, match="held by another"),
        hold_lock(path, busy="held by another"),
    ):
        pass
    with (
        hold_lock(path, busy="free again"),
        pytest.raises(OutputError, match="held here"),
        hold_lock(path, busy="held here"),
    ):
        pass


def test_a_lock_is_held_against_other_threads_and_processes_until_its_holder_ends(tmp_path: Path) -> None:
    is_held_until_its_holder_ends(tmp_path / "made" / "a.lock")
    assert not owner_of(tmp_path / "made" / "a.lock").exists()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_it_is_held_until_its_holder_ends_too(tmp_path: Path) -> None:
    is_held_until_its_holder_ends(tmp_path / "made" / "a.lock")
    assert not owner_of(tmp_path / "made" / "a.lock").exists()


def test_a_lock_whose_file_goes_with_its_holder_is_never_held_twice(tmp_path: Path) -> None:
    assert hold_often(tmp_path / "folder" / "a.lock") == 1
    assert not list((tmp_path / "folder").iterdir())


def test_without_locks_it_is_never_held_twice_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.0)
    owned_elsewhere(tmp_path / "folder" / "a.lock", seconds_ago=STALE_SECONDS + 60)  # all of them find a dead owner
    assert hold_often(tmp_path / "folder" / "a.lock") == 1
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.usefixtures("without_locks")
def test_an_owner_on_another_machine_counts_while_it_touches_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    owned_elsewhere(path, seconds_ago=STALE_SECONDS - 60)
    expected = r"held \(process \d+ of far holds .*a\.lock\.owner, .* after 3 minutes\)$"
    with pytest.raises(OutputError, match=expected), hold_lock(path, busy="held"):
        pass
    owned_elsewhere(path, seconds_ago=STALE_SECONDS + 60)
    with hold_lock(path, busy="held"):
        assert json.loads(owner_of(path).read_text())["pid"] == os.getpid()


def test_who_waits_long_for_an_owner_says_so_once_and_asks_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    now, pauses = 0.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)
        if now > 60:
            owner_of(path).unlink()  # it lets go

    path = tmp_path / "a.lock"
    owned_elsewhere(path, seconds_ago=0)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "time", types.SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    with caplog.at_level("WARNING", "shardkit"), hold_lock(path, busy=None):
        pass
    (record,) = caplog.records
    assert record.name == "shardkit"
    assert re.match(rf"waiting for {path} \(process \d+ of far holds .* after 3 minutes\)$", record.getMessage())
    assert pauses[0] < 0.1
    assert set(pauses[30:]) == {1.0}
    assert len(pauses) < 100


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("text", ["", "{", '{"host": 1}', '{"host": "a", "pid": 1, "started": "1", "key": "../x"}'])
def test_an_owner_file_that_says_nothing_yet_counts_for_a_while(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.lock"
    owned_elsewhere(path, seconds_ago=0, text=text)
    with pytest.raises(OutputError, match="held"), hold_lock(path, busy="held"):
        pass
    owned_elsewhere(path, seconds_ago=STALE_SECONDS + 60, text=text)
    with hold_lock(path, busy="held"):
        pass


@pytest.mark.usefixtures("without_locks")
def test_a_number_that_another_process_has_by_now_is_a_dead_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    owned_elsewhere(path, seconds_ago=0, host=lock_owners._this_host())  # our number, started at another time
    with hold_lock(path, busy="held"):
        pass


def test_an_owner_touches_its_file_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    touched = threading.Event()
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock_owners, "TOUCH_SECONDS", 0.001)
    monkeypatch.setattr(os, "utime", lambda path: touched.set())
    monkeypatch.setattr(lock_owners, "_TOUCHED", lock_owners._Touched())
    with hold_lock(tmp_path / "a.lock", busy="held"):
        assert touched.wait(30)


def test_the_kernels_lock_is_not_held_beside_an_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    owned_elsewhere(path, seconds_ago=0)  # a process for which the lock service was away
    with pytest.raises(OutputError, match="held"), hold_lock(path, busy="held"):
        pass
    assert lock_for_process(path) is None
    assert is_locked(path)
    owned_elsewhere(path, seconds_ago=STALE_SECONDS + 60)
    with hold_lock(path, busy="held"):
        pass


@pytest.mark.usefixtures("without_locks")
def test_a_process_locks_and_moves_a_file_without_locks(tmp_path: Path) -> None:
    lock = lock_for_process(tmp_path / "young")
    assert lock is not None
    assert lock_for_process(tmp_path / "young") is None
    lock.move(tmp_path / "old")
    ask = [sys.executable, "-c", LOOK, str(tmp_path / "old")]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "True\n"
    assert not is_locked(tmp_path / "old")  # by others, that is
    lock.release()
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "False\n"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.usefixtures("without_locks")
def test_a_dataset_is_pulled_without_locks_and_one_at_a_time(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    with (
        other_holder(tmp_path / "b" / ".shardkit" / "pull.lock"),
        pytest.raises(OutputError, match="another pull into"),
    ):
        pull(str(tmp_path / "a"), tmp_path / "b")
    assert pull(str(tmp_path / "a"), tmp_path / "b") == manifest
    assert not (tmp_path / "b" / ".shardkit").exists()


@pytest.mark.usefixtures("without_locks")
def test_an_output_folder_is_claimed_without_locks_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        claim(tmp_path / "out", overwrite=False),
        pytest.raises(OutputError, match="another process is writing to"),
        claim(tmp_path / "out", overwrite=False),
    ):
        pass


@pytest.mark.usefixtures("without_locks")
def test_a_run_that_made_nothing_leaves_no_folder_where_there_are_no_locks(tmp_path: Path) -> None:
    with pytest.raises(ValueError), claim(tmp_path / "new" / "out", overwrite=False):
        raise ValueError
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_locks")
def test_a_lock_that_was_taken_over_is_not_ours_any_more_and_nothing_of_its_new_owner_is_removed(
    tmp_path: Path,
) -> None:
    lock, journal = tmp_path / "out" / ".shardkit" / "lock", tmp_path / "out" / JOURNAL_FILE

    def taken_over() -> None:
        owned_elsewhere(lock, seconds_ago=0)
        journal.write_bytes(first_line({"prefix": "p"}))
        raise ValueError

    with pytest.raises(ValueError), claim(tmp_path / "out", overwrite=False):
        taken_over()
    assert all(path.exists() for path in (lock, owner_of(lock), journal))
    with hold_lock(tmp_path / "b.lock", busy="held", remove=True) as held:
        assert held.is_ours()
        owned_elsewhere(tmp_path / "b.lock", seconds_ago=0)
        assert not held.is_ours()
    assert (tmp_path / "b.lock").exists()


def test_a_lock_whose_file_was_replaced_is_not_ours_any_more_and_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with hold_lock(path, busy="held", remove=True) as held:
        assert held.is_ours()
        path.rename(tmp_path / "away")
        assert not held.is_ours()
        with hold_lock(path, busy="held"):
            pass
    assert path.exists()


def test_a_folder_that_cannot_be_written_is_one_line_without_locks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    owner_of(tmp_path / "a.lock").mkdir()
    with (
        pytest.raises(OutputError, match=r"cannot write .*a\.lock") as caught,
        hold_lock(tmp_path / "a.lock", busy="x"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_system_without_fcntl_has_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    path = tmp_path / "a.lock"
    with (
        hold_lock(path, busy="free", remove=True),
        pytest.raises(OutputError, match="held"),
        hold_lock(path, busy="held"),
    ):
        pass


@pytest.mark.usefixtures("without_locks")
def test_an_owner_file_that_finds_no_room_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock_owners.json, "dumps", full)
    with pytest.raises(DiskFull, match="no room to write"), hold_lock(tmp_path / "a.lock", busy="held"):
        pass
    assert not owner_of(tmp_path / "a.lock").exists()
