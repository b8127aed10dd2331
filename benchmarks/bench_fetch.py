"""What it costs to bring bytes from a socket into memory: `tokenize`'s reading ahead, and the Hub's own HTTP client.

    python -m benchmarks.bench_fetch [--mb 400] [--rounds 3]

Each reads the same file of random bytes from the local server in a process of its own, in requests of 8 MB over eight
connections; imports are left out, and the rounds take turns. Prints MB for a second of processor time, of the best
round, and the ratio.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.network_runs import ROOT, Server

_SHARED = """
import os, resource, sys
url, size, step = sys.argv[1], int(sys.argv[2]), 8 << 20
def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
"""
WAYS = {
    "reading ahead": """
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import InputFile
file = InputFile(path="a.bin", url=url, bytes=size, format="txt")
def read(size):
    with ReadAhead() as ahead:
        spans = [ahead.ask(file, start, min(start + step, size)) for start in range(0, size, step)]
        for span in spans:
            ahead.wait(span, span.stop)
            ahead.release(span)
""",
    "the Hub's client": """
from huggingface_hub import get_session
from concurrent.futures import ThreadPoolExecutor
def read_part(start, stop):
    into, at = bytearray(stop - start), 0
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers) as answer:
        for block in answer.iter_raw():
            into[at : at + len(block)] = block
            at += len(block)
    assert at == len(into)
def read(size):
    with ThreadPoolExecutor(8) as threads:
        for part in [threads.submit(read_part, s, min(s + step, size)) for s in range(0, size, step)]:
            part.result()
""",
}
_MEASURE = "\nread(1000)\nbefore = seconds()\nread(size)\nprint(seconds() - before)\n"


def processor_seconds(way: str, url: str, size: int) -> float:
    """What one reading of the file by `way` takes."""
    code = _SHARED + WAYS[way] + _MEASURE
    command = [sys.executable, "-c", code, url, str(size)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Parse, measure, print; returns MB for a second of processor time by way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    size = int(options.mb * 1e6)
    with tempfile.TemporaryDirectory(prefix="bench-fetch-") as folder:
        (Path(folder) / "files").mkdir()
        (Path(folder) / "files" / "a.bin").write_bytes(os.urandom(size))
        with Server(Path(folder)) as server:
            url = f"{server.endpoint.replace('127.0.0.1', 'localhost')}/_files/a.bin"
            rounds = [{way: processor_seconds(way, url, size) for way in WAYS} for _ in range(options.rounds)]
    best = {way: options.mb / min(seconds[way] for seconds in rounds) for way in WAYS}
    for way, rate in best.items():
        print(f"{way:18} {rate:8,.0f} MB for a second of processor time")
    ours, clients = best.values()
    print(f"ratio {ours / clients:.1f}")
    return best


if __name__ == "__main__":
    main()
