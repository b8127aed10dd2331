"""Waits that a Ctrl-C ends, in whatever program calls this library.

Python raises KeyboardInterrupt between two instructions of the main thread. A signal that comes in the moment between
Python's last look for one and the wait for a lock, or that the system hands to another thread, which it may, ends no
such wait: the main thread would wait for as long as the network takes. So each wait here has an end, after which Python
looks again.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, TypeVar

Result = TypeVar("Result")

LOOK_SECONDS = 0.5
"""How long a wait of the main thread goes on before Python looks for a signal."""


def result_of(future: Future[Result]) -> Result:
    """What `future` gives or raises, as soon as it is there."""
    while not future.done():
        wait([future], timeout=LOOK_SECONDS)
    return future.result()


def ended(futures: Collection[Future[Any]]) -> set[Future[Any]]:
    """Those of `futures` that have ended, as soon as all have, or one with an error."""
    while True:
        done, left = wait(futures, timeout=LOOK_SECONDS, return_when=FIRST_EXCEPTION)
        if not left or any(not one.cancelled() and one.exception() is not None for one in done):
            return done


def join(thread: threading.Thread) -> None:
    """Wait for the thread's end."""
    while thread.is_alive():
        thread.join(LOOK_SECONDS)
