"""Ctrl-C ends a command within two seconds, wherever it is.

A KeyboardInterrupt can come between any two instructions of the main thread: also where it holds a lock of the standard
library (in `ThreadPoolExecutor.submit`, say) that another thread then waits for; and cleaning up may wait for an
upload. What a command leaves on disk is right after a kill at any moment, so it need not wait for either.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = 1.5


@contextmanager
def prompt_interrupt(message: str) -> Iterator[None]:
    """While the block runs, Ctrl-C raises KeyboardInterrupt, as ever; if the process has not ended 1.5 s later, or at
    the second Ctrl-C, it ends with exit code 130, and with `message` on stderr if the block had not come to its end.

    Does nothing on Windows, where SIGINT has another handler than Python's own, and outside the main thread.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not hasattr(signal, "setitimer") or not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = said = False

    def interrupt(*_signal: object) -> None:
        nonlocal interrupted
        if interrupted:
            leave()
        interrupted = True
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        raise KeyboardInterrupt

    def leave(*_signal: object) -> None:
        if not said:
            os.write(2, f"\n{message}\n".encode())
        os._exit(130)

    before = signal.signal(signal.SIGALRM, leave)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        said = True  # by the caller
        if not interrupted:  # else the time goes on: the interpreter's own end waits for threads
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, before)
