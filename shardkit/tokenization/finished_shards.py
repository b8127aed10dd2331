"""Shards that have all their tokens, until each is in the folder and in its journal, in their order.

A runner completes the files, some at a time. They get their names and their lines in the journal on a thread of its
own, since the disk is waited for.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from shardkit.dataset.journal import Journal, Resume
from shardkit.dataset.known_files import SeenShards
from shardkit.dataset.manifest import WORK_DIR, ShardInfo
from shardkit.dataset.shards import WrittenShard
from shardkit.errors import OutputError, ShardError, ShardkitError
from shardkit.files import fsync_dir, write_error
from shardkit.tokenization.live_push import LivePush
from shardkit.tokenization.runner import OpenShard, Runner, SentShard
from shardkit.waits import result_of


class FinishedShards:
    """Puts finished shards into the folder of `seen`, notes them in `journal`, and hands them to `uploads`."""

    def __init__(self, runner: Runner, seen: SeenShards, journal: Journal, uploads: LivePush | None) -> None:
        self._runner, self._seen, self._journal, self._uploads = runner, seen, journal, uploads
        self._waiting: deque[tuple[OpenShard, ShardInfo, Resume]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shardkit-finish")
        self._recording: Future[None] | None = None

    def add(self, shard: OpenShard, info: ShardInfo, resume: Resume) -> None:
        """A shard that has all its tokens, what is known of it, and where the stream goes on after it. Waits for
        earlier ones where more than the runner's share are not completed."""
        shard.info = info
        self._runner.finish(shard)
        self._waiting.append((shard, info, resume))
        while len(self._waiting) > self._runner.most_finishing:
            self._record_first()

    def record_completed(self) -> None:
        """Note the shards that are completed by now, without waiting for any: until it is noted, a kill loses it."""
        while self._waiting and (self._recording is None or self._recording.done()):
            if not self._runner.is_completed(self._waiting[0][0]):
                return
            self._record_first()

    def settle(self) -> None:
        """Wait until all shards are in the journal. Raises what went wrong with one."""
        while self._waiting:
            self._record_first()
        if self._recording is not None:
            recording, self._recording = self._recording, None
            result_of(recording)

    def record(self, made: WrittenShard, info: ShardInfo, resume: Resume) -> None:
        """Note a shard that is in the folder, or was sent by the machine that wrote it."""
        info = dataclasses.replace(info, tokens=made.tokens, bytes=made.bytes, sha256=made.sha256)
        receipt = made.receipt if isinstance(made, SentShard) else None
        if receipt is None:
            self._note(info)
        self._journal.append(info, resume)
        if self._uploads is not None:
            self._uploads.submit(info, receipt)

    def _note(self, info: ShardInfo) -> None:
        try:
            self._seen.note(info)
        except ShardError:
            raise OutputError(
                f"{self._seen.directory} was written to by somebody else, {info.file} is not the file that was put "
                "there: run the same command again"
            ) from None

    def close(self) -> None:
        """Wait for the shards that can still be completed, also at a Ctrl-C, until the next one."""
        try:
            with suppress(ShardkitError, KeyboardInterrupt):  # the run ends with an error already
                self.settle()
        finally:  # also at a Ctrl-C
            self._thread.shutdown(wait=True)

    def _record_first(self) -> None:
        shard, info, resume = self._waiting[0]
        made = self._runner.wait(shard)
        if self._recording is not None:
            result_of(self._recording)
        self._waiting.popleft()
        self._recording = self._thread.submit(self._name_and_record, shard.temp, made, info, resume)

    def _name_and_record(self, temp: Path, made: WrittenShard, info: ShardInfo, resume: Resume) -> None:
        final = self._seen.directory / info.file
        try:
            if isinstance(made, SentShard):
                temp.unlink()
            else:
                os.replace(temp, final)
                fsync_dir(final.parent)
        except OSError as error:
            remove(temp)
            raise write_error(error, temp, 0) from None
        self.record(made, info, resume)


def remove_all(directory: Path) -> None:
    """Remove the unfinished files of this process in the folder of a run. They are found by their names: a Ctrl-C may
    come between the making of a file and the note of it."""
    with suppress(OSError):
        for temp in (directory / WORK_DIR).glob(f"[0-9]*.{os.getpid()}.*tmp"):
            remove(temp)


def remove(temp: Path) -> None:
    """Remove an unfinished file, if the disk still can: a later run removes it otherwise."""
    with suppress(OSError):
        temp.unlink(missing_ok=True)
