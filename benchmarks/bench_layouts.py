"""Layouts: how long a plan takes and what it costs, how much of a row it uses, and how fast its rows are read.

    python -m benchmarks.bench_layouts [--tokens 1_000_000_000] [--seq-len 2048] [--rounds 5] [--data FOLDER ...]

Synthetic shards in a temporary folder: random ids in documents of log-normal lengths, 1,000 tokens on average (median
600). `--data` adds folders that `shardkit tokenize` made. Each measurement runs in a fresh process.

- plan: from shards to a kept plan of packed rows; `cold` drops the shards from the page cache first, `again` takes what
  was kept. Memory is the peak of RssAnon: the process's own, interpreter and numpy included, mapped files not.
- use: what each layout makes of a folder, and packing in blocks of other sizes.
- rates: rows of a batch read and widened to int64 inputs and targets, as the loader does, page cache warm; the median
  of interleaved rounds, and its ratio to `contiguous` under the same shuffle. Per second of processor time: nothing is
  waited for, and what else the machine does stays out. `run` is what the loader does instead for contiguous rows in
  order: a whole batch is one stretch of one shard, and its targets overlap its inputs. `batches` are whole ones from
  a shuffled `ShardLoader`, with `documents` its cu_seqlens and position ids too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shardkit.batches.layouts import LAYOUTS, Layout, make_layout
from shardkit.batches.order import Order
from shardkit.batches.packing import BLOCK_TOKENS, plan_blocks
from shardkit.dataset.documents import document_starts
from shardkit.dataset.token_stream import TokenStream, open_split

EOT = 50256
BATCHES = ("contiguous/batches", "documents/batches", "packed/batches", "packed documents/batches")
CONTESTANTS = (
    *(f"{name}/{order}" for name in LAYOUTS for order in ("shuffled", "in order")),
    "run/in order",
    *BATCHES,
)
MOST_ROWS = 100_000
LEAST_ROWS = 20_000
Found = dict[str, float]


def write_documents(folder: Path, tokens: int, tokens_per_shard: int) -> None:
    """Bare shards of random ids in documents of log-normal lengths, across shard ends."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lengths = np.maximum(1, random.lognormal(np.log(1000) - 0.5, 1.0, tokens // 900 + 100).astype(np.int64))
    starts = np.cumsum(lengths) - lengths
    for index, begin in enumerate(range(0, tokens, tokens_per_shard)):
        shard = random.integers(0, EOT, min(tokens_per_shard, tokens - begin), dtype=np.uint16)
        first, last = np.searchsorted(starts, (begin, begin + len(shard)))
        shard[starts[first:last] - begin] = EOT
        np.save(folder / f"synthetic_train_{index:06d}.npy", shard)


def open_data(folder: Path) -> tuple[TokenStream, int]:
    """The train split of a folder, and its EOT id."""
    manifest, stream = open_split(folder, "train", verify=False)
    stream.eot_id = manifest.tokenizer.eot_id if manifest.tokenizer else EOT
    return stream, stream.eot_id


def anonymous_mb() -> float:
    """This process's anonymous resident memory, in MB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def forget(folder: Path) -> None:
    """Ask the kernel to drop the shards from its page cache."""
    os.sync()
    for path in folder.glob("*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def time_plan(folder: Path, seq_len: int, cache: Path, *, cold: bool) -> Found:
    """Make the layout `packed` of the folder: seconds, peak memory, and the size of what is kept."""
    if cold:
        forget(folder)
    peak, done = [anonymous_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak.append(anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    stream, _ = open_data(folder)
    layout = make_layout("packed", stream, seq_len, cache=cache)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    size = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    return {"seconds": seconds, "peak_mb": max(peak), "kept_mb": size / 1e6, "use": layout.stats().use}


def use_lines(folder: Path, seq_len: int) -> Iterator[str]:
    """What each layout makes of the folder, and packing in blocks of other sizes."""
    stream, eot = open_data(folder)
    for name in LAYOUTS:
        yield str(make_layout(name, stream, seq_len, cache=None).stats())
    starts = document_starts(stream, eot, None)
    for size in (1 << 20, 1 << 22, 1 << 24, BLOCK_TOKENS):
        rows = sum(len(part[2]) for part in plan_blocks(starts, stream.tokens, seq_len, block_tokens=size))
        yield f"packed in blocks of {size:,} tokens: use {stream.tokens / (rows * seq_len):.3%}"


def batches(layout: Layout, batch_size: int, *, shuffle: bool) -> list[list[int]]:
    """The rows of each batch, up to `MOST_ROWS` in all."""
    rows = min(layout.n_rows, MOST_ROWS) // batch_size * batch_size
    order = Order(n_windows=layout.n_rows, seed=0, shuffle=shuffle)
    found: list[list[int]] = order.windows(np.arange(rows)).reshape(-1, batch_size).tolist()
    return found


def time_rows(contestant: str, folder: Path, batch_size: int, seq_len: int, cache: Path) -> Found:
    """Read rows batch by batch, after a first pass; M tokens a second of processor time, a row's padding included."""
    name, order = contestant.split("/")
    stream, _ = open_data(folder)
    layout = make_layout("contiguous" if name == "run" else name, stream, seq_len, cache=cache)
    plan = batches(layout, batch_size, shuffle=order == "shuffled")
    out = np.empty((batch_size, seq_len + 1), stream.dtype)
    wide = np.empty((2, batch_size, seq_len), np.int64)  # kept: what a fresh array costs is the allocator's mood
    flat = np.empty(batch_size * seq_len + 1, np.int64)
    passes = -(-LEAST_ROWS // (len(plan) * batch_size))
    began = 0.0
    for number in range(1 + passes):
        if number == 1:
            began = time.process_time()
        for rows in plan:
            if name == "run":
                run = stream.run(rows[0] * seq_len, batch_size * seq_len + 1)
                if run is not None:
                    np.copyto(flat, run)
                continue
            for place, row in zip(out, rows, strict=True):
                layout.read(row, place)
            np.copyto(wide[0], out[:, :-1])
            np.copyto(wide[1], out[:, 1:])
    seconds = time.process_time() - began
    return {"mtok_per_second": passes * len(plan) * batch_size * seq_len / seconds / 1e6}


def time_batches(what: str, folder: Path, batch_size: int, seq_len: int) -> Found:
    """Batches of a shuffled loader; M tokens a second of processor time, all threads counted."""
    from shardkit import ShardLoader

    bare = not (folder / "manifest.json").exists()
    loader = ShardLoader(
        folder,
        batch_size=batch_size,
        seq_len=seq_len,
        layout="packed" if "packed" in what else "contiguous",
        documents="documents" in what,
        eot_id=EOT if bare else None,
    )
    steps = -(-LEAST_ROWS // batch_size)
    began = 0.0
    for step in range(steps + 10):
        if step == 10:
            began = time.process_time()
        loader.next_batch()
    return {"mtok_per_second": steps * batch_size * seq_len / (time.process_time() - began) / 1e6}


def measure(what: str, folder: Path, batch_size: int, seq_len: int, cache: Path) -> Found:
    """One measurement, in this process."""
    if what in ("plan", "plan cold", "plan again"):
        return time_plan(folder, seq_len, cache, cold=what == "plan cold")
    if what in BATCHES:
        return time_batches(what, folder, batch_size, seq_len)
    return time_rows(what, folder, batch_size, seq_len, cache)


def measure_apart(what: str, folder: Path, batch_size: int, seq_len: int, cache: Path) -> Found:
    """One measurement, in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_layouts",
        "--measure",
        what,
        "--folder",
        str(folder),
        "--cache",
        str(cache),
        "--batch-size",
        str(batch_size),
        "--seq-len",
        str(seq_len),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: Found = json.loads(done.stdout.splitlines()[-1])
    return result


def plan_line(what: str, found: Found) -> str:
    """A plan's cost, for people."""
    return (
        f"{what:12}{found['seconds']:7.2f} s, peak {found['peak_mb']:.0f} MB anonymous, "
        f"{found['kept_mb']:.1f} MB kept, use {found['use']:.3%}"
    )


def rate_lines(rounds: list[dict[str, Found]]) -> Iterator[str]:
    """The medians, each beside `contiguous` under the same shuffle."""
    medians = {name: statistics.median(one[name]["mtok_per_second"] for one in rounds) for name in rounds[0]}
    for name, rate in medians.items():
        base = medians["contiguous/" + name.split("/")[1]]
        yield f"{name:22}{rate:7.0f} Mtok/s{rate / base:8.1%} of contiguous"


def compare(folder: Path, args: argparse.Namespace, cache: Path) -> None:
    """Print use and rates of one folder."""
    print(f"\n{folder.name}, T={args.seq_len}, B={args.batch_size}", *use_lines(folder, args.seq_len), sep="\n")
    rounds = [
        {name: measure_apart(name, folder, args.batch_size, args.seq_len, cache) for name in CONTESTANTS}
        for _ in range(args.rounds)
    ]
    print(*rate_lines(rounds), sep="\n")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000_000)
    parser.add_argument("--tokens-per-shard", type=int, default=100_000_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of shards to compare as well")
    parser.add_argument("--measure", help="one measurement of --folder, as JSON")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder, args.batch_size, args.seq_len, args.cache)))
        return
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "synthetic"
        write_documents(folder, args.tokens, args.tokens_per_shard)
        print(f"packed, T={args.seq_len}, {args.tokens:,} tokens")
        for what, cache in (("plan", "a"), ("plan cold", "b"), ("plan again", "b")):
            print(plan_line(what, measure_apart(what, folder, args.batch_size, args.seq_len, Path(temp) / cache)))
        for data in (folder, *args.data):
            compare(data, args, Path(temp) / "b")


if __name__ == "__main__":
    main()
