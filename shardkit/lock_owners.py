"""Owner files: what holds a file where its file system has no locks (NFS without its lock service, Lustre without
`-o flock`, FUSE). `locks.py` says when.

`FILE.owner` is created exclusively, says which process of which host it is of, and is touched while that lives. It is
taken over from a process that is known to be dead, because it ran on this host, or that has not touched it for
`STALE_SECONDS`. filelock's `SoftFileLease` counts that time in the process that waits: one that fails at once where the
folder is busy, as a command does, would never take over what a dead machine left.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import psutil

from shardkit.files import read_small_file

TOUCH_SECONDS = 15.0
STALE_SECONDS = 180.0  # three times as long as NFS may show an old time
OWNER_SUFFIX = ".owner"
_MOST_BYTES = 4096


class _Owner(NamedTuple):
    """What an owner file says, all empty for one that says nothing yet, and when that was written or touched last."""

    host: str = ""
    pid: int = 0
    started: str = ""
    key: str = ""  # no two are alike
    touched: float = 0.0


class OwnerFile:
    """An owner file of this process; `release` deletes it."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key, self._pid = path, key, os.getpid()
        _TOUCHED.add(self)

    def move(self, final: Path) -> None:
        """To be the owner of another file. Raises `OSError`."""
        path = _owner_file(final)
        os.replace(self.path, path)
        self.path = path

    def is_ours(self) -> bool:
        """Whether it is still there, was not taken over, and is not our parent's."""
        with suppress(OSError):
            return self._pid == os.getpid() and _read(self.path).key == self._key
        return False

    def release(self) -> None:
        """Delete it, if it is ours."""
        _TOUCHED.discard(self)
        with suppress(OSError):
            if self.is_ours():
                self.path.unlink()

    def touch(self) -> None:
        with suppress(OSError):  # the next time, then
            os.utime(self.path)  # without a time: the file server's clock is everybody's


class _Touched:
    """The owner files that a thread of this process touches, as long as there are any."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._owned: set[OwnerFile] = set()
        self._pid = 0  # of the process whose thread runs

    def add(self, owned: OwnerFile) -> None:
        if self._pid not in (0, os.getpid()):  # a fork: what its parent holds is not its own
            self._forget()
        with self._lock:
            self._owned.add(owned)
            if not self._pid:
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="shardkit-locks", daemon=True).start()

    def discard(self, owned: OwnerFile) -> None:
        if self._pid == os.getpid():
            with self._lock:
                self._owned.discard(owned)

    def _run(self) -> None:
        while True:
            time.sleep(TOUCH_SECONDS)
            with self._lock:
                owned = list(self._owned)
                if not owned:
                    self._pid = 0
                    return
            for each in owned:
                each.touch()


_TOUCHED = _Touched()


def _owner_file(path: Path) -> Path:
    return path.with_name(path.name + OWNER_SUFFIX)


def is_owned(path: Path, *, by_others: bool = False) -> bool:
    """Whether a living process holds the file by an owner file. Raises `OSError`."""
    try:
        owner = _read(_owner_file(path))
    except FileNotFoundError:
        return False
    return not (by_others and (owner.host, owner.pid) == (_this_host(), os.getpid())) and _lives(owner, path.parent)


def own(path: Path) -> OwnerFile | None:
    """Become the owner of the file; None if a living process is. Raises `OSError`."""
    file = _owner_file(path)
    while True:
        key = uuid.uuid4().hex[:16]
        mine = {"host": _this_host(), "pid": os.getpid(), "started": _started(os.getpid()), "key": key}
        try:
            with open(file, "x", encoding="utf-8") as new, _removed_if_it_fails(file):
                new.write(json.dumps(mine))
                new.flush()
            return OwnerFile(file, key)
        except FileExistsError:
            pass
        try:
            owner = _read(file)
            if _lives(owner, path.parent):
                return None
            # One alone may remove a dead owner's file: else the second would remove the file of the first.
            heir = own(file.with_name(f"{file.name}.{owner.key}"))
            if heir is None:
                return None
            try:
                if _read(file) == owner:
                    file.unlink()
            finally:
                heir.release()
        except FileNotFoundError:  # it has let go meanwhile
            continue


@contextmanager
def _removed_if_it_fails(file: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # a full disk, or Ctrl-C: an owner without a name would count for minutes
        with suppress(OSError):
            file.unlink()
        raise


def _read(file: Path) -> _Owner:
    """Who owns the file. Raises `OSError`; a file that is empty yet, or damaged, has an owner without a name."""
    touched = file.stat().st_mtime
    try:
        stated = json.loads(read_small_file(file, _MOST_BYTES))
        if not re.fullmatch("[0-9a-f]{1,32}", key := str(stated["key"])):  # it becomes a part of a file's name
            return _Owner(touched=touched)
        return _Owner(str(stated["host"]), int(stated["pid"]), str(stated["started"]), key, touched)
    except (ValueError, KeyError, TypeError):
        return _Owner(touched=touched)


def _lives(owner: _Owner, folder: Path) -> bool:
    """Whether the owner may be alive: for certain where it runs, elsewhere if its file was touched of late."""
    if owner.host == _this_host() and (alive := _is_alive(owner)) is not None:
        return alive
    with tempfile.TemporaryFile(dir=folder) as now:  # by the clock that touched it
        return os.fstat(now.fileno()).st_mtime - owner.touched < STALE_SECONDS


def holder_of(path: Path) -> str:
    """Who holds the file by an owner file, to be added to a message; "" for the kernel's locks, that say nothing."""
    try:
        owner = _read(_owner_file(path))
    except OSError:
        return ""
    who = f"process {owner.pid} of {owner.host.partition(' ')[0]}" if owner.host else "a process"
    return (
        f" ({who} holds {_owner_file(path)}, as this file system has no locks; from one that ended without a word on "
        f"another machine it is taken over after {STALE_SECONDS / 60:.0f} minutes)"
    )


@lru_cache(maxsize=1)
def _this_host() -> str:
    """Tells the processes that we see from those of other machines and containers: their numbers say nothing here."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_alive(owner: _Owner) -> bool | None:
    """Whether a process of this machine runs; None for another user's, where the system does not show those."""
    if started := _started(owner.pid):
        return started == owner.started
    if os.name == "nt":  # where `os.kill` would end it
        return None if psutil.pid_exists(owner.pid) else False
    try:
        os.kill(owner.pid, 0)
    except PermissionError:
        return None
    except (OSError, OverflowError):
        pass
    return False


def _started(pid: int) -> str:
    """When a process of this machine started, by a clock that is never set; "" if none of that number is seen."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if after_name[0] == "Z" else after_name[19]
    except (OSError, IndexError):
        pass
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return ""
