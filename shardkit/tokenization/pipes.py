"""What goes through the pipe between the main process and a worker: messages, and bulk bytes as they are.

Messages are pickled by the standard library, in C: dill, which `multiprocess` uses, takes a millisecond for a chunk and
a third of a second for a vocabulary. All that travels is plain data; the caller's functions are bytes by then.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from multiprocess.connection import Connection


def send(pipe: Connection, message: object) -> None:
    """Send a message. Raises `BrokenPipeError` if the other side is gone."""
    pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


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
