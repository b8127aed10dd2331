"""Ctrl-C ends a command within two seconds, wherever it is.

A KeyboardInterrupt can come between any two instructions of the main thread: also where it holds a lock of the standard
library (in `ThreadPoolExecutor.submit`, say) that another thread then waits for. Python delays it while a
call into C runs (a name server that does not answer), and cleaning up may wait for a worker. Files on disk are right
after a kill at any moment, so the process is ended one second after Ctrl-C, whatever it waits for.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

GRACE_SECONDS = 1.0
_MESSAGE_SECONDS = 0.2


@contextmanager
def prompt_interrupt(message: str) -> Iterator[None]:
    """While the block runs, Ctrl-C raises KeyboardInterrupt, as ever; if the process has not ended a second later, or
    at the second Ctrl-C, it ends with exit code 130, and with `message` on stderr if the block had not come to its end.

    For a process of its own, not for a library. Does nothing on Windows and outside the main thread.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        reader, writer = os.pipe()
    except OSError:  # no descriptor left: the block will say so
        yield
        return
    os.set_blocking(writer, False)
    last_word = threading.Lock()  # taken by who says it, or has to: the caller after the block, or the thread
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, last_word, message), name="shardkit-interrupt", daemon=True).start()
    try:
        yield
    finally:
        if not last_word.acquire(blocking=False):
            time.sleep(GRACE_SECONDS)  # in which the thread ends the process
        signal.set_wakeup_fd(before)
        os.close(writer)


def end_quietly() -> None:
    """From here on Ctrl-C ends this process at once and without a word: what is left is the interpreter's own end, in
    which a KeyboardInterrupt would be the traceback of whoever is closing connections. For a process of its own."""
    if threading.current_thread() is threading.main_thread():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
                stream.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _watch(reader: int, last_word: threading.Lock, message: str) -> None:
    """Read the numbers of the signals that come, until the block has ended without a Ctrl-C, or time is up."""
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            break
        numbers = os.read(reader, 64)
        if not numbers and deadline is None:
            os.close(reader)
            return
        if not numbers and deadline is not None:  # the interpreter's own end may wait for threads
            time.sleep(max(0.0, deadline - time.monotonic()))
            break
        came = numbers.count(signal.SIGINT)
        if came > 1 or (came and deadline is not None):
            break
        if came:
            deadline = time.monotonic() + GRACE_SECONDS
    if last_word.acquire(blocking=False):
        speaker = threading.Thread(target=_say, args=(message,), daemon=True)
        speaker.start()
        speaker.join(_MESSAGE_SECONDS)  # whoever reads stderr may have stopped to
    os._exit(130)


def _say(message: str) -> None:
    with suppress(OSError):
        os.write(2, f"\n{message}\n".encode())
