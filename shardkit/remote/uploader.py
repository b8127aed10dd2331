"""Finished shards go up in the background, are acknowledged in order, and then leave the disk if asked to.

Owns the threads of `push` and of `tokenize --push`. Several shards are hashed and sent at once; commits acknowledge
them in the order they were handed in, each commit with the small files handed in up to its last shard: a journal at the
remote never names a shard that is not there. Commits are few, as the Hub allows some 128 an hour (`commit_pace.py`).
Knows nothing of tokens or manifests.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType

from shardkit.dataset.check import check_shard
from shardkit.dataset.known_files import unchanged
from shardkit.dataset.manifest import ShardInfo
from shardkit.errors import DiskFull
from shardkit.files import format_bytes
from shardkit.remote.commit_pace import CommitPace
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.threads import TransferThreads, waits_for_threads

TransferProgress = Callable[[str, int, int], None]
_OLDEST_SECONDS = 300.0  # a shard that has arrived is acknowledged at the latest after this
_MOST_FILES = 250  # of one commit, where those before it took long
_ASKED_TOGETHER = 100  # shards, before they are sent


@dataclass(slots=True)
class _Item:
    """A shard that was handed in; `at_remote` says that it need not be sent, `sent` that another process did."""

    path: Path
    shard: ShardInfo
    small: Callable[[], Mapping[str, bytes]] | None
    at_remote: bool
    sent: bool
    prepared: bool = False
    upload: Future[float] | None = None

    @property
    def bytes_here(self) -> int:
        return 0 if self.sent else self.shard.bytes

    @property
    def arrived(self) -> bool:
        return self.upload is not None and self.upload.done() and self.upload.exception() is None


def send_checked(remote: Remote, path: Path, shard: ShardInfo) -> str:
    """Send the shard at `path`, and see that what arrives is what was hashed. Returns what `remote.upload` does."""
    with unchanged(path):
        check_shard(path, shard, hashed=True)
        return remote.upload(path, shard)


class Uploader:
    """Sends shards to `remote`; a context manager. Errors of its threads are raised by the next call of any method.

    `remote_files` lists what the remote had at the start: those shards are not sent again. With `delete_local` a file
    is removed once the remote has acknowledged it. `max_bytes` bounds the bytes of files handed in and not yet removed.
    `progress(file, done_bytes, total_bytes)` is called after each shard, from one thread at a time.

    A KeyboardInterrupt does not wait for an upload in progress; whatever was not acknowledged is sent by the next run.
    """

    def __init__(
        self,
        remote: Remote,
        remote_files: Mapping[str, RemoteFile],
        *,
        workers: int = 5,
        delete_local: bool = False,
        max_bytes: int | None = None,
        progress: TransferProgress | None = None,
    ) -> None:
        self.remote = remote
        self.sent_files = 0
        self.sent_bytes = 0
        self._remote_files = dict(remote_files)
        self._delete_local = delete_local
        self._max_bytes = max_bytes
        self._progress = progress
        self._queue: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._preparing = threading.Lock()
        self._pace = CommitPace(time.monotonic()) if remote.has_commits else None
        self._failed: Future[float] | Future[None] | None = None
        self._handed_in_bytes = self._done_bytes = self._pending_bytes = 0
        self._wanted_bytes = 0
        self._flushing = self._closed = False
        self._threads = TransferThreads(workers + 1, "shardkit-upload")
        self._watch(self._threads.submit(self._commit_loop))

    @property
    def pending_bytes(self) -> int:
        """Bytes of shards handed in and, with `delete_local`, not yet deleted; else not yet acknowledged."""
        return self._pending_bytes

    def has(self, shard: ShardInfo) -> bool:
        """Whether the remote had this very shard (name, size, SHA-256) at the start."""
        return self._remote_files.get(shard.file) == RemoteFile(shard.bytes, shard.sha256)

    def submit(
        self,
        path: Path,
        shard: ShardInfo,
        small: Callable[[], Mapping[str, bytes]] | None = None,
        *,
        receipt: str | None = None,
    ) -> None:
        """Hand in a finished shard; returns at once. One that another process has uploaded, with this `receipt`, is not
        at `path`.

        `small` gives files, by their names at the remote, that are committed together with the shard: the journal up to
        it, as far as no commit held it before. Of shards that are committed together only the last one's are asked for,
        and not before: many shards may wait here, each without a copy of what came before it.
        """
        item = _Item(path, shard, small, self.has(shard), sent=receipt is not None)
        if receipt is not None:
            self.remote.received(shard, receipt)
        with self._changed:
            self._check()
            self._queue.append(item)
            self._pending_bytes += item.bytes_here
            self._handed_in_bytes += shard.bytes
            if self._progress is not None:
                self._progress(shard.file, self._done_bytes, self._handed_in_bytes)
            item.upload = self._threads.submit(partial(self._send, item))
        self._watch(item.upload)

    def wait_for_room(self, count: int) -> None:
        """Wait until `count` more bytes fit under `max_bytes`; raises `DiskFull` if they never can."""
        if self._max_bytes is None:
            return
        if count > self._max_bytes:
            raise DiskFull(
                f"--max-disk {format_bytes(self._max_bytes)} has no room for one shard of {format_bytes(count)}: give "
                "more, or make smaller shards"
            )
        with self._changed:
            while (over := self._pending_bytes + count - self._max_bytes) > 0:
                self._check()
                self._wanted_bytes = over
                self._changed.notify_all()
                self._changed.wait(0.5)
            self._wanted_bytes = 0
            self._check()

    def flush(self) -> None:
        """Wait until the remote has acknowledged everything handed in so far."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            while self._queue:
                self._check()
                self._changed.wait(0.5)
            self._flushing = False
            self._check()

    def close(self, *, wait: bool = False) -> None:
        """Stop the threads; what is not acknowledged stays on this disk and is sent by the next run.

        Returns at once, or, with `wait`, when the uploads in progress have ended.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._queue:
            self.remote.stopping.set()  # cuts the waits between tries
        self._threads.close(wait=wait)

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(wait=waits_for_threads(kind))

    def _send(self, item: _Item) -> float:
        """Check and upload one shard; returns when it had arrived."""
        shard = item.shard
        if not (item.at_remote or item.sent):
            self._prepare(item)
            send_checked(self.remote, item.path, shard)
        with self._changed:
            self._done_bytes += shard.bytes
            if not item.at_remote:
                self.sent_files += 1
                self.sent_bytes += shard.bytes
            if self._progress is not None:
                self._progress(shard.file, self._done_bytes, self._handed_in_bytes)
        return time.monotonic()

    def _prepare(self, item: _Item) -> None:
        """Have the remote asked about this shard and those that come after it, unless that was done for an earlier one.

        Where the queue is short, a run makes shards slower than they are sent, and calls are few anyway.
        """
        with self._preparing:
            if item.prepared:
                return
            with self._changed:
                waiting = (one for one in self._queue if not (one.at_remote or one.sent or one.prepared))
                group = list(islice(waiting, _ASKED_TOGETHER))
            self.remote.prepare([(other.path, other.shard) for other in group])
            for other in group:
                other.prepared = True

    def _commit_loop(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._due():
                    self._changed.wait(1.0)
                if self._closed:
                    return
                run = self._arrived()
            self._acknowledge(run)

    def _acknowledge(self, run: list[_Item]) -> None:
        new = [item.shard for item in run if not item.at_remote]
        if new:
            if self._pace is not None:
                self._pace.count()
            last = next((item.small for item in reversed(run) if item.small is not None), dict)
            self.remote.commit(new, last(), f"Add {len(new)} shards" if len(new) > 1 else f"Add {new[0].file}")
        elif self._delete_local:
            self.remote.commit([], {}, "")  # which makes sure that what is there is still ours
        with self._changed:
            if self._closed:  # meanwhile the files may be another run's
                return
            for item in run:
                if self._delete_local:
                    item.path.unlink(missing_ok=True)
                self._queue.popleft()
                self._pending_bytes -= item.bytes_here
            self._changed.notify_all()

    def _arrived(self) -> list[_Item]:
        """The run of arrived shards at the queue's head."""
        run: list[_Item] = []
        for item in self._queue:
            if not item.arrived or len(run) == _MOST_FILES:
                break
            run.append(item)
        return run

    def _due(self) -> bool:
        """Few commits: as many shards as a commit should hold, or half of those on this disk where somebody waits for
        room, and no more commits an hour than the place allows."""
        run = self._arrived()
        if not run:
            return False
        everything, new = len(run) == len(self._queue), sum(not item.at_remote for item in run)
        if not new or (self._flushing and everything):
            return True
        if self._pace is not None and not self._pace.allows(time.monotonic()):
            return False
        arrived_bytes = sum(item.bytes_here for item in run)
        room = everything or (arrived_bytes >= self._wanted_bytes and 2 * arrived_bytes >= self._pending_bytes)
        if new >= self.remote.commit_files or (self._wanted_bytes and room):
            return True
        first = run[0].upload
        return first is not None and time.monotonic() - first.result() > _OLDEST_SECONDS

    def _watch(self, future: Future[float] | Future[None]) -> None:
        def finished(done: Future[float] | Future[None]) -> None:
            with self._changed:
                if self._failed is None and not done.cancelled() and done.exception() is not None:
                    self._failed = done
                self._changed.notify_all()

        future.add_done_callback(finished)

    def _check(self) -> None:
        if self._failed is not None:
            self._failed.result()
