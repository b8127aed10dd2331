"""Reading speed, stalls, start-up and memory of `ShardLoader`, beside plain loaders and the limit of the machine.

    python -m benchmarks.bench_loader [--tokens 300_000_000] [--tokens-per-shard 100_000_000] [--rounds 3] [--others]
    python -m benchmarks.bench_loader --shards 100 1_000 10_000

Synthetic shards in a temporary folder, page cache warm, one process, no accelerator. Every contestant runs in a fresh
process, rounds interleaved; the median round is printed. Ratios are what carries over to another machine.

- limit: each batch's tokens copied from uint16 to int64, out of the map of each shard in turn into one preallocated
  array; no targets, no tensors.
- lite: what build-nanogpt's `DataLoaderLite` does: each shard expanded to int64 in memory, views handed out.
- nanogpt: what nanoGPT's `get_batch` does: a new map and random windows every batch.
- first: from constructing a loader over 100 shards to its first batch; without and with a manifest.

With `--shards` the same tokens lie in so many shards, sparse files with a manifest: construction, and a shuffled step
when every shard was read once, as a ratio to that of the first number. `ulimit -S -n 1024` before it is a common limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shardkit.dataset.manifest import Manifest
from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import shard_header, shard_name
from shardkit.loader.loader import ShardLoader

MANY_SHARDS = "many_shards"
CONTESTANTS = ("limit", "in_order", "shuffled", "ledger", "lite", "nanogpt", "first", "first_manifest")
OTHERS = ("litdata",)
MOST_STEPS_OF_SLOW = 2_000
STEPS_TO_OPEN = 5_000  # 80,000 rows: all but a few of 10,000 shards
Next = Callable[[], object]


def write_shards(folder: Path, tokens: int, tokens_per_shard: int) -> None:
    """Bare shards of random ids, without a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index, begin in enumerate(range(0, tokens, tokens_per_shard)):
        size = min(tokens_per_shard, tokens - begin)
        np.save(folder / f"synthetic_train_{index:06d}.npy", random.integers(0, 50_257, size, dtype=np.uint16))


def maps(folder: Path) -> Iterator[np.ndarray[Any, np.dtype[np.uint16]]]:
    """Each shard's map in turn, as a plain array."""
    for path in sorted(folder.glob("*.npy")):
        yield np.load(path, mmap_mode="r").view(np.ndarray)


def limit(folder: Path, batch_size: int, seq_len: int) -> tuple[Next, int]:
    """Copies of `batch_size * seq_len` tokens into one array, and how many the shards hold."""
    size = batch_size * seq_len
    out = np.empty(size, np.int64)

    def copies() -> Iterator[None]:
        for shard in maps(folder):
            for begin in range(0, len(shard) - size, size):
                np.copyto(out, shard[begin : begin + size])
                yield None

    steps = sum((len(shard) - 1) // size for shard in maps(folder))
    return copies().__next__, steps


class Lite:
    """A loader that expands one shard at a time, for one rank, by the published behaviour of DataLoaderLite."""

    def __init__(self, folder: Path, batch_size: int, seq_len: int) -> None:
        self.paths = sorted(folder.glob("*.npy"))
        self.shape = batch_size, seq_len
        self.shard = -1
        self.advance()

    def advance(self) -> None:
        """Load the next shard."""
        self.shard = (self.shard + 1) % len(self.paths)
        self.tokens = torch.tensor(np.load(self.paths[self.shard]).astype(np.int32), dtype=torch.long)
        self.place = 0

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, views of the expanded shard."""
        size = self.shape[0] * self.shape[1]
        part = self.tokens[self.place : self.place + size + 1]
        self.place += size
        if self.place + size + 1 > len(self.tokens):
            self.advance()
        return part[:-1].view(self.shape), part[1:].view(self.shape)


def nanogpt(folder: Path, batch_size: int, seq_len: int) -> Next:
    """Random windows of one memory map that is made anew for every batch."""
    path = min(folder.glob("*.npy"))

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(path, dtype=np.uint16, mode="r", offset=128)
        places = torch.randint(len(data) - seq_len, (batch_size,)).tolist()
        inputs = torch.stack([torch.from_numpy(data[i : i + seq_len].astype(np.int64)) for i in places])
        targets = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in places])
        return inputs, targets

    return get_batch


def pieces(path: str) -> Iterator[torch.Tensor]:
    """One shard's tokens as litdata takes them."""
    for part in np.array_split(np.load(path), 100):
        yield torch.from_numpy(part.astype(np.int32))


def litdata(folder: Path, batch_size: int, seq_len: int) -> Next:
    """litdata's `StreamingDataset` with its `TokensLoader`, without a shuffle; rows stacked into a batch."""
    import litdata

    written = folder / "litdata"
    loader = litdata.TokensLoader(block_size=seq_len + 1)
    if not written.exists():
        paths = [str(path) for path in sorted(folder.glob("*.npy"))]
        litdata.optimize(
            fn=pieces, inputs=paths, output_dir=str(written), num_workers=1, chunk_bytes="64MB", item_loader=loader
        )
    rows = iter(litdata.StreamingDataset(str(written), item_loader=loader, shuffle=False))

    def next_batch() -> tuple[torch.Tensor, torch.Tensor]:
        batch = torch.stack([next(rows) for _ in range(batch_size)]).long()
        return batch[:, :-1], batch[:, 1:]

    return next_batch


def start(name: str, folder: Path, batch_size: int, seq_len: int, stack: ExitStack) -> tuple[Next, int]:
    """The contestant's call for one batch, and how many calls to time; `stack` closes what it opened."""
    copies, steps = limit(folder, batch_size, seq_len)
    if name == "limit":
        return copies, steps
    if name in ("lite", "nanogpt", "litdata"):
        plain: dict[str, Callable[[], Next]] = {
            "lite": lambda: Lite(folder, batch_size, seq_len).next_batch,
            "nanogpt": lambda: nanogpt(folder, batch_size, seq_len),
            "litdata": lambda: litdata(folder, batch_size, seq_len),
        }
        return plain[name](), steps if name == "lite" else min(steps - 1, MOST_STEPS_OF_SLOW)
    ledger = tempfile.mkdtemp(dir=folder) if name == "ledger" else None
    loader = stack.enter_context(
        ShardLoader(folder, batch_size=batch_size, seq_len=seq_len, shuffle=name != "in_order", ledger=ledger)
    )
    return loader.next_batch, loader.steps_per_epoch


def resident(kind: str) -> float:
    """This process's resident memory of one kind (RssAnon, RssFile), in MB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1000


def time_steps(name: str, folder: Path, batch_size: int, seq_len: int) -> dict[str, float]:
    """Run a contestant over the shards once: rate, worst step, and peak memory above what importing torch takes."""
    gc.collect()
    before = {kind: resident(kind) for kind in ("RssAnon", "RssFile")}
    peak, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak.update({kind: max(peak[kind], resident(kind)) for kind in peak})

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ExitStack() as stack:
        next_batch, steps = start(name, folder, batch_size, seq_len, stack)
        worst, began = 0.0, time.perf_counter()
        now = began
        for _ in range(steps):
            next_batch()
            before_now, now = now, time.perf_counter()
            worst = max(worst, now - before_now)
    done.set()
    watcher.join()
    return {
        "mtok_per_second": steps * batch_size * seq_len / (now - began) / 1e6,
        "worst_step_ms": worst * 1e3,
        "anonymous_mb": peak["RssAnon"] - before["RssAnon"],
        "mapped_mb": peak["RssFile"] - before["RssFile"],
    }


def time_first_batch(name: str, tokens: int, batch_size: int, seq_len: int) -> dict[str, float]:
    """Milliseconds from constructing a loader over 100 shards to its first batch, shuffled."""
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        write_shards(folder, tokens, -(-tokens // 100))
        if name == "first_manifest":
            Manifest.from_shards(folder).save(folder)
        gc.collect()  # of what the imports left: it would fall into the measured time, or not, by luck (80 ms)
        began = time.perf_counter()
        with ShardLoader(folder, batch_size=batch_size, seq_len=seq_len) as loader:
            loader.next_batch()
            return {"first_batch_ms": (time.perf_counter() - began) * 1e3}


def write_sparse(folder: Path, shards: int, tokens: int) -> None:
    """A dataset of zeros in `shards` sparse files; nobody looks at the hashes in its manifest."""
    folder.mkdir(parents=True)
    header, each = shard_header(tokens // shards, np.dtype("<u2")), tokens // shards
    infos = []
    for index in range(shards):
        name, size = shard_name("synthetic", "train", index), len(header) + 2 * each
        with open(folder / name, "wb") as file:
            file.write(header)
            file.truncate(size)
        infos.append(
            ShardInfo(
                file=name,
                split="train",
                index=index,
                tokens=each,
                documents=0,
                first_document=0,
                sha256=f"{index:064x}",
                bytes=size,
            )
        )
    Manifest(dtype="uint16", tokens_per_shard=each, shards=tuple(infos)).save(folder)


def time_many_shards(folder: Path, batch_size: int, seq_len: int) -> dict[str, float]:
    """Construction, the first shuffled steps, which open the shards, and the steps after those, in milliseconds."""
    gc.collect()  # else it is due in between, and takes 0.1 s for the objects of torch
    began = time.perf_counter()
    with ShardLoader(folder, batch_size=batch_size, seq_len=seq_len) as loader:
        constructed = time.perf_counter()
        for _ in range(STEPS_TO_OPEN):
            loader.next_batch()
        opened = time.perf_counter()
        runs = []
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(200):
                loader.next_batch()
            runs.append((time.perf_counter() - begin) / 200)
    return {
        "construct_ms": (constructed - began) * 1e3,
        "opening_step_ms": (opened - constructed) / STEPS_TO_OPEN * 1e3,
        "step_ms": statistics.median(runs) * 1e3,
    }


def compare_shards(home: Path, counts: list[int], tokens: int, batch_size: int, seq_len: int, rounds: int) -> str:
    """A line for each number of shards: the medians, and the ratio of a step to that of the first number."""
    for count in counts:
        write_sparse(home / str(count), count, tokens)
    results = [
        {count: contend_apart(MANY_SHARDS, home / str(count), batch_size, seq_len) for count in counts}
        for _ in range(rounds)
    ]
    lines = [f"{'shards':>8}{'construct':>13}{'step':>11}{'ratio':>8}{'step while opening':>21}"]
    for count in counts:
        median = {key: statistics.median(one[count][key] for one in results) for key in results[0][count]}
        ratio = statistics.median(one[count]["step_ms"] / one[counts[0]]["step_ms"] for one in results)
        lines.append(
            f"{count:8,}{median['construct_ms']:10.1f} ms{median['step_ms']:8.3f} ms{ratio:8.2f}"
            f"{median['opening_step_ms']:18.3f} ms"
        )
    return "\n".join(lines)


def contend(name: str, folder: Path, batch_size: int, seq_len: int) -> dict[str, float]:
    """One round of one contestant, in this process."""
    if name.startswith("first"):
        return time_first_batch(name, max(10_000_000, 200 * batch_size * seq_len), batch_size, seq_len)
    if name == MANY_SHARDS:
        return time_many_shards(folder, batch_size, seq_len)
    return time_steps(name, folder, batch_size, seq_len)


def contend_apart(name: str, folder: Path, batch_size: int, seq_len: int) -> dict[str, float]:
    """One round of one contestant, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.bench_loader", "--contestant", name, "--folder", str(folder)]
    command += ["--batch-size", str(batch_size), "--seq-len", str(seq_len)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(rounds: list[dict[str, dict[str, float]]]) -> str:
    """The medians as a table."""
    medians = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }
    lines = [f"{'':16}{'Mtok/s':>9}{'of limit':>10}{'worst step':>13}{'anonymous':>12}{'mapped':>11}"]
    for name, found in medians.items():
        if "first_batch_ms" in found:
            lines.append(f"{name:16}{found['first_batch_ms']:9.1f} ms from construction to the first batch, 100 shards")
            continue
        share = found["mtok_per_second"] / medians["limit"]["mtok_per_second"]
        lines.append(
            f"{name:16}{found['mtok_per_second']:9.0f}{share:10.1%}{found['worst_step_ms']:10.2f} ms"
            f"{found['anonymous_mb']:9.0f} MB{found['mapped_mb']:8.0f} MB"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300_000_000)
    parser.add_argument("--tokens-per-shard", type=int, default=100_000_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", action="store_true", help="litdata too, if it is installed")
    parser.add_argument("--shards", type=int, nargs="+", help="compare so many shards, instead of contestants")
    parser.add_argument("--contestant", choices=[*CONTESTANTS, *OTHERS, MANY_SHARDS], help="one round of one, as JSON")
    parser.add_argument("--folder", type=Path, help="shards that --contestant reads")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.contestant:
        print(json.dumps(contend(args.contestant, args.folder, args.batch_size, args.seq_len)))
        return
    with tempfile.TemporaryDirectory() as temp:
        if args.shards:
            print(f"B={args.batch_size} T={args.seq_len}, {args.tokens:,} tokens, median of {args.rounds} rounds")
            print(compare_shards(Path(temp), args.shards, args.tokens, args.batch_size, args.seq_len, args.rounds))
            return
        folder = Path(temp) / "shards"
        write_shards(folder, args.tokens, args.tokens_per_shard)
        names = (*CONTESTANTS, *(OTHERS if args.others else ()))
        rounds = [
            {name: contend_apart(name, folder, args.batch_size, args.seq_len) for name in names}
            for _ in range(args.rounds)
        ]
    print(f"B={args.batch_size} T={args.seq_len}, {args.tokens:,} tokens, median of {args.rounds} rounds")
    print(report(rounds))


if __name__ == "__main__":
    main()
