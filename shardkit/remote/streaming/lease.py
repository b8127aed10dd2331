"""One reader of a cache folder: its lease, and the start of a downloader where none lives.

Readers that find no downloader each start one; the first that gets the downloader's lock serves, the others leave. A
downloader that was killed is replaced by whoever looks next; one that failed has told its readers why.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import IO

from shardkit import errors
from shardkit.errors import HubError, OutputError, ShardkitError
from shardkit.locks import ProcessLock, is_locked
from shardkit.redaction import public_address
from shardkit.remote.streaming.folder import CacheFolder, Dataset, Lease, Status, source_key
from shardkit.remote.streaming.room import RoomWait, when_there_is_room

POLL_SECONDS = 0.02
_MOST_ENDED = 4  # downloaders of one reader that failed or were killed, while it waited for one thing


class _Child(subprocess.Popen[bytes]):
    """A downloader that may outlive us. What is secret goes by its standard input; `log` has its last words."""

    def __init__(self, folder: CacheFolder, source: str, revision: str | None) -> None:
        home = str(Path(__file__).parents[3])  # the same shardkit, however this process got it
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __del__)
        except OSError:  # no temporary folder that can be written: then without last words
            self.log = open(os.devnull, "r+b")  # noqa: SIM115
        super().__init__(
            [sys.executable, "-m", "shardkit.remote.streaming.downloader", str(folder.path)],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # Ctrl-C and hang-ups are for the trainer
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        with contextlib.suppress(OSError), self.stdin or open(os.devnull, "wb") as pipe:
            pipe.write(json.dumps([source, revision]).encode())  # an error: it has ended already, its log says why

    def last_words(self) -> str:
        """The last line of its log, "" if there is none."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def __del__(self) -> None:
        """A child that is left running is not worth the warning of `Popen`."""
        self.log.close()


_children: list[_Child] = []  # that this process started: kept to be reaped


class Reader:
    """A lease of this process, and what is known from the downloader's answers to it.

    `ready` are wanted shards that the downloader vouched for: they stay while they are wanted, whoever downloads.
    """

    def __init__(
        self, folder: CacheFolder, source: str, revision: str | None, cache_bytes: int | None, digest: str = ""
    ) -> None:
        self.folder = folder
        self.pid = os.getpid()
        self.ready: set[str] = set()
        self.lease = Lease(id=f"{self.pid}-{uuid.uuid4().hex[:8]}", cache_bytes=cache_bytes, dataset=digest)
        self._source, self._revision = source, revision
        self._child: _Child | None = None
        self._ended = 0
        self._waiting = ""
        self._path = folder.readers / f"{self.lease.id}.json"
        self._room = RoomWait(folder.path)
        new_lease = functools.partial(folder.new_lease, self.lease.id)
        self._lock: ProcessLock | None = when_there_is_room(folder.path, new_lease)
        self.change(self.lease)

    def change(self, lease: Lease) -> None:
        """Write the lease anew; what the downloader answered to the one before does not count any more."""
        self.lease = replace(lease, serial=self.lease.serial + 1)
        self.ready &= set(lease.wants)
        when_there_is_room(self.folder.path, lambda: self.folder.write(self._path, self.lease))

    def leave(self) -> None:
        """End the lease, in the process that has it."""
        if self._lock is not None and self.pid == os.getpid():
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(".lock").unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def wait_for_dataset(self) -> Dataset:
        """What the downloader opened, when it has. Raises its error, and `OutputError` where it is another's."""
        while True:
            dataset = self.folder.read(self.folder.dataset, Dataset)
            if dataset is not None and dataset.key != source_key(public_address(self._source)):
                raise OutputError(
                    f"{self.folder.path} is the cache of {dataset.name}, not of {public_address(self._source)}: "
                    "give each its own folder, or delete it"
                )
            status = self._status()
            if dataset is not None and status is not None and status.dataset == dataset.digest:
                if self._revision not in (dataset.asked, dataset.revision):
                    raise OutputError(
                        f"{self.folder.path} is in use for revision {dataset.asked or 'main'} of {dataset.name}, not "
                        f"{self._revision or 'main'}: give another folder"
                    )
                return dataset
            time.sleep(POLL_SECONDS)

    def has(self, shard: str) -> bool:
        """Whether `shard`, which is wanted, is here and verified. Raises what keeps it away."""
        status = self._status()
        if status is None:
            return False
        if status.dataset != self.lease.dataset:
            raise HubError(f"{self.folder.path} was given another dataset meanwhile: start again")
        if shard in status.errors:
            raise _error(status.errors[shard])
        self.ready |= {*status.ready} & {*self.lease.wants}
        if shard in self.ready:
            self._ended = 0
        return shard in self.ready

    def _status(self) -> Status | None:
        """The downloader's answer to this lease, None before it comes. Starts a downloader where none lives."""
        self._room.look()  # a downloader that can write nothing says nothing
        running = is_locked(self.folder.lock) or (self._child is not None and self._child.poll() is None)
        status = self.folder.read(self.folder.status, Status)  # after that look: the last words of one that ended
        if status is not None and status.waiting != self._waiting:
            self._waiting = status.waiting
            if self._waiting:
                logging.getLogger("shardkit").warning("the downloader of %s: %s", self.folder.path, self._waiting)
        if status is not None and status.seen.get(self.lease.id) == self.lease.serial:
            if status.error is not None:
                raise _error(status.error)
        else:
            status = None
        if not running:
            self._start()
        return status

    def _start(self) -> None:
        """Start a downloader. Raises `HubError` where those before show that it is no use."""
        last, self._child = self._child, None
        if last is not None and last.returncode:
            self._ended += 1
            if self._ended == _MOST_ENDED:
                self._ended = 0
                killed = last.returncode < 0  # from outside, or the system was out of memory
                how = f"was killed (signal {-last.returncode})" if killed else "failed"
                raise HubError(
                    f"the downloader of {self.folder.path} {how}, {_MOST_ENDED} times, and brought nothing (last "
                    f"words: {last.last_words() or 'none'}): make a new loader, it goes on"
                )
        self._child = _Child(self.folder, self._source, self._revision)
        _children[:] = [child for child in _children if child.poll() is None] + [self._child]


def _error(said: list[str]) -> ShardkitError:
    kind, message = said if len(said) == 2 else ("", " ".join(said))
    error_class = getattr(errors, kind, HubError)
    is_ours = isinstance(error_class, type) and issubclass(error_class, ShardkitError)
    return error_class(message) if is_ours else HubError(message)
