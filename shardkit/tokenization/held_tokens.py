"""The tokens that a worker has encoded and holds until it is known where in the shards they belong: in memory, and
those of whole files, which may be many, on the disk.

One thread writes them there, another completes the shards that have all their tokens, while the next piece is encoded:
all three let go of the interpreter's lock for most of the time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.shard_parts import PartWriter, finish_parts
from shardkit.tokenization.tokens_on_disk import PieceOnDisk, TokensOnDisk
from shardkit.tokenization.worker_messages import Drop, Finish, Finished, Keep, Put, Written

_HELD_BYTES = 32 << 20  # of tokens whose place is not known yet; when there are as many, no more are encoded


class HeldTokens:
    """Pieces of tokens, by number. `say` gets what was written, and why something was not."""

    def __init__(self, say: Callable[[Written | Finished], None]) -> None:
        self._say = say
        self.folder = ""  # where tokens are held on the disk
        self._disk: TokensOnDisk | None = None
        self._pieces: dict[int, NDArray[np.unsignedinteger] | PieceOnDisk] = {}
        self._bytes, self._number = 0, 0
        self._changed = threading.Condition()
        self._orders: queue.SimpleQueue[Put | Keep | Drop] = queue.SimpleQueue()
        self._finishes: queue.SimpleQueue[Finish] = queue.SimpleQueue()
        self._writer = PartWriter()

    def threads(self) -> tuple[Callable[[], None], ...]:
        """What is to be done again and again, in a thread each."""
        return self._write_next, self._finish_next

    def hold(self, tokens: NDArray[np.unsignedinteger], *, waits: bool = True) -> int:
        """Hold a piece, and return its number. While as much is held in memory as may be, this `waits`; without that
        the piece goes to the disk, if there is room. Pieces that are next in the stream make nobody wait: they are
        given their place, and go, as they come."""
        piece: NDArray[np.unsignedinteger] | PieceOnDisk = tokens
        if not waits and self._is_full(tokens.nbytes):
            piece = self._on_disk(tokens) or tokens
        with self._changed:
            while self._is_full(piece.nbytes):
                self._changed.wait()
            self._number += 1
            self._pieces[self._number] = piece
            self._bytes += piece.nbytes
            return self._number

    def _is_full(self, more: int) -> bool:
        return bool(more and self._pieces) and self._bytes + more > _HELD_BYTES

    def _on_disk(self, tokens: NDArray[np.unsignedinteger]) -> PieceOnDisk | None:
        """The piece, written to the disk; None where that fails."""
        try:
            if self._disk is None or self._disk.is_full:
                self._disk = TokensOnDisk(self.folder)
            return self._disk.add(tokens)
        except OSError:
            return None

    def do(self, order: Put | Keep | Drop | Finish) -> None:
        """Have it done: what concerns pieces in the order in which it came."""
        if isinstance(order, Finish):
            self._finishes.put(order)
        else:
            self._orders.put(order)

    def _release(self, piece: int) -> None:
        with self._changed:
            self._bytes -= self._pieces.pop(piece).nbytes
            self._changed.notify_all()

    def _tokens_of(self, number: int) -> NDArray[np.unsignedinteger]:
        """The tokens of a piece, which are in memory from now on. Raises `OSError`."""
        piece = self._pieces[number]
        if isinstance(piece, PieceOnDisk):
            piece = piece.read()
            with self._changed:
                self._pieces[number] = piece
                self._bytes += piece.nbytes
        return piece

    def _keep(self, order: Keep) -> None:
        before = self._tokens_of(order.piece)
        with self._changed:
            kept = [before[begin:end] for begin, end in order.ranges.tolist()]
            self._pieces[order.piece] = np.concatenate(kept) if kept else before[:0]
            self._bytes += self._pieces[order.piece].nbytes - before.nbytes
            self._changed.notify_all()

    def _write_next(self) -> None:
        put = self._orders.get()
        if isinstance(put, Drop):
            self._release(put.piece)
            return
        if isinstance(put, Keep):
            self._keep(put)
            return
        try:
            tokens = self._tokens_of(put.piece)[put.begin : put.end]
            part = self._writer.write(put.path, put.place, tokens.view(np.uint8).data)
            del tokens
            written = Written(put.path, part, fills=put.fills)
        except OSError as error:
            written = Written(put.path, None, error.with_traceback(None))
        if put.last:
            self._release(put.piece)
        self._say(written)

    def _finish_next(self) -> None:
        path, parts = self._finishes.get()
        try:
            finished = Finished(path, *finish_parts(path, parts))
        except OSError as error:
            finished = Finished(path, 0, "", error)
        self._say(finished)
