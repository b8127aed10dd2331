"""The process that fills a cache folder: `python -m shardkit.remote.streaming.downloader CACHE_FOLDER`, one a folder.

It owns the network and every file in the folder but the leases. A reader starts it and gives it the source by standard
input; leases say what is needed, `status.json` answers. It ends when no reader lives, when the dataset cannot be opened
(the status says why), or killed: then its lock is free, and the next one goes on from what is in the folder. It is a
process, not a thread, so that Python's lock never holds up a training step (benchmarks/bench_streaming.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from shardkit.dataset.check import check_shard
from shardkit.errors import DiskFull, ShardError, ShardkitError
from shardkit.files import format_bytes, free_bytes, remove_tree, write_error
from shardkit.locks import lock_for_process
from shardkit.network import scrub
from shardkit.rate_limits import PAUSES
from shardkit.remote.download import download_verified
from shardkit.remote.streaming.contents import OpenDataset, in_order_of_need, open_dataset, too_much, wanted_file
from shardkit.remote.streaming.folder import CacheFolder, Lease, Status
from shardkit.remote.streaming.room import RoomWait, when_there_is_room

DOWNLOADS = 4  # at once
POLL_SECONDS = 0.03
LINGER_SECONDS = 1.0  # without readers: one may be on its way, as where workers take over from their parent
BLOCKED_SECONDS = 60.0  # without room while what the readers want does not change
AGAIN_SECONDS = 60.0  # after a shard failed
REST_SECONDS = 1.0  # after one found no room where there seemed to be some, as with a quota


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    """Why a shard is not here, which readers were told, and when it is tried again: before it is needed, maybe."""

    error: ShardkitError
    readers: frozenset[str]
    again_at: float


class Downloader:
    """Serves the readers of an opened dataset: `serve` is one round, and answers with a status."""

    def __init__(self, folder: CacheFolder, dataset: OpenDataset, pool: ThreadPoolExecutor) -> None:
        self._folder, self._dataset, self._pool = folder, dataset, pool
        self._jobs: dict[Future[bool], str] = {}
        self._verified: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._blocked_since = 0.0
        self._blocked_wants: list[list[str]] = []
        self._room = RoomWait(folder.path)
        self._resting_until = 0.0

    def serve(self, leases: Sequence[Lease]) -> tuple[list[str], dict[str, ShardkitError]]:
        """Take in what arrived, make room, start what is needed next; the shards that are ready, and what failed."""
        self._collect(leases)
        sizes, contents = self._dataset.sizes, self._dataset.contents
        wants = [[shard for shard in lease.wants if shard in sizes] for lease in leases]
        order = in_order_of_need(wants)
        contents.note_wanted(order)
        bounds = [lease.cache_bytes for lease in leases if lease.cache_bytes is not None]
        edge_bytes = max((lease.edge_bytes for lease in leases), default=0)
        bound = min(bounds) - self._dataset.small_bytes - edge_bytes if bounds else None
        refused = {} if bound is None else self._too_large(wants, bound)
        refused |= self._start([shard for shard in order if shard not in refused], bound, wants)
        errors = {shard: self._failures[shard].error for shard in order if self._rests(shard)} | refused
        return [shard for shard in order if shard in self._verified], errors

    def wait(self) -> None:
        """Until something arrives, at most a moment."""
        wait(self._jobs, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        if not self._jobs:
            time.sleep(POLL_SECONDS)

    def _collect(self, leases: Sequence[Lease]) -> None:
        readers = frozenset(lease.id for lease in leases)
        for job in [job for job in self._jobs if job.done()]:
            shard, error = self._jobs.pop(job), job.exception()
            if error is None and job.result():
                self._dataset.contents.held[shard] = self._dataset.sizes[shard]
                self._dataset.contents.coming.pop(shard, None)
                self._verified.add(shard)
                self._room.end()
                continue
            self._dataset.contents.forget(shard)
            if isinstance(error, OSError):  # of the disk: a client's are in words already
                error = write_error(error, self._folder.path / shard, self._dataset.sizes[shard])
            if isinstance(error, DiskFull) and self._room.goes_on():
                self._resting_until = time.monotonic() + REST_SECONDS
                continue
            if isinstance(error, ShardkitError):
                self._failures[shard] = _Failure(error, readers, time.monotonic() + AGAIN_SECONDS)
            elif error is not None:
                raise error
        for shard, failure in list(self._failures.items()):
            wanting = {lease.id for lease in leases if shard in lease.wants}
            if shard in self._verified or wanting - failure.readers:  # a fresh reader gets a fresh try
                del self._failures[shard]

    def _too_large(self, wants: Sequence[Sequence[str]], bound: int) -> dict[str, ShardkitError]:
        """What can never fit below the bound with what the same reader needs before it."""
        sizes, small_bytes = self._dataset.sizes, self._dataset.small_bytes
        return {
            shard: DiskFull(
                f"cache_bytes is {format_bytes(bound + small_bytes)}, one reader needs {len(shards)} shards at once, "
                f"{format_bytes(sum(sizes[name] for name in shards) + small_bytes)} with the small files: give more, "
                "or a smaller span"
            )
            for shards in wants
            for shard in too_much(shards, sizes, bound)
        }

    def _start(self, order: Sequence[str], bound: int | None, wants: list[list[str]]) -> dict[str, ShardkitError]:
        """Start what is needed next, as far as there is room; what waited for room too long, and why."""
        contents, sizes, running = self._dataset.contents, self._dataset.sizes, set(self._jobs.values())
        wanted = running.union(*wants)
        self._delete(contents.to_delete(0, bound=bound, free=sys.maxsize, wanted=wanted))  # a smaller bound has come
        blocked: tuple[str, int] | None = None
        for shard in order:
            if len(self._jobs) >= DOWNLOADS or time.monotonic() < self._resting_until:
                break
            if shard in self._verified or shard in running or self._rests(shard):
                continue
            if shard in contents.held:  # left by an earlier downloader
                self._jobs[self._pool.submit(self._check, shard)] = shard
                continue
            if blocked is not None:  # what is farther off must not take the room that comes
                continue
            free = free_bytes(self._folder.path)
            leaving = contents.to_delete(sizes[shard], bound=bound, free=free, wanted=wanted)
            if leaving is None:
                blocked = shard, free
                continue
            self._delete(leaving)
            contents.coming[shard] = sizes[shard]
            self._jobs[self._pool.submit(self._fetch, shard)] = shard
        if blocked is not None:
            return self._blocked(*blocked, bound, wants)
        self._blocked_since = 0.0
        if not order:
            self._room.end()
        return {}

    def _rests(self, shard: str) -> bool:
        failure = self._failures.get(shard)
        return failure is not None and time.monotonic() < failure.again_at

    def _blocked(self, shard: str, free: int, bound: int | None, wants: list[list[str]]) -> dict[str, ShardkitError]:
        """There is no room for `shard`: an error if nothing that still moves can make any."""
        if self._jobs:
            return {}
        size, small_bytes = self._dataset.sizes[shard], self._dataset.small_bytes
        if self._dataset.contents.to_delete(size, bound=bound, free=free, wanted=()) is None:  # not even all of it
            if self._room.goes_on():
                return {}
            advice = "make room, or give cache_bytes to have old shards deleted" if bound is None else "make room"
            return {
                shard: DiskFull(
                    f"no room in {self._folder.path}: {format_bytes(size)} are to come, {format_bytes(free)} are free; "
                    f"{advice}"
                )
            }
        if not self._blocked_since or wants != self._blocked_wants:
            self._blocked_since, self._blocked_wants = time.monotonic(), wants
        if time.monotonic() - self._blocked_since < BLOCKED_SECONDS:
            return {}
        union = sum(self._dataset.sizes[name] for name in in_order_of_need(wants)) + small_bytes
        return {
            shard: DiskFull(
                f"no room for {shard} in {self._folder.path}: its {len(wants)} readers together need "
                f"{format_bytes(union)}, cache_bytes is {format_bytes((bound or 0) + small_bytes)}, and none "
                f"has moved on for {BLOCKED_SECONDS:.0f} s: give more, or a smaller span"
            )
        }

    def _delete(self, shards: Sequence[str] | None) -> None:
        for shard in shards or ():
            (self._folder.path / shard).unlink(missing_ok=True)
            self._dataset.contents.forget(shard)
            self._verified.discard(shard)

    def _check(self, shard: str) -> bool:
        """Whether the file in the folder is right; a wrong one is removed, to be fetched."""
        path = self._folder.path / shard
        try:
            check_shard(path, self._dataset.shards[shard], hashed=True)
        except ShardError:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # a folder of that name
                raise write_error(error, path, 0) from None
            return False
        return True

    def _fetch(self, shard: str) -> bool:
        incoming = self._folder.incoming / shard  # of its own, so that all of it can go
        incoming.mkdir(parents=True, exist_ok=True)
        wanted = wanted_file(self._dataset.shards[shard])
        try:
            download_verified(self._dataset.remote, wanted, incoming, self._folder.path / shard)
        finally:
            remove_tree(incoming)
        return True


class _Waiting:
    """What our calls wait for, as it was when the wait began: a status is not written anew with each second."""

    text = ""

    def __call__(self, text: str, is_new: bool) -> None:
        """As `rate_limits.Pauses` calls its listeners."""
        if is_new or not text:
            self.text = text


def run(folder: CacheFolder, source: str, revision: str | None) -> None:
    """Open the dataset, and serve the readers until none has lived for a moment, or all that live are new: they read
    what is at the source now, by a downloader of their own. Raises why there is no dataset."""
    remove_tree(folder.incoming)
    pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="shardkit-download")
    opening = pool.submit(open_dataset, folder, source, revision)
    downloader: Downloader | None = None
    last: Status | None = None
    waiting = _Waiting()
    served_at, answered = time.monotonic(), set[str]()
    with PAUSES.told_to(waiting):
        while time.monotonic() - served_at < LINGER_SECONDS:
            leases = folder.living()
            if leases and answered and not any(lease.dataset or lease.id in answered for lease in leases):
                break
            if leases:
                served_at = time.monotonic()
            if opening.done():
                dataset = opening.result()
                downloader = downloader or Downloader(folder, dataset, pool)
                answered.update(lease.id for lease in leases)
                ready, failed = downloader.serve(leases)
                errors = {shard: _described(error) for shard, error in failed.items()}
                status = Status(pid=os.getpid(), seen=_seen(leases), dataset=dataset.digest, ready=ready, errors=errors)
            else:
                status = Status(pid=os.getpid(), seen={})  # no answer yet
            status = dataclasses.replace(status, waiting=waiting.text)
            if status != last and (downloader is not None or status.waiting):
                with contextlib.suppress(DiskFull):  # readers see it, and the next round writes it
                    folder.write(folder.status, status)
                    last = status
            if downloader is not None:
                downloader.wait()
            else:
                wait([opening], timeout=POLL_SECONDS)
    folder.status.unlink(missing_ok=True)
    remove_tree(folder.incoming)


@ShardkitError.naming_flags()  # the readers put it into their own words
def main(folder: CacheFolder) -> int:
    """Serve `folder` for the source that standard input names, unless another does; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer: when it ends, so does this
    logging.disable()  # the log is for the last words
    try:
        source, revision = json.load(sys.stdin)
        lock = lock_for_process(folder.lock)
        if lock is None:
            return 0
        try:
            run(folder, source, revision)
        except ShardkitError as error:
            seen = _seen(folder.living())
            last = Status(pid=os.getpid(), seen=seen, error=_described(error))
            when_there_is_room(folder.path, lambda: folder.write(folder.status, last))
    except BaseException:  # noqa: BLE001 (a bug, or a client's panic: the log takes it, scrubbed, and the code tells)
        print("\n".join(scrub(line) for line in traceback.format_exc().splitlines()), flush=True)
        return 1
    return 0


def _seen(leases: Sequence[Lease]) -> dict[str, int]:
    return {lease.id: lease.serial for lease in leases}


def _described(error: ShardkitError) -> list[str]:
    return [type(error).__name__, str(error)]


if __name__ == "__main__":
    os._exit(main(CacheFolder(Path(sys.argv[1]))))  # at once, with its downloads: nobody wants them any more
