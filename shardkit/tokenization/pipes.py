"""What goes through the pipe between the main process and a worker: messages, and bulk bytes as they are.

Messages are pickled by the standard library, in C: dill, which `multiprocess` uses, takes a millisecond for a chunk and
a third of a second for a vocabulary. All that travels is plain data; the caller's functions are bytes by then.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import struct
import threading
from typing import Any

from multiprocess.connection import Connection

_SMALL_BYTES = 1 << 16  # of a message that a pipe which is read has room for


def as_bytes(message: object) -> bytes:
    """A message as it travels."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def send(pipe: Connection, message: object) -> None:
    """Send a message. Raises `BrokenPipeError` if the other side is gone."""
    pipe.send_bytes(as_bytes(message))


def receive(pipe: Connection) -> Any:
    """The next message. Raises `EOFError` if the other side is gone."""
    return pickle.loads(pipe.recv_bytes())


# A connection's own `recv_bytes` reads a large message in pieces of new memory: ten times the processor time of reading
# it into place (benchmarks/RESULTS.md).
def send_bytes(pipe: Connection, data: memoryview) -> None:
    """Send bytes that the other side knows the number of."""
    while data:
        data = data[os.write(pipe.fileno(), data) :]


def receive_bytes(pipe: Connection, into: memoryview) -> None:
    """Fill `into` with what `send_bytes` sent. Raises `EOFError` if the other side is gone."""
    while into:
        count = os.readv(pipe.fileno(), [into])
        if count == 0:
            raise EOFError
        into = into[count:]


class Outbox:
    """What is to go down a pipe, in this order; what finds no room there, by a thread of its own: a worker that starts
    does not read for a second, and a pipe holds less than a vocabulary. When the other side is gone, what is left is
    dropped: whoever reads from the pipe finds that out."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._socket = socket.socket(fileno=pipe.fileno())
        self._socket.settimeout(None)  # whatever the program's default is
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
        if self._given == self._sent and isinstance(data, bytes) and len(data) <= _SMALL_BYTES:
            data = self._sent_at_once(data)
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
        self._socket.detach()

    def _sent_at_once(self, message: bytes) -> memoryview:
        """Send of a message what the pipe has room for; what is left."""
        data = memoryview(struct.pack("!i", len(message)) + message)  # as a `Connection` sends it
        try:
            return data[self._socket.send(data, socket.MSG_DONTWAIT) :]
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
