"""Worker processes that are forked from one which has imported what a worker imports: that takes longer than most runs
of a test do. Each is what a fresh Python would be: a child of the process that asks for it, in its folder, environment
and limits, that does what `python -c` would. Elsewhere than on Linux workers are started as ever.

    with forked_workers():
        tokenize(...)
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = ("shardkit.tokenization.worker_process", "shardkit.sources.texts", "tiktoken", "fastokens")
LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS)
ADOPTS_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER


class Forked:
    """Of a `Popen`, what is used of a worker's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            found, status = os.waitpid(self.pid, 0 if until is None else os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked worker", timeout or 0)
            else:
                time.sleep(0.001)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks, and our end of the line to it: a fresh one, or one forked from this, which must have
    imported what workers import, and have one thread."""

    def __init__(self, *, fresh: bool) -> None:
        self._lock, self._adopt = threading.Lock(), ctypes.CDLL(None).prctl
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if fresh:
                self._process = _started(theirs.fileno())
            elif os.fork() == 0:
                self._line.close()
                serve(theirs)
                os._exit(0)

    def start(self, command: list[str], *, env: dict[str, str], stdin: int, pass_fds: list[int]) -> Forked:
        """A child of this process that does what `subprocess.Popen` would have it do."""
        limits = [(limit, resource.getrlimit(limit)) for limit in LIMITS]
        order = {"program": command[2], "environment": env, "folder": os.getcwd(), "limits": limits, "files": pass_fds}
        with self._lock:
            self._adopt(ADOPTS_ORPHANS, 1, 0, 0, 0)  # its grandchild becomes our child, when its child ends
            try:
                socket.send_fds(self._line, [json.dumps(order).encode()], [1, 2, *pass_fds])
                return Forked(int(self._line.recv(32)))
            finally:
                self._adopt(ADOPTS_ORPHANS, 0, 0, 0, 0)

    def end(self) -> None:
        self._line.close()
        self._process.wait()


def _started(line: int) -> subprocess.Popen[bytes]:
    from shardkit.tokenization.spawning import WORKER_ENVIRONMENT

    environment = {**os.environ, **WORKER_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(line)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[line], cwd=ROOT)


@contextlib.contextmanager
def forked_workers(*, fresh: bool = True) -> Iterator[None]:
    """The workers of this process are forked, from a fresh process or (of one thread) a fork of this one."""
    from shardkit.tokenization import spawning

    if sys.platform != "linux":
        yield
        return
    made, ours = [] if fresh else [Nursery(fresh=False)], os.getpid()

    def popen(command: list[str], **options: Any) -> Any:
        if os.getpid() != ours:  # a fork, whose children they would not be
            return subprocess.Popen(command, **options)
        if not made:
            made.append(Nursery(fresh=True))
        return made[0].start(command, **options)

    spawning.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": popen})  # type: ignore[attr-defined]
    try:
        yield
    finally:
        spawning.subprocess = subprocess  # type: ignore[attr-defined]
        if fresh and made:
            made[0].end()


# -- in the process that forks -----------------------------------------------------------------------------------------


def serve(line: socket.socket) -> None:
    """Fork a worker for each order, until nobody is left who could give one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)  # a thread of Arrow's allocator
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(line, 1 << 20, 16)
        if not message:
            return
        child = os.fork()
        if child == 0:
            child = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == child:  # until it is gone, and who asked is our parent
                time.sleep(0)
            line.send(str(os.getpid()).encode())
            _work(json.loads(message), files)
        os.waitpid(child, 0)
        for file in files:
            os.close(file)


def _work(order: dict[str, Any], files: list[int]) -> NoReturn:
    numbers = [1, 2, *order["files"]]
    apart = [fcntl.fcntl(file, fcntl.F_DUPFD, max(numbers) + 1) for file in files]
    os.closerange(3, min(apart))
    for file, number in zip(apart, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for limit, values in order["limits"]:
        resource.setrlimit(limit, values)
    main = sys.modules["__main__"] = ModuleType("__main__")
    sys.argv = ["-c"]
    try:
        exec(order["program"], main.__dict__)
    except BaseException:  # noqa: BLE001 (as at the end of any program)
        traceback.print_exc()
    os._exit(1)  # a worker's program does not come to its end


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
