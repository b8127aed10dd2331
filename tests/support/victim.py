"""Commands that something happens to: SIGKILL, an error, or the loss of a folder, at their Nth change to files.

    with Victims() as victims:
        changes = victims.run(["push", "a", "b"], watched=[folder]).changes
        for n in range(1, changes + 1):
            ended = victims.run(["push", "a", "b"], watched=[folder], at=n, what="kill")

Each command is a process of its own, forked from one that has imported everything: so a campaign of thousands takes
minutes. A change is an open for writing, a rename, a link, a removal, or a folder made or removed, below a `watched`
folder, by the command's main process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from forked_workers import IMPORTS as WORKERS_IMPORT
from forked_workers import forked_workers

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {"os.rename": 1, "os.link": 1, "os.symlink": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}
IMPORTS = (
    *("fsspec.implementations.local", "huggingface_hub.hf_api"),
    *(f"shardkit.{name}" for name in ("cli.commands", "look.next_steps", "look.run_summary", "look.verify")),
    *(f"shardkit.{name}" for name in ("remote.pull", "remote.push", "remote.storage", "remote.hub")),
    *(f"shardkit.tokenization.{name}" for name in ("local_runner", "pipeline", "progress_bar")),
)
LIMITS = {"files": resource.RLIMIT_NOFILE, "bytes of a file": resource.RLIMIT_FSIZE}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), the changes it made, and what it said."""

    code: int
    changes: int
    stderr: str

    def assert_clean(self, *, looked_at_shards: bool = False) -> None:
        """It did its work, was killed, or said in one line why not, where it looked at shards in one for each of these.
        (An abandoned thread's last words are not seen.)"""
        assert self.code in (0, 1, -signal.SIGKILL), (self.code, self.stderr)
        assert "Traceback" not in self.stderr, self.stderr
        if self.code == 1:
            lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
            shards = {line.split(".npy")[0] for line in lines}
            assert len(lines) == (len(shards) if looked_at_shards else 1) > 0, self.stderr


class Victims:
    """The process that the commands are forked from; a context manager. It has imported what commands and their workers
    import, if it is not `bare`, and `modules`, so that not each has to; `environment` is added to this process's."""

    def __init__(self, *modules: str, bare: bool = False, **environment: str) -> None:
        imported = () if bare else (*IMPORTS, *WORKERS_IMPORT)
        self._folder = tempfile.TemporaryDirectory(prefix="victims-")
        self._process = subprocess.Popen(
            [sys.executable, __file__, *imported, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            cwd=ROOT,
        )
        self._number = 0

    def start(self, command: Sequence[object], watched: Sequence[Path], **orders: Any) -> int:
        """Start a command; `wait` for the number that this returns."""
        self._number += 1
        stderr = f"{self._folder.name}/{self._number}"
        words = [str(word) for word in command]
        order = {"number": self._number, "command": words, "watched": [str(path.resolve()) for path in watched]}
        self._send({**order, **orders, "stderr": stderr})
        return self._number

    def wait(self, number: int) -> Ended:
        """How the command that `start` numbered so ended."""
        self._send({"wait": number})
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        stderr = Path(f"{self._folder.name}/{number}")
        changes = Path(f"{stderr}.changes")
        count = len(changes.read_bytes()) if changes.exists() else 0
        return Ended(answer["code"], count, stderr.read_text(errors="replace"))

    def run(self, command: Sequence[object], watched: Sequence[Path], **orders: Any) -> Ended:
        """Run a command to its end. `orders`: `at` and `what` ("kill", "vanish" or the name of an errno), `limits`."""
        return self.wait(self.start(command, watched, **orders))

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()


def main() -> None:
    """Fork a process for each order on standard input, and answer how those that are waited for ended."""
    from shardkit import network

    network.FIRST_WAIT_SECONDS = 0.001  # between tries; everything else is the product's own
    for name in sys.argv[1:]:
        import_module(name)

    processes: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(processes.pop(order["wait"]), 0)
            print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
            continue
        process = os.fork()
        if process == 0:
            _obey(order)
        processes[order["number"]] = process


def _obey(order: dict[str, Any]) -> None:
    import shardkit.cli

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(order["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    counter = os.open(order["stderr"] + ".changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    workers: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if order["command"][0] == "tokenize" and WORKERS_IMPORT[0] in sys.modules:
        workers = forked_workers(fresh=False)
    for name, limit in order.get("limits", {}).items():
        resource.setrlimit(LIMITS[name], (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.addaudithook(_Trap(order, counter))
    sys.argv = ["shardkit", *order["command"]]
    with workers:
        shardkit.cli.run()
    os._exit(0)  # run() has left already


class _Trap:
    def __init__(self, order: dict[str, Any], counter: int) -> None:
        self._watched = tuple(order["watched"])
        self._at, self._what, self._times = order.get("at", 0), order.get("what", ""), order.get("times", 1)
        self._vanishing = order.get("vanishing", "")
        self._count, self._counter, self._process = 0, counter, os.getpid()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            path = arguments[0] if changes else ""
        elif event in CHANGES:
            path = os.fspath(arguments[CHANGES[event]])
        else:
            return
        if not isinstance(path, str) or not os.path.abspath(path).startswith(self._watched or ("\0",)):
            return
        if os.getpid() != self._process:  # a process that it started
            return
        self._count += 1
        os.write(self._counter, b".")
        if self._at and self._at <= self._count < self._at + self._times:
            self._strike(path)

    def _strike(self, path: str) -> None:
        if self._what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._what == "vanish":
            self._watched = ()
            with contextlib.suppress(OSError):
                gone = f"{self._vanishing}.gone"
                os.rename(self._vanishing, gone)  # all of it at once: no thread writes into what is left of it
                shutil.rmtree(gone)
        else:
            code = getattr(errno, self._what)
            raise OSError(code, os.strerror(code), path)


if __name__ == "__main__":
    main()
