"""What it costs to read a gzip file of text: `tokenize`'s stream (zlib-ng), Python's zlib, and Arrow's stream.

    python -m benchmarks.bench_gunzip [--mb 200] [--rounds 3]

Each reads the same `.jsonl.gz`, of `network_data`'s prose, in this process; the rounds take turns. Prints MB of text
for a second of processor time, of the best round, and the ratio of `tokenize`'s stream to Python's zlib.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from benchmarks.network_data import PROSE_BYTES, paragraphs, write_jsonl
from shardkit.sources.gzip_stream import GzipStream

_PART_BYTES = 1 << 20


def shardkit(path: Path) -> int:
    """The file's bytes of text, by the stream that `tokenize` reads."""
    total, stream = 0, GzipStream(open(path, "rb"))  # noqa: SIM115 (closed with the stream)
    while part := stream.read(_PART_BYTES):
        total += len(part)
    stream.close()
    return total


def python(path: Path) -> int:
    """The same by Python's zlib."""
    total, unpacking = 0, zlib.decompressobj(16 + zlib.MAX_WBITS)
    with open(path, "rb") as file:
        while block := file.read(256 << 10):
            while block:
                total += len(unpacking.decompress(block, _PART_BYTES))
                block = unpacking.unconsumed_tail
    return total


def arrow(path: Path) -> int:
    """The same by Arrow's stream."""
    total = 0
    with pa.CompressedInputStream(pa.OSFile(str(path)), "gzip") as stream:
        while part := stream.read(_PART_BYTES):
            total += len(part)
    return total


WAYS: dict[str, Callable[[Path], int]] = {"tokenize": shardkit, "zlib": python, "Arrow": arrow}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Parse, measure, print; returns MB of text for a second of processor time by way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    best = dict.fromkeys(WAYS, 0.0)
    with tempfile.TemporaryDirectory(prefix="bench-gunzip-") as folder:
        path = Path(folder) / "a.jsonl.gz"
        size = int(options.mb * 1e6)
        write_jsonl(path, paragraphs(min(PROSE_BYTES, size)), 1, size)
        for _ in range(options.rounds):
            totals = set()
            for way, read in WAYS.items():
                start = time.process_time()
                totals.add(total := read(path))
                best[way] = max(best[way], total / 1e6 / (time.process_time() - start))
            assert len(totals) == 1, "they read different texts"
    for way, rate in best.items():
        print(f"{way:10} {rate:8,.0f} MB of text for a second of processor time")
    print(f"ratio {best['tokenize'] / best['zlib']:.1f}")
    return best


if __name__ == "__main__":
    main()
