"""Where a runner's chunks come from: asked for on the spot, or, where they come over a network, by a thread of its own,
so that results are collected while bytes are waited for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shardkit.sources.read_ahead import AHEAD_BYTES
from shardkit.sources.source import Chunk
from shardkit.tokenization.pipes import one_way

if TYPE_CHECKING:
    from multiprocess.connection import Connection


def until_error(chunks: Iterator[Chunk], failed: list[Exception]) -> Iterator[Chunk]:
    """`chunks` up to the first error, which goes into `failed`: the chunks before it come first in the stream, and with
    them what may be wrong there, or the end of the run."""
    try:
        yield from chunks
    except Exception as error:  # noqa: BLE001 (the runner raises it, in its turn)
        failed.append(error)


def carried_bytes(chunk: Chunk) -> int:
    """The bytes that a chunk brings along."""
    payload = len(chunk.payload) if isinstance(chunk.payload, bytes) else 0
    return payload + (chunk.fetched.size if chunk.fetched is not None else 0)


class ChunkFeed:
    """The chunks on the spot. `failed` holds the error that ended them, if one did."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self.failed: list[Exception] = []
        self.over = False
        self._chunks = until_error(chunks, self.failed)

    @property
    def signal(self) -> Connection | None:
        """A connection that can be read once `next` has a chunk that it had not; None where it always has."""
        return None

    def next(self) -> Chunk | None:
        """The next chunk; None at the end, then `over` is true, or if none has come yet."""
        chunk = next(self._chunks, None)
        self.over = chunk is None
        return chunk

    def close(self) -> None:
        """Ask for no more."""


class WaitingFeed(ChunkFeed):
    """The chunks that a thread waits for, at most `most` ahead, and fewer where they bring along `AHEAD_BYTES`."""

    def __init__(self, chunks: Iterator[Chunk], most: int) -> None:
        super().__init__(chunks)
        self._most = most
        self._here: deque[Chunk | None] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._signal, self._signals = one_way()
        self._thread = threading.Thread(target=self._pull, name="shardkit-chunks", daemon=True)
        self._thread.start()

    @property
    def signal(self) -> Connection:
        return self._signal

    def next(self) -> Chunk | None:
        with self._changed:
            if self.over or not self._here:
                return None
            self._signal.recv_bytes()  # a message for each chunk, and for the end
            chunk = self._here.popleft()
            self._changed.notify_all()
        self.over = chunk is None
        return chunk

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._here.clear()
            self._changed.notify_all()
            self._signal.close()
            self._signals.close()

    def _pull(self) -> None:
        try:
            for chunk in self._chunks:
                if not self._put(chunk):
                    return
            self._put(None)
        finally:
            self._chunks.close()  # type: ignore[attr-defined]

    def _put(self, chunk: Chunk | None) -> bool:
        """Hand over a chunk; False if nobody wants it any more."""
        with self._changed:
            while self._is_full() and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._here.append(chunk)
            self._signals.send_bytes(b"1")
        return True

    def _is_full(self) -> bool:
        here = [chunk for chunk in self._here if chunk is not None]
        return len(here) >= self._most or sum(map(carried_bytes, here)) >= AHEAD_BYTES
