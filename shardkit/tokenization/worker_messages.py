"""What the main process and a worker of this machine say to each other, and how it goes through their pipe.

A chunk goes to the worker, with what was fetched for it; what its pieces hold comes back, without their tokens. Where
these belong goes to the worker again (`Put`), and that they are there comes back (`Written`). What can go together is
one message, a list: messages are what the main process spends most of its time on.
"""

from __future__ import annotations

import dataclasses
import mmap
from typing import Any, NamedTuple

import numpy as np
from multiprocess.connection import Connection
from numpy.typing import NDArray

from shardkit.dataset.shard_parts import Part
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk, Fetched, Piece
from shardkit.tokenization.pipes import Outbox, receive, receive_bytes, send, send_bytes
from shardkit.tokenization.worker import EncodedChunk


class Put(NamedTuple):
    """Write tokens `begin` to `end` of a piece to the file `path`, at byte `place`. After the `last` the piece goes. If
    it `fills` the file, the main process waits to have it completed."""

    piece: int
    begin: int
    end: int
    path: str
    place: int
    last: bool
    fills: bool = False


class Keep(NamedTuple):
    """Of a piece's tokens those in `ranges` stay, (begin, end), shape (n, 2)."""

    piece: int
    ranges: NDArray[np.int64]


class Drop(NamedTuple):
    """No more tokens of a piece are wanted."""

    piece: int


class Finish(NamedTuple):
    """Complete and hash the file `path`, which `parts` make up."""

    path: str
    parts: list[Part]


class Finished(NamedTuple):
    """Size in bytes and SHA-256 of the file `path`, or why it could not be completed."""

    path: str
    bytes: int
    sha256: str
    error: OSError | None = None


class Written(NamedTuple):
    """What was written to the file `path`, or why it was not. `fills`: as in `Put`."""

    path: str
    part: Part | None
    error: OSError | None = None
    fills: bool = False


class Encoded(NamedTuple):
    """A piece of the first chunk that a worker has not answered: its share of the chunk's weight, where its EOTs are,
    and what else an `EncodedChunk` has that is not as in most. Of a whole file, the chunk `within` that it is of."""

    weight: int
    eot_positions: NDArray[np.int64]
    stated: dict[str, Any]
    within: Chunk | None = None

    @classmethod
    def of(cls, result: EncodedChunk, given: Chunk) -> Encoded:
        """What travels of a piece of the chunk, or of the whole file, that was `given`."""
        stated = {name: value for name in _STATED if _is_stated(value := getattr(result, name))}
        within = result.chunk if given.is_whole_file else None
        return cls(result.chunk.weight, result.eot_positions, {**stated, "last": result.last}, within)

    def piece(self, given: Chunk) -> EncodedChunk:
        """The piece of the chunk, or whole file, that was `given`."""
        chunk = self.within or given
        if chunk.weight != self.weight:
            chunk = dataclasses.replace(chunk, weight=self.weight)
        return EncodedChunk(chunk=chunk, eot_positions=self.eot_positions, **self.stated)


class Ended(NamedTuple):
    """All pieces have come of the first whole file that a worker has not answered."""


_STATED = {field.name for field in dataclasses.fields(EncodedChunk)} - {"chunk", "tokens", "eot_positions", "last"}
Answer = Encoded | Ended | Written | Finished


def _is_stated(value: Any) -> bool:
    return value.shape != (0, 2) if isinstance(value, np.ndarray) else bool(value)


class _Parcel(NamedTuple):
    """A chunk on its way to a worker: without its bytes, of which is stated where in the file they are, how many, and
    where in shared memory; with the footer, unless it is `known` from the chunk before."""

    chunk: Chunk
    is_fetched: bool
    sizes: list[tuple[int, int, int | None]]
    known: bool
    footer: Piece | None


class ChunkSender:
    """Sends chunks down one pipe; what was fetched for one, and is not in `shared` memory, follows as raw bytes, a
    footer once."""

    def __init__(self, outbox: Outbox, shared: SharedMemory | None) -> None:
        self._outbox, self._shared = outbox, shared
        self._footer: Piece | None = None

    def send(self, chunk: Chunk) -> None:
        """Send one chunk."""
        fetched, shared = chunk.fetched, self._shared
        if fetched is None:
            self._outbox.messages.append(_Parcel(chunk, False, [], False, None))
            return
        footer, places = fetched.footer, [shared.place_of(data) if shared else None for _, data in fetched.pieces]
        sizes = [(start, len(data), place) for (start, data), place in zip(fetched.pieces, places, strict=True)]
        known = footer is not None and footer is self._footer
        self._footer = footer
        light = dataclasses.replace(chunk, fetched=None)
        self._outbox.messages.append(_Parcel(light, True, sizes, known, None if known else footer))
        self._outbox.flush()  # the bytes come after it
        for (_, data), place in zip(fetched.pieces, places, strict=True):
            if place is None:
                self._outbox.put(memoryview(data))


class MessageReceiver:
    """Receives, in a worker, what the main process sends; `shared` is the file of the shared memory."""

    def __init__(self, pipe: Connection, shared: int | None) -> None:
        self._pipe, self._shared = pipe, shared
        self._footer: Piece | None = None
        self._memory = memoryview(b"")  # of the file `shared`, once something is there

    def receive(self) -> list[Any]:
        """What comes next: a job, chunks with what was fetched for them, what to do with tokens. Raises `EOFError` when
        the main process is gone."""
        return [self._unpacked(message) for message in receive(self._pipe)]

    def _unpacked(self, message: Any) -> Any:
        if not isinstance(message, _Parcel):
            return message
        pieces = tuple((start, self._bytes(size, place)) for start, size, place in message.sizes)
        if not message.is_fetched:
            return message.chunk
        self._footer = self._footer if message.known else message.footer
        return dataclasses.replace(message.chunk, fetched=Fetched(pieces=pieces, footer=self._footer))

    def _bytes(self, size: int, place: int | None) -> memoryview:
        if place is not None and self._shared is not None:
            self._memory = self._memory or memoryview(mmap.mmap(self._shared, 0, access=mmap.ACCESS_READ))
            return self._memory[place : place + size]
        data = np.empty(size, np.uint8).data  # which, unlike a `bytearray`, is not filled before it is filled
        receive_bytes(self._pipe, data)
        return data


def send_answers(pipe: Connection, answers: list[Answer]) -> None:
    """Send what a worker says. Where EOTs are follows as raw bytes."""
    found = [answer.eot_positions for answer in answers if isinstance(answer, Encoded)]
    nowhere = np.empty(0, np.int64)
    light = [answer._replace(eot_positions=None) if isinstance(answer, Encoded) else answer for answer in answers]  # type: ignore[arg-type]
    send(pipe, (light, [len(positions) for positions in found]))
    send_bytes(pipe, np.concatenate([nowhere, *found]).view(np.uint8).data)


def receive_answers(pipe: Connection) -> list[Answer]:
    """What a worker says next. Raises `EOFError` or `OSError` if it is gone."""
    answers, counts = receive(pipe)
    memory = np.empty(sum(counts), np.int64)
    receive_bytes(pipe, memory.view(np.uint8).data)
    positions = iter(np.split(memory, np.cumsum(counts)[:-1]) if len(counts) > 1 else [memory])
    return [
        answer._replace(eot_positions=next(positions)) if isinstance(answer, Encoded) else answer for answer in answers
    ]
