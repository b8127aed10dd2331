"""How worker processes are started: their environment, their `__main__`, and no Ctrl-C while they start."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C in the block takes effect at its end; processes that are started in it never see one."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    from multiprocess import resource_tracker

    resource_tracker.ensure_running()  # which every start does, and which unblocks SIGINT the first time
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))  # another thread may be given it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what is started
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came and callable(handler):  # raising the signal again would count as a second Ctrl-C
            handler(signal.SIGINT, None)


@contextmanager
def without_main_script() -> Iterator[None]:
    """Keep spawn from running the caller's script again in each worker: our workers need nothing of it, and a script
    without an `if __name__ == "__main__"` guard would start itself for ever. Its functions travel by value."""
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    try:
        for name in saved:
            if hasattr(main, name):
                setattr(main, name, None)
        if saved["__file__"] is not None:
            del main.__file__
        yield
    finally:
        for name, value in saved.items():
            if value is not None:
                setattr(main, name, value)


# Workers are the parallelism: inside one, the engine's and Arrow's own thread pools stay at one thread (with its helper
# thread fastokens takes 40 % more processor time). One allocator, glibc's, serves Arrow too; it keeps the memory of one
# chunk for the next instead of returning it to the system, and takes it in huge pages where the system has them: on a
# virtual machine fresh memory is the dearest part of reading (benchmarks/RESULTS.md).
WORKER_ENVIRONMENT = {
    "FASTOKENS_BPE_THREADS": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "ARROW_DEFAULT_MEMORY_POOL": "system", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip


@contextmanager
def worker_environment() -> Iterator[None]:
    """Set the environment that spawned workers inherit, and put this process's own back."""
    saved = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
