"""Kill a tokenization again and again, at random moments, and compare its bytes with an undisturbed run's.

    python -m benchmarks.soak_tokenize [--source sample] [--kills 100] [--seed 0]

Each kill is a SIGKILL of the whole process group, or of one worker, at a random moment of the run (start-up, reading,
writing, completing a shard); the next run of the same command goes on. When one ends by itself its folder is compared,
file by file, and the next starts in a new folder. Prints one line at the end; exit code 1 if any byte differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil


def start(source: str, out: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """One tokenization, in a process group of its own."""
    command = [sys.executable, "-m", "shardkit", "tokenize", source, "--out", str(out), *options]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, cwd=Path.cwd()
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The dataset's files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def kill(process: subprocess.Popen[bytes], moments: random.Random) -> bytes:
    """Kill a run, or one of its workers, whose death must end the run in one line; what it said."""
    workers = psutil.Process(process.pid).children()
    if moments.random() < 0.5 and workers:
        with suppress(psutil.NoSuchProcess):
            moments.choice(workers).kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    stderr = process.communicate()[1]
    if b"Traceback" in stderr:
        raise SystemExit(f"a worker was killed, and the run ended in a traceback:\n{stderr.decode()}")
    return stderr


def soak(source: str, kills: int, seed: int, options: list[str]) -> tuple[int, int, int]:
    """Returns (kills, finished runs, runs that differ)."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        began = time.monotonic()
        calm = start(source, base / "calm", options)
        calm.communicate()
        if calm.returncode:
            raise SystemExit("the undisturbed run failed")
        duration = time.monotonic() - began
        expected = contents(base / "calm")
        killed = finished = wrong = 0
        while killed < kills or finished == 0:
            process = start(source, base / "out", options)
            try:
                wait = moments.uniform(0.0, duration) if killed < kills else None
                _, stderr = process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                killed += 1
                stderr = kill(process, moments)
                if process.returncode:
                    continue
            finished += 1
            if process.returncode or contents(base / "out") != expected:
                print(f"run {finished} after {killed} kills: exit {process.returncode} {stderr.decode()}")
                wrong += 1
            shutil.rmtree(base / "out")
    return killed, finished, wrong


def main(arguments: list[str] | None = None) -> int:
    """Parse, soak, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="sample")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-tokens", default="20000")
    parser.add_argument("--encoder", default="tiktoken", help="slower engine: more moments to hit")
    args = parser.parse_args(arguments)
    options = ["--shard-tokens", args.shard_tokens, "--encoder", args.encoder, "--workers", "2"]
    killed, finished, wrong = soak(args.source, args.kills, args.seed, options)
    print(f"{killed} kills, {finished} finished runs, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
