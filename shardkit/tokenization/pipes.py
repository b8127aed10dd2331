"""What goes through the pipe between the main process and a worker: messages, and bulk bytes as they are.

Messages are pickled by the standard library, in C: dill, which `multiprocess` uses, takes a millisecond for a chunk and
a third of a second for a vocabulary. All that travels is plain data; the caller's functions are bytes by then.
"""

from __future__ import annotations

import os
import pickle
import queue
import selectors
import socket
import struct
import sys
import threading
from typing import Any

from multiprocess.connection import Connection, Pipe, wait

from shardkit.waits import LOOK_SECONDS

_readv: Any = getattr(os, "readv", None)  # not on Windows, whose pipes are no files either
_MESSAGE_BYTES = 1 << 20  # there bulk bytes go as messages
_SMALL_BYTES = 1 << 16  # of a message that a pipe which is read has room for


def inherited(handle: int) -> Connection:
    """The end of a pipe that was given to this process when it started."""
    if sys.platform == "win32":
        from multiprocess.connection import PipeConnection

        return PipeConnection(handle)
    return Connection(handle)


def one_way() -> tuple[Connection, Connection]:
    """Both ends of a pipe within this process, to read from and to write to: what waits for workers can wait for it."""
    reader, writer = Pipe(duplex=False)
    return reader, writer


def as_bytes(message: object) -> bytes:
    """A message as it travels."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def from_bytes(data: bytes) -> Any:
    """The message that `as_bytes` made these of."""
    return pickle.loads(data)


def send(pipe: Connection, message: object) -> None:
    """Send a message. Raises `BrokenPipeError` if the other side is gone."""
    pipe.send_bytes(as_bytes(message))


def receive(pipe: Connection) -> Any:
    """The next message. Raises `EOFError` if the other side is gone, also in the middle of a message."""
    try:
        return from_bytes(pipe.recv_bytes())
    except OSError as error:
        if error.errno is None:  # "got end of file during message"
            raise EOFError from None
        raise


# A connection's own `recv_bytes` reads a large message in pieces of new memory: ten times the processor time of reading
# it into place (benchmarks/RESULTS.md).
def send_bytes(pipe: Connection, data: memoryview) -> None:
    """Send bytes that the other side knows the number of."""
    while data and _readv is not None:
        data = data[os.write(pipe.fileno(), data) :]
    for start in range(0, len(data), _MESSAGE_BYTES):
        pipe.send_bytes(data[start : start + _MESSAGE_BYTES])


def receive_bytes(pipe: Connection, into: memoryview) -> None:
    """Fill `into` with what `send_bytes` sent. Raises `EOFError` if the other side is gone."""
    while into:
        count = _readv(pipe.fileno(), [into]) if _readv is not None else pipe.recv_bytes_into(into)
        if count == 0:
            raise EOFError
        into = into[count:]


def _socket_of(pipe: Connection) -> socket.socket | None:
    """What a pipe is but on Windows, to send what it has room for."""
    if sys.platform == "win32":
        return None
    found = socket.socket(fileno=pipe.fileno())
    found.settimeout(None)  # whatever the program's default is
    return found


class ReadyPipes:
    """The pipes that can be read, of those that are waited for. What it costs to wait does not grow with their number,
    but on Windows, where pipes are no files."""

    def __init__(self) -> None:
        self._pipes: dict[Connection, Any] = {}
        self._selector = None if sys.platform == "win32" else selectors.DefaultSelector()

    def add(self, pipe: Connection, owner: object) -> None:
        """Wait for that pipe too; `owner` stands for it."""
        self._pipes[pipe] = owner
        if self._selector is not None:
            self._selector.register(pipe, selectors.EVENT_READ, owner)

    def remove(self, pipe: Connection) -> None:
        """Wait for it no more."""
        del self._pipes[pipe]
        if self._selector is not None:
            self._selector.unregister(pipe)

    def wait(self) -> list[Any]:
        """The owners of those that can be read, once there is one."""
        if self._selector is None:
            while not (pipes := wait(list(self._pipes), LOOK_SECONDS)):
                pass
            return [self._pipes[pipe] for pipe in pipes]
        while not (keys := self._selector.select(LOOK_SECONDS)):
            pass
        return [key.data for key, _ in keys]

    def close(self) -> None:
        """Wait for none."""
        if self._selector is not None:
            self._selector.close()


class Outbox:
    """What is to go down a pipe, in this order; what finds no room there, by a thread of its own: a worker that starts
    does not read for a second, and a pipe holds less than a vocabulary. When the other side is gone, what is left is
    dropped: whoever reads from the pipe finds that out."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._socket = _socket_of(pipe)
        self._waiting: queue.SimpleQueue[bytes | memoryview | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given = self._sent = 0  # to the thread, and by it
        self.messages: list[Any] = []  # that wait to go as one

    def flush(self) -> None:
        """Send the `messages` as one, a list."""
        if self.messages:
            messages, self.messages = self.messages, []
            self.put(as_bytes(messages))

    def put(self, data: bytes | memoryview) -> None:
        """Send a message that `as_bytes` made, or, of a memory view, the bytes as they are."""
        to, is_small = self._socket, isinstance(data, bytes) and len(data) <= _SMALL_BYTES
        if to is not None and is_small and self._given == self._sent:
            data = self._sent_at_once(to, bytes(data))
            if not data:
                return
        if self._thread is None:
            self._thread = threading.Thread(target=self._send, name="shardkit-send", daemon=True)
            self._thread.start()
        self._given += 1
        self._waiting.put(data)

    def close(self) -> None:
        """Once the other side is gone: end the thread, before the pipe is closed under it."""
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._socket is not None:
            self._socket.detach()

    @staticmethod
    def _sent_at_once(to: socket.socket, message: bytes) -> memoryview:
        """Send of a message what the pipe has room for; what is left."""
        data = memoryview(struct.pack("!i", len(message)) + message)  # as a `Connection` sends it
        try:
            return data[to.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return data
        except OSError:
            return data[:0]

    def _send(self) -> None:
        try:
            while (data := self._waiting.get()) is not None:
                if isinstance(data, memoryview):
                    send_bytes(self._pipe, data)
                else:
                    self._pipe.send_bytes(data)
                self._sent += 1
                del data  # not held until the next one comes
        except OSError:
            return
