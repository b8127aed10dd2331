"""Threads that move files, and that nobody has to wait for: Ctrl-C ends a process while they hang in a call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from shardkit.waits import join

Result = TypeVar("Result")


class TransferThreads:
    """A `ThreadPoolExecutor` of daemon threads; a context manager.

    The block's end waits for what is in progress, also after an error. A KeyboardInterrupt does not: a thread in a call
    that never returns is abandoned, and the interpreter does not wait for it at its own end either.
    """

    def __init__(self, count: int, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, action: Callable[[], Result]) -> Future[Result]:
        """Run `action` in a thread as soon as one is free."""
        future: Future[Result] = Future()
        self._tasks.put((future, action))
        return future

    def close(self, *, wait: bool = True) -> None:
        """Cancel what has not begun, and, with `wait`, wait for what has."""
        try:
            while (task := self._tasks.get_nowait()) is not None:
                task[0].cancel()
        except Empty:
            pass
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                join(thread)

    def __enter__(self) -> TransferThreads:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(wait=waits_for_threads(kind))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, action = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = action()
            except BaseException as error:  # noqa: BLE001 (whoever asks for the result gets it)
                future.set_exception(error)
            else:
                future.set_result(result)
            del task, future, action  # an idle thread keeps nothing alive


def waits_for_threads(error: type[BaseException] | None) -> bool:
    """Whether a block that ended with `error` (None: none) waits for its threads: not after a KeyboardInterrupt."""
    return error is None or issubclass(error, Exception)
