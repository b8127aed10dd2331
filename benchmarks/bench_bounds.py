"""Bounds: how much memory and time `shardkit tokenize` takes for inputs that are made to cost much.

    python -m benchmarks.bench_bounds [--size 100_000_000] [--workers 2] [--tokenizer gpt2] [--only NAME ...]

`--size` is the input's size in bytes, decompressed and decoded. Memory is the peak over time of the sum of RssAnon (a
process's own; mapped files are not) over the main process and its workers, sampled every 20 ms; `idle` is what they
take for one short document. What is refused is printed with its one line.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Found = dict[str, Any]
PROSE = "The quick brown fox jumps over the lazy dog, and 12 more of them; nobody knows why. "
_BLOCK = 1 << 20


def _repeated(unit: bytes, size: int) -> Iterator[bytes]:
    """`unit` over and over, `size` bytes to a whole unit, by blocks."""
    block, left = unit * (_BLOCK // len(unit)), size // len(unit) * len(unit)
    while left > 0:
        yield block[:left]
        left -= len(block)


def _write(path: Path, *contents: Iterator[bytes] | bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else open(path, "wb") as file:
        for content in contents:
            for block in [content] if isinstance(content, bytes) else content:
                file.write(block)
    return path


def idle(folder: Path, _size: int) -> Path:
    """One short document, whatever the size."""
    return _write(folder / "a.jsonl", b'{"text": "a short one"}\n')


def blank_lines(folder: Path, size: int) -> Path:
    """Two documents, and line ends between them."""
    return _write(folder / "a.jsonl", b'{"text": "one"}\n', _repeated(b"\n", size), b'{"text": "two"}\n')


def blank_between(folder: Path, size: int) -> Path:
    """A blank line after each document."""
    return _write(folder / "a.jsonl", _repeated(b'{"text": "one more document"}\n\n', size))


def bad_lines(folder: Path, size: int) -> Path:
    """One document, then lines that are no JSON."""
    return _write(folder / "skip.jsonl", b'{"text": "one"}\n', _repeated(b"x\n", size))


def bad_objects(folder: Path, size: int) -> Path:
    """One document, then lines that begin as objects do."""
    return _write(folder / "skip.jsonl", b'{"text": "one"}\n', _repeated(b'{"text": 1}\n', size))


def gz_of_line_ends(folder: Path, size: int) -> Path:
    """A compressed file of one document and line ends."""
    return _write(folder / "a.jsonl.gz", b'{"text": "one"}\n', _repeated(b"\n", size))


def gz_of_one_line(folder: Path, size: int) -> Path:
    """A compressed file of one line of zeros."""
    return _write(folder / "a.jsonl.gz", b'{"text": "one"}\n', _repeated(b"\0", size))


def dictionary(folder: Path, size: int) -> Path:
    """A parquet column of rows of 10 kB, of which there are five, as a dictionary."""
    values = [f"{number} {PROSE * 120}"[:10_000] for number in range(5)]
    table = pa.table({"text": [values[row % 5] for row in range(1000)]})
    with pq.ParquetWriter(folder / "a.parquet", table.schema) as writer:
        for batch in [pa.concat_tables([table] * max(1, size // 10_000_000))]:
            writer.write_table(batch, row_group_size=1 << 30)
    return folder / "a.parquet"


def one_text(folder: Path, size: int) -> Path:
    """A text file of prose: one document."""
    return _write(folder / "a.txt", _repeated(PROSE.encode(), size))


def one_row(folder: Path, size: int) -> Path:
    """A row of prose in a jsonl file."""
    return _write(folder / "a.jsonl", b'{"text": "', _repeated(PROSE.encode(), size), b'"}\n')


def one_word(folder: Path, size: int) -> Path:
    """A row that is one word."""
    return _write(folder / "a.jsonl", b'{"text": "', _repeated(b"abcdefghij", size), b'"}\n')


INPUTS: dict[str, Callable[[Path, int], Path]] = {
    function.__name__.replace("_", " "): function
    for function in (
        idle,
        blank_lines,
        blank_between,
        bad_lines,
        bad_objects,
        gz_of_line_ends,
        gz_of_one_line,
        dictionary,
        one_text,
        one_row,
        one_word,
    )
}


def own_memory(pid: int) -> int:
    """RssAnon of a process, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [pid, *(int(child) for task in tasks for child in (task / "children").read_text().split())]
    except OSError:
        return [pid]


def measure(name: str, folder: Path, size: int, *, workers: int, tokenizer: str) -> Found:
    """Make the input `name` in `folder`, tokenize it, and say what that took."""
    folder.mkdir(parents=True, exist_ok=True)
    source = INPUTS[name](folder, size)
    command = [sys.executable, "-m", "shardkit", "tokenize", str(source), "--out", str(folder / "out"), "--overwrite"]
    command += ["--workers", str(workers), "--tokenizer", tokenizer, "--val-shards", "0", "--json"]
    command += ["--skip-bad-rows"] if source.name.startswith("skip") else []
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, sum(map(own_memory, family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    ended.set()
    watcher.join()
    seconds = time.perf_counter() - began
    kept = sum(path.stat().st_size for path in (folder / "out").rglob("*.json*")) if (folder / "out").exists() else 0
    tokens = json.loads(output)["tokens"] if process.returncode == 0 else 0
    said = errors.strip().splitlines()[-1] if process.returncode else f"{tokens:,} tokens"
    return {"seconds": seconds, "bytes": peak, "kept": kept, "rc": process.returncode, "said": said}


def line(name: str, size: int, found: Found) -> str:
    """A measurement in one line: the input, its size, seconds, memory, and the bytes of manifest and journal."""
    return (
        f"{name:16} {size / 1e6:8,.0f} MB {found['seconds']:8.1f} s {found['bytes'] / 1e6:8,.0f} MB "
        f"{found['kept'] / 1e3:8,.0f} kB  rc {found['rc']}  {found['said']}"
    )


def main() -> None:
    """Measure each input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--only", nargs="*", default=list(INPUTS), choices=list(INPUTS), metavar="NAME")
    parser.add_argument("--out", default=None, help="a folder on the disk to use")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in options.only:
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            found = measure(name, Path(folder), options.size, workers=options.workers, tokenizer=options.tokenizer)
        print(line(name, options.size, found), flush=True)


if __name__ == "__main__":
    main()
