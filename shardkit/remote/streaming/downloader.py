"""The process that fills a cache folder: `python -m shardkit.downloader CACHE_FOLDER`, one a folder, held by a lock.

It owns the network and every file in the folder but the readers' notes. `shardkit.cache` starts it, tells it the source
by standard input, and says by notes what is needed; it answers by `status.json`. It ends when no reader lives, when
the dataset cannot be opened (the status says why), or killed: then a reader starts another, which goes on from what is
there. It is a process, not a thread, so that hashing and network never hold up a training step.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shardkit.errors import DiskFull, ShardkitError
from shardkit.files import format_bytes, free_bytes, sha256_file
from shardkit.network import scrub
from shardkit.remote.download import download_verified
from shardkit.remote.streaming.contents import OpenDataset, in_order_of_need, open_dataset, wanted_file
from shardkit.remote.streaming.folder import CacheFolder, Process, ReaderNote, Status, shown

DOWNLOADS = 4  # at once
POLL_SECONDS = 0.03
BEAT_SECONDS = 0.5
LINGER_SECONDS = 1.0  # without readers: one may be on its way, as where workers take over from their parent
LOCK_SECONDS = 10.0
BLOCKED_SECONDS = 60.0  # without room while what the readers want does not change


FIRST_AGAIN_SECONDS, LAST_AGAIN_SECONDS = 30.0, 300.0  # after a shard failed


@dataclasses.dataclass(slots=True)
class _Failure:
    """Why a shard is not there, who knows, and when it is tried again: a remote may be well before it is needed."""

    error: ShardkitError
    readers: frozenset[str]
    wait: float
    again_at: float


class Downloader:
    """One generation of a folder's downloader. `run` returns when there is nobody to serve."""

    def __init__(self, folder: CacheFolder, source: str, revision: str | None) -> None:
        self.folder = folder
        self.source, self.revision = source, revision
        self._status = Status(generation=uuid.uuid4().hex, process=Process.current())
        self._beat_at = self._blocked_at = 0.0
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="shardkit-download")
        self._jobs: dict[Future[bool], str] = {}
        self._verified: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._brought = 0
        self._last_wants: list[tuple[str, ...]] = []

    def run(self) -> None:
        """Serve the readers until none is left. Raises `ShardkitError` if the dataset cannot be opened."""
        self._tell(self._status)
        shutil.rmtree(self.folder.incoming, ignore_errors=True)
        opening = self._pool.submit(open_dataset, self.folder, self.source, self.revision)
        alone_since: float | None = None
        while True:
            readers = self.folder.live_readers()
            alone_since = None if readers else alone_since or time.monotonic()
            if alone_since is not None and time.monotonic() - alone_since > LINGER_SECONDS:
                return
            if opening.done():
                self._serve(opening.result(), readers)
            else:
                self._tell(self._status)
            pending: list[Future[Any]] = [*self._jobs] or [opening]
            wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            if opening.done() and not self._jobs:
                time.sleep(POLL_SECONDS)

    def fail(self, error: ShardkitError) -> None:
        """Leave why this generation ends."""
        self._tell(dataclasses.replace(self._status, error=self._said(error)))

    def _serve(self, dataset: OpenDataset, readers: Sequence[ReaderNote]) -> None:
        """One round: take in what arrived, make room, start what is needed next, tell."""
        self._collect(dataset, readers)
        wants = [tuple(shard for shard in note.wants if shard in dataset.shards) for note in readers]
        order = in_order_of_need(wants)
        dataset.room.want(order)
        bounds = [note.cache_bytes for note in readers if note.cache_bytes is not None]
        bound = min(bounds) - dataset.small_bytes if bounds else None
        refused = dataset.refused(wants, bound)
        refused |= self._start(dataset, [shard for shard in order if shard not in refused], bound, wants)
        errors = {shard: self._failures[shard].error for shard in order if self._rests(shard)} | refused
        self._tell(
            dataclasses.replace(
                self._status,
                dataset=dataset.digest,
                ready=tuple(shard for shard in order if shard in self._verified),
                seen={note.id: note.serial for note in readers},
                errors={shard: self._said(error) for shard, error in errors.items()},
                brought=self._brought,
            )
        )

    def _collect(self, dataset: OpenDataset, readers: Sequence[ReaderNote]) -> None:
        known = frozenset(note.id for note in readers)
        for job in [job for job in self._jobs if job.done()]:
            shard = self._jobs.pop(job)
            error = job.exception()
            if error is None and job.result():
                if shard in dataset.room.coming:
                    dataset.room.arrive(shard)
                self._verified.add(shard)
                self._brought += 1
                self._failures.pop(shard, None)
                continue
            dataset.room.drop(shard)
            if error is not None:
                if not isinstance(error, ShardkitError):
                    raise error
                self._fail(shard, error, known)
        for shard, failure in list(self._failures.items()):
            wanting = {note.id for note in readers if shard in note.wants}
            if wanting - failure.readers:  # a fresh reader gets a fresh try
                del self._failures[shard]

    def _fail(self, shard: str, error: ShardkitError, readers: frozenset[str]) -> None:
        before = self._failures.get(shard)
        pause = FIRST_AGAIN_SECONDS if before is None else min(2 * before.wait, LAST_AGAIN_SECONDS)
        self._failures[shard] = _Failure(error, readers, pause, time.monotonic() + pause)

    def _start(
        self, dataset: OpenDataset, order: Sequence[str], bound: int | None, wants: list[tuple[str, ...]]
    ) -> dict[str, ShardkitError]:
        """Start what is needed next, as far as there is room; returns what waited for room too long, and why."""
        room, running, blocked = dataset.room, set(self._jobs.values()), None
        wanted = {*running, *(shard for shards in wants for shard in shards)}
        for shard in room.make(0, bound=bound, free=sys.maxsize, wanted=wanted) or []:  # a smaller bound has come
            self._evict(dataset, shard)
        for shard in order:
            if len(self._jobs) >= DOWNLOADS:
                break
            if shard in self._verified or shard in running or self._rests(shard):
                continue
            if shard in room.held:  # left by an earlier generation
                self._jobs[self._pool.submit(self._check, dataset, shard)] = shard
                continue
            if blocked is not None:  # what is farther off must not take the room that comes
                continue
            free = free_bytes(self.folder.path)
            leaving = room.make(dataset.sizes[shard], bound=bound, free=free, wanted=wanted)
            if leaving is None:
                blocked = shard, free
                continue
            for old in leaving:
                self._evict(dataset, old)
            room.coming[shard] = dataset.sizes[shard]
            self._jobs[self._pool.submit(self._fetch, dataset, shard)] = shard
        if blocked is not None:
            return self._blocked(dataset, *blocked, bound, wants)
        self._blocked_at = 0.0
        return {}

    def _rests(self, shard: str) -> bool:
        failure = self._failures.get(shard)
        return failure is not None and time.monotonic() < failure.again_at

    def _blocked(
        self, dataset: OpenDataset, shard: str, free: int, bound: int | None, wants: list[tuple[str, ...]]
    ) -> dict[str, ShardkitError]:
        """There is no room for `shard`: an error if nothing that still moves can make any."""
        if self._jobs:
            return {}
        size = dataset.sizes[shard]
        if dataset.room.make(size, bound=bound, free=free, wanted=()) is None:  # not even if the readers let all go
            advice = "make room, or give cache_bytes to have old shards deleted" if bound is None else "make room"
            return {
                shard: DiskFull(
                    f"no room in {self.folder.path}: {format_bytes(size)} are to come, {format_bytes(free)} are free; "
                    f"{advice}"
                )
            }
        if not self._blocked_at or wants != self._last_wants:
            self._blocked_at, self._last_wants = time.monotonic(), list(wants)
        if time.monotonic() - self._blocked_at < BLOCKED_SECONDS:
            return {}
        union = sum(dataset.sizes[name] for name in in_order_of_need(wants)) + dataset.small_bytes
        return {
            shard: DiskFull(
                f"no room for {shard} in {self.folder.path}: its {len(wants)} readers together need "
                f"{format_bytes(union)}, cache_bytes is {format_bytes((bound or 0) + dataset.small_bytes)}, and none "
                f"has moved on for {BLOCKED_SECONDS:.0f} s: give more, or a smaller span"
            )
        }

    def _evict(self, dataset: OpenDataset, shard: str) -> None:
        (self.folder.path / shard).unlink(missing_ok=True)
        dataset.room.drop(shard)
        self._verified.discard(shard)

    def _check(self, dataset: OpenDataset, shard: str) -> bool:
        """Whether the file that is there is right; a wrong one is removed."""
        info, path = dataset.shards[shard], self.folder.path / shard
        try:
            if path.stat().st_size == info.bytes and sha256_file(path) == info.sha256:
                return True
        except OSError:  # unreadable: fetched anew
            pass
        path.unlink(missing_ok=True)
        return False

    def _fetch(self, dataset: OpenDataset, shard: str) -> bool:
        incoming = self.folder.incoming / shard  # of its own, so that all of it can go
        incoming.mkdir(parents=True, exist_ok=True)
        try:
            download_verified(dataset.remote, wanted_file(dataset.shards[shard]), incoming, self.folder.path / shard)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return True

    def _said(self, error: ShardkitError) -> tuple[str, str]:
        return type(error).__name__, str(error).replace(self.source, shown(self.source))

    def _tell(self, status: Status) -> None:
        now = time.monotonic()
        if status != self._status or not self._beat_at:
            self.folder.write(self.folder.status, status)
        elif now - self._beat_at < BEAT_SECONDS:
            return
        else:
            os.utime(self.folder.status)
        self._status, self._beat_at = status, now


def main(folder: CacheFolder, lock: FileLock) -> int:
    """Run a downloader over `folder` for the source that standard input names; returns the exit code, `lock` held."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer: when it ends, so does this
    logging.disable()  # the log is for the last words
    try:
        request = json.load(sys.stdin)
        lock.acquire(timeout=LOCK_SECONDS)
        downloader = Downloader(folder, request["source"], request["revision"])
        try:
            downloader.run()
        except ShardkitError as error:
            downloader.fail(error)
            return 1
        folder.status.unlink(missing_ok=True)
        shutil.rmtree(folder.incoming, ignore_errors=True)
    except Timeout:
        print(f"another process holds {folder.lock} and does not say what it does", flush=True)
        return 1
    except Exception:  # noqa: BLE001 (a bug: the log takes it, scrubbed, and the exit code tells)
        print("\n".join(scrub(line) for line in traceback.format_exc().splitlines()), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    place = CacheFolder(Path(sys.argv[1]))
    held = FileLock(place.lock)
    os._exit(main(place, held))  # at once, with its downloads and its lock: nobody wants them any more
