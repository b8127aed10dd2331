"""Locks on files: held by one process at a time, and free when it dies. The one place that asks a system for them.

Where the file system has locks, they are the kernel's, else a file beside the one to be locked (`lock_owners.py`). A
kernel's lock is not held while an owner lives, so those who meet a lock service that comes and goes still exclude each
other, if the one without comes first.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import filelock

from shardkit.errors import OutputError
from shardkit.files import write_error
from shardkit.lock_owners import OwnerFile, holder_of, is_owned, own

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # errors of a file system without locks
_REFUSED = (*NO_LOCKS, errno.EIO)  # of a lock: some FUSE file systems say no more
_POLL_SECONDS, _HASTY_SECONDS = 0.05, 1.0
_LATER_POLL_SECONDS = 1.0  # who holds it that long may do so for minutes, and NFS is asked for each try
_TOLD_SECONDS = 5.0
_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
_TRIES = 100  # of a lock file whose folder was removed


class LockHeld(OutputError):
    """Another process or thread holds the lock that was asked for."""


class _NoLocksError(Exception):
    """The file system has no locks, or fails to give one."""


class HeldLock(NamedTuple):
    """A lock that is held. `is_ours()` says whether it still is: not where its file was removed or replaced since, and
    not where it was taken over from us, as an owner file is that was not touched for minutes."""

    is_ours: Callable[[], bool]
    release: Callable[[], None]


@contextmanager
def hold_lock(path: Path, *, busy: str | None, remove: bool = False) -> Iterator[HeldLock]:
    """Hold the lock file at `path`, made if need be, while the block runs; it is free if we die.

    Where another process or thread holds it, raises `LockHeld(busy)`, or waits if `busy` is None, and says once by
    the logger `shardkit` whose owner file it waits for. With `remove` the file is deleted at the end, and folders that
    were made for it, if they are empty then. Raises `OutputError` where it cannot be written.

    >>> from pathlib import Path
    >>> with hold_lock(Path("run.lock"), busy="another process is at work"):
    ...     with hold_lock(Path("run.lock"), busy="another process is at work"):
    ...         pass
    Traceback (most recent call last):
    shardkit.locks.LockHeld: another process is at work
    """
    made = [folder for folder in path.parents if remove and not os.path.exists(folder)]  # False for a name too long
    try:
        lock = _lock(path, wait=busy is None)
    except (BlockingIOError, filelock.Timeout):
        raise LockHeld(f"{busy}{holder_of(path)}") from None
    except OSError as error:
        raise write_error(error, path, 0) from None
    try:
        yield lock
    finally:
        if remove and lock.is_ours():
            with suppress(OSError):  # Windows does not delete an open file
                path.unlink()  # while it is held: whoever waits for this file finds that it is gone
        lock.release()
        with suppress(OSError):  # the first one that is not empty
            for folder in made:
                folder.rmdir()


def _lock(path: Path, *, wait: bool) -> HeldLock:
    """Lock the file that `path` names. Raises `BlockingIOError` if another holds it."""
    try:
        import fcntl  # noqa: F401
    except ImportError:  # Windows
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=-1 if wait else 0)
        lock.acquire()
        return HeldLock(lambda: lock.is_locked, lock.release)  # nobody can remove a file that is open
    began, told = time.monotonic(), False
    while True:
        try:
            descriptor = _flock(path, wait=wait)
        except _NoLocksError:
            if (owned := own(path)) is not None:
                return HeldLock(owned.is_ours, owned.release)
        else:
            if not is_owned(path):
                return HeldLock(partial(_is_open_as, path, descriptor), partial(os.close, descriptor))
            os.close(descriptor)
        if not wait:
            raise BlockingIOError(errno.EAGAIN, "locked")
        waited = time.monotonic() - began
        if waited >= _TOLD_SECONDS and not told and (holder := holder_of(path)):
            logging.getLogger("shardkit").warning("waiting for %s%s", path, holder)
            told = True
        time.sleep(_POLL_SECONDS if waited < _HASTY_SECONDS else _LATER_POLL_SECONDS)


def _flock(path: Path, *, wait: bool) -> int:
    """The descriptor that holds the kernel's lock of the file. Raises `_NoLocksError`, and `BlockingIOError`."""
    import fcntl

    missing = 0
    while missing < _TRIES:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, _OPEN | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its folder was removed since
            missing += 1
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_open_as(path, fd):
                return fd
        except PermissionError as error:  # how some file systems say that another holds it
            os.close(fd)
            raise BlockingIOError(errno.EAGAIN, "locked") from error
        except OSError as error:
            os.close(fd)
            if error.errno in _REFUSED:
                raise _NoLocksError from error
            raise
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its last holder deleted the file: one of us gets the next one
    raise FileNotFoundError(errno.ENOENT, "the folder comes and goes", str(path))


def _is_open_as(path: Path, fd: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(fd))
    return False


class ProcessLock:
    """A locked file: until `release`, or until this process dies. A fork of it has none of it, and lets go of none."""

    def __init__(self, path: Path, descriptor: int = -1, owned: OwnerFile | None = None) -> None:
        self._path, self._descriptor, self._owned, self._pid = path, descriptor, owned, os.getpid()

    def move(self, final: Path) -> None:
        """Rename the file, which stays locked. Raises `OSError`."""
        if self._owned is not None:
            self._owned.move(final)
        os.replace(self._path, final)
        self._path = final

    def release(self) -> None:
        """Let go of it; the file stays."""
        if self._pid != os.getpid():
            return
        if self._owned is not None:
            self._owned.release()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._owned, self._descriptor = None, -1


def lock_for_process(path: Path) -> ProcessLock | None:
    """Lock a file, made if need be, for this process; None where another has it. Raises `OutputError`.

    The kernel's lock is that of `lockf`: it belongs to a process and not to a descriptor. On Windows an owner file is
    the lock, as on a file system without locks.
    """
    try:
        descriptor = os.open(path, _OPEN | os.O_CREAT, 0o666)
        try:
            if _lockf(descriptor, "F_TLOCK") and not is_owned(path):
                return ProcessLock(path, descriptor)
        except _NoLocksError:
            os.close(descriptor)
            owned = own(path)
            return None if owned is None else ProcessLock(path, owned=owned)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    except OSError as error:
        raise write_error(error, path, 0) from None
    return None


def is_locked(path: Path) -> bool:
    """Whether a living process other than this one holds the file by `lock_for_process`. Raises `OutputError`."""
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise write_error(error, path, 0) from None
    try:
        if not _lockf(descriptor, "F_TEST"):
            return True
    except _NoLocksError:
        pass
    finally:
        os.close(descriptor)
    return is_owned(path, by_others=True)


def _lockf(descriptor: int, action: str) -> bool:
    if not hasattr(os, "lockf"):  # Windows: its locks would keep others from reading the file too
        raise _NoLocksError
    try:
        os.lockf(descriptor, getattr(os, action), 0)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno in _REFUSED:
            raise _NoLocksError from error
        raise
    return True
