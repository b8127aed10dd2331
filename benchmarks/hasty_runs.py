"""`tokenize` in processes forked from one that has imported everything, with short waits: see `soak_network`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from benchmarks.network_runs import ROOT, Server

CHUNK_BYTES, SHARD_TOKENS = 20_000, 10_000
LONGEST_SECONDS = 120.0
# Constants that take their small values in the run and its workers; of modules that are not there, none.
HASTY = [
    ("shardkit.network", "FIRST_WAIT_SECONDS", 0.01),
    ("shardkit.sources.remote_bytes", "SILENT_SECONDS", 0.5),
    ("shardkit.sources.remote_bytes", "PROGRESS_BYTES", 16 << 10),
    ("shardkit.sources.read_ahead", "SPAN_BYTES", 64 << 10),
    ("shardkit.sources.read_ahead", "FIRST_SPAN_BYTES", 16 << 10),
]


class Ended(NamedTuple):
    """Exit code (None: killed, or it took too long) and what it said."""

    code: int | None
    said: str


class HastyTime:
    """The module `time`, with sleeps of a hundredth: for the Hub's client, which waits seconds between its tries."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds / 100)


def make_hasty() -> None:
    """Shorten the waits in this process."""
    for module, name, value in HASTY:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        getattr(found, name)  # one that is not there would leave the product at its full waits
        setattr(found, name, value)
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        vars(importlib.import_module(module))["time"] = HastyTime()


def start(source: str, out: Path, said: Path) -> int:
    """One run in a process group of its own, forked from this process, which has imported everything."""
    process = os.fork()
    if process == 0:
        os.setsid()
        _run(source, out, said)
    return process


def _run(source: str, out: Path, said: Path) -> NoReturn:
    from shardkit import ShardkitError, tokenize

    code = 2
    try:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        tokenize(
            source,
            out,
            workers=1,
            prefix="soak",
            val_shards=0,
            shard_tokens=SHARD_TOKENS,
            chunk_bytes=CHUNK_BYTES,
        )
        code = 0
    except ShardkitError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 1
    except BaseException:  # noqa: BLE001 (told by the exit code)
        traceback.print_exc()
    os._exit(code)


def wait(process: int, said: Path, seconds: float) -> Ended:
    """How the run ended; one that takes longer is killed with its workers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace") if said.exists() else "")
        time.sleep(0.01)
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # it has not come so far as to have a group
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return Ended(None, "")


def become_client(server: Server, work: Path) -> None:
    """Make this process a client of the server that has imported everything, and its children hasty."""
    hasty = work / "hasty"
    hasty.mkdir()
    source = "from benchmarks.hasty_runs import make_hasty\nmake_hasty()\n"
    (hasty / "sitecustomize.py").write_text(source)
    os.environ |= {**server.environment(work / "home"), "PYTHONPATH": f"{hasty}{os.pathsep}{ROOT}"}
    for name in ("datasets", "shardkit.cli", "shardkit.tokenization.local_runner", "shardkit.tokenization.pipeline"):
        importlib.import_module(name)
    make_hasty()
