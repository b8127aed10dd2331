"""Hub files that are read from front to back: checked against the hash that the Hub states, before any byte is used.
Bytes that came wrong are fetched again.

Such a file is copied into an unnamed temporary file (`TMPDIR` says where). The next one is fetched while it is read,
and as many after it as are small.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

from shardkit.errors import SourceError
from shardkit.files import write_error
from shardkit.sources.ranges import AheadFile, checked_read, read_range
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import Fetched, InputFile
from shardkit.waits import join

TRIES = 3
AHEAD_BYTES = 128 << 20  # of files that are fetched while one is read; the next of them may be longer
_MOST_AHEAD = 8
_BLOCK_BYTES = 1 << 20


def whole_file(file: InputFile, fetched: Fetched | None = None) -> Fetched:
    """All bytes of a remote file; those of a Hub file have the hash that the Hub states, or it is a `SourceError`. What
    was `fetched` stays where it is, if it is all of the file and right."""
    held = fetched
    for _ in range(TRIES):
        if held is None or not held.is_whole(file.bytes):
            held = Fetched(pieces=((0, checked_read(file, lambda: read_range(file, 0, file.bytes))),))
        if not file.oid:
            return held
        digest = _digest(file)
        for _, data in held.pieces:
            digest.update(data)
        if digest.hexdigest() == file.oid:
            return held
        held = None
    raise _wrong_bytes(file)


def _copy(file: InputFile, ahead: ReadAhead, into: IO[bytes], stop: Callable[[], bool]) -> None:
    """Put the file's bytes, checked, into the empty file `into`, and go to its start."""
    for _ in range(TRIES):
        into.seek(0)
        digest = _digest(file)
        with AheadFile(file, ahead) as remote:
            while not stop() and (block := remote.read(_BLOCK_BYTES)):
                digest.update(block)
                try:
                    into.write(block)
                except OSError as error:
                    raise write_error(error, Path(tempfile.gettempdir()), file.bytes) from None
        if stop() or digest.hexdigest() == file.oid:
            into.seek(0)
            return
    raise _wrong_bytes(file)


def _digest(file: InputFile) -> Any:
    if len(file.oid) == 40:  # git's, of a file that is small enough to lie in the repo itself
        return hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    return hashlib.sha256()


def _wrong_bytes(file: InputFile) -> SourceError:
    return SourceError(
        f"cannot read {file.path}: its bytes came {TRIES} times with another hash than the Hub states ({file.oid}); "
        "something on the way changes them: run the same command again, from another network if it persists"
    )


class WholeCopies:
    """Checked copies of those of `files` that are read front to back and have a hash, in order. A context manager: at
    its end, copying stops."""

    def __init__(self, files: Sequence[InputFile], ahead: ReadAhead) -> None:
        self._files, self._ahead = files, ahead
        self._coming: dict[int, _Coming] = {}
        self._left = threading.Event()

    def __enter__(self) -> WholeCopies:
        return self

    def __exit__(self, *exc: object) -> None:
        self._left.set()

    def open(self, number: int) -> IO[bytes] | None:
        """The copy of file `number`, at its start, once it is whole; None if that file needs none."""
        if not _needs_copy(self._files[number]):
            return None
        self._start(number)
        copy = self._coming.pop(number).result()
        room, later = AHEAD_BYTES, (n for n in range(number + 1, len(self._files)) if _needs_copy(self._files[n]))
        for place, following in enumerate(islice(later, _MOST_AHEAD)):
            room -= self._files[following].bytes
            if place and room < 0:
                break
            self._start(following)
        return copy

    def _start(self, number: int) -> None:
        if number not in self._coming:
            self._coming[number] = _Coming(self._files[number], self._ahead, self._left.is_set)


def _needs_copy(file: InputFile) -> bool:
    return bool(file.oid) and file.is_read_front_to_back


class _Coming(threading.Thread):
    """A copy on its way."""

    def __init__(self, file: InputFile, ahead: ReadAhead, stop: Callable[[], bool]) -> None:
        super().__init__(name="shardkit-copy", daemon=True)
        self._file, self._ahead, self._stop_asked = file, ahead, stop
        self._copy: IO[bytes] | None = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        with ExitStack() as stack:
            try:
                copy = stack.enter_context(tempfile.TemporaryFile(prefix="shardkit-"))
                _copy(self._file, self._ahead, copy, self._stop_asked)
            except Exception as error:  # noqa: BLE001 (raised where the copy is asked for)
                self._error = error
            else:
                self._copy = copy
                stack.pop_all()

    def result(self) -> IO[bytes]:
        """The copy, once it is there. Raises what went wrong."""
        join(self)
        if self._copy is None:
            raise self._error or RuntimeError("a copy ended without a result")
        return self._copy
