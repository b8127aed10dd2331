"""A reader's note in a cache folder, and its care for the downloader: any reader may start or replace it.

A downloader that died is noticed at the next look, one that got stuck by its heartbeat; the reader raises what it said
before it ended, or how it ended. The downloader's own lock decides which one serves.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from shardkit import errors
from shardkit.errors import HubError, OutputError, ShardkitError
from shardkit.remote.streaming.folder import CacheFolder, Dataset, Process, ReaderNote, Status, shown, source_key

POLL_SECONDS = 0.02
STUCK_SECONDS = 5.0  # without a heartbeat
START_SECONDS = 60.0  # for Python and its imports, on a busy machine
DEATHS = 4  # of downloaders in a row that brought nothing


class _Child(subprocess.Popen[bytes]):
    """A process that may outlive us."""

    def __del__(self) -> None:
        """Not worth a warning, then."""


_children: list[_Child] = []  # that this process started: kept to be reaped


class Reader:
    """One process's part: its note, what it is sure of, and what it saw of the downloader.

    `sure` are wanted shards that the downloader vouched for: they stay while they are wanted, whoever downloads.
    """

    def __init__(
        self, folder: CacheFolder, source: str, revision: str | None, cache_bytes: int | None, digest: str
    ) -> None:
        self.folder = folder
        self.sure: set[str] = set()
        self._source, self._revision = source, revision
        self._left = False
        self._child: _Child | None = None
        self._dead: set[str] = set()  # generations
        self._deaths = 0
        self._cause = ""
        self._beat, self._silent, self._looked_at = 0, 0.0, time.monotonic()
        process = Process.current()
        note = ReaderNote(
            id=f"{process.pid}-{uuid.uuid4().hex[:8]}", process=process, serial=0, cache_bytes=cache_bytes,
            dataset=digest,
        )  # fmt: skip
        self.note = note
        self._path = folder.readers / f"{note.id}.json"
        self.tell(note)
        self._since = self._path.stat().st_mtime_ns

    def tell(self, note: ReaderNote) -> None:
        """Replace the note; what the downloader said before does not count any more."""
        self.note = replace(note, serial=self.note.serial + 1)
        self.folder.write(self._path, self.note)

    def leave(self) -> None:
        """Take the note away, in the process that wrote it."""
        if not self._left and self.note.process.pid == os.getpid():
            self._path.unlink(missing_ok=True)
            self._left = True

    def dataset(self) -> Dataset:
        """What the downloader opened, when it has. Raises its error, and `OutputError` where it is another's."""
        while True:
            found = self.folder.read_dataset()
            if found is not None and found.key != source_key(self._source):
                raise OutputError(
                    f"{self.folder.path} is the cache of {found.name}, not of {shown(self._source)}: give each its "
                    "own folder, or delete it"
                )
            status = self._attend()
            if found is not None and status is not None and status.dataset == found.digest:
                if self._revision not in (found.asked, found.revision):
                    raise OutputError(
                        f"{self.folder.path} is in use for revision {found.asked or 'main'} of {found.name}, not "
                        f"{self._revision or 'main'}: give another folder"
                    )
                return found
            time.sleep(POLL_SECONDS)

    def has(self, shard: str) -> bool:
        """Whether the downloader, knowing what this reader wants now, vouches for `shard`. Raises its error."""
        status = self._attend()
        if status is None or not status.dataset:
            return False
        if status.dataset != self.note.dataset:
            raise HubError(f"{self.folder.path} was given another dataset meanwhile: start again")
        if status.seen.get(self.note.id) != self.note.serial:
            return False
        if shard in status.errors:
            _raise(status.errors[shard])
        self.sure |= {*status.ready} & {*self.note.wants}
        return shard in self.sure

    def _attend(self) -> Status | None:
        """What a living downloader tells now; None while one is on its way. Starts, and replaces, downloaders."""
        status = self.folder.read_status()
        beat = self._beat_of_status()
        if status is not None and status.error is not None and beat > self._since:
            _raise(status.error)  # it ended while this reader was there; one that comes later tries anew
        if status is not None and status.error is None and status.process.lives:
            now = time.monotonic()
            # short looks only: this process may have been stopped itself, with or without the downloader
            self._silent = 0.0 if beat != self._beat else self._silent + min(now - self._looked_at, 0.5)
            self._beat, self._looked_at = beat, now
            if self._silent < STUCK_SECONDS:
                if not self._path.exists():
                    self.folder.write(self._path, self.note)
                return status
            self._cause = f"it did not move for {STUCK_SECONDS:.0f} s"
            status.process.kill()
        if status is not None and status.error is None and status.generation not in self._dead:
            self._dead.add(status.generation)
            self._count_death(brought=status.brought > 0)
        self._start()
        self._silent, self._looked_at = 0.0, time.monotonic()
        return None

    def _beat_of_status(self) -> int:
        try:
            return self.folder.status.stat().st_mtime_ns
        except OSError:
            return 0

    def _count_death(self, *, brought: bool) -> None:
        self._deaths = 0 if brought else self._deaths + 1
        if self._deaths < DEATHS:
            return
        code = None if self._child is None else self._child.poll()
        cause = self._cause or (_ending(code) if code else "killed from outside, or out of memory")
        words = self.folder.last_words()
        raise HubError(
            f"the downloader of {self.folder.path} ended {self._deaths} times in a row and brought nothing ({cause}"
            + (f"; its last words: {words}" if words else "")
            + "): make a new loader, it goes on"
        )

    def _start(self) -> None:
        """Start a downloader, unless somebody else is at it, and wait until it says a word."""
        lock = FileLock(self.folder.start_lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        try:
            status = self.folder.read_status()
            if status is not None and status.error is None and status.process.lives:
                return
            before = "" if status is None else status.generation
            self._cause = ""
            child = self._child = _spawn(self.folder, self._source, self._revision)
            deadline = time.monotonic() + START_SECONDS
            while child.poll() is None and time.monotonic() < deadline:
                status = self.folder.read_status()
                if status is not None and status.generation != before:
                    return
                time.sleep(POLL_SECONDS)
            child.kill()
            child.wait()
        finally:
            lock.release()
        status = self.folder.read_status()
        if status is None or status.generation == before:  # it died without a word
            self._count_death(brought=False)


def _spawn(folder: CacheFolder, source: str, revision: str | None) -> _Child:
    """Start `python -m shardkit.remote.streaming.downloader`; what is secret goes by standard input."""
    home = str(Path(__file__).parents[3])  # the same shardkit, however it was found here
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    with open(folder.log, "wb") as log:
        child = _Child(
            [sys.executable, "-m", "shardkit.remote.streaming.downloader", str(folder.path)],
            stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
            start_new_session=True,  # Ctrl-C and hang-ups are for the trainer
        )  # fmt: skip
    _children[:] = [old for old in _children if old.poll() is None] + [child]
    try:
        with child.stdin or open(os.devnull, "wb") as pipe:
            pipe.write(json.dumps({"source": source, "revision": revision}).encode())
    except OSError:  # it has ended already: its log says why
        pass
    return child


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _raise(said: tuple[str, str]) -> NoReturn:
    kind = getattr(errors, said[0], HubError)
    raise (kind if issubclass(kind, ShardkitError) else HubError)(said[1])
