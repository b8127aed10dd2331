"""Step times of a loader while shards arrive: beside none that arrive, and with the downloader as a process or thread.

    python -m benchmarks.bench_streaming [--shards 17] [--shard-mb 50] [--mb-per-second 100] [--rounds 3]

A local Hub (its own process, without TLS) sends a dataset at a fixed rate. A loader with one span on disk takes steps,
`next_batch` and a hundred small torch operations, for as long as the next span arrives. Each contestant runs in a
fresh process, rounds interleaved. Times are in milliseconds: median, 99th and 99.9th percentile, worst.

- copy: the dataset is a local folder, nothing arrives.
- process: as shardkit does it.
- thread: the downloader's `run` in a thread of the training process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from shardkit.loader.loader import ShardLoader

CONTESTANTS = ("copy", "process", "thread")
ROOT = Path(__file__).parents[1]
REPO = "alice/demo"
COPY_STEPS = 2_000
SERVER = """
import sys, threading, time
from pathlib import Path
import hub_wire
from hub_data import make_dataset
from hub_server import HubServer
folder, shards, tokens, rate = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
plain, lock, due = hub_wire.FaultyHandler.write, threading.Lock(), [0.0]
def write(self, block):
    if len(block) > 100_000:
        with lock:
            due[0] = max(time.monotonic(), due[0]) + len(block) / rate
            at = due[0]
        time.sleep(max(0, at - time.monotonic()))
    plain(self, block)
hub_wire.FaultyHandler.write = write
make_dataset(folder, shards=shards, tokens=tokens)
with HubServer() as hub:
    hub.seed_repo("alice/demo", {path.name: path for path in folder.iterdir()})
    print(hub.endpoint, flush=True)
    sys.stdin.read()
"""


def start_thread(cache: Path) -> None:
    """The downloader in a thread of this process, up to its first answer."""
    from shardkit.remote.streaming import downloader, folder, lease

    place = folder.CacheFolder(cache)
    place.prepare()
    # a process cannot see its own locks: here all that is there is alive
    for module in (folder, lease):
        vars(module)["is_locked"] = lambda path: path.exists() or path == place.lock
    downloader.LINGER_SECONDS = 600
    threading.Thread(target=downloader.run, args=(place, f"hf://datasets/{REPO}", None), daemon=True).start()
    while not place.status.exists():
        time.sleep(0.01)


def times(next_batch: Callable[[], object], done: Callable[[int], bool]) -> tuple[list[float], list[float]]:
    """Milliseconds of each `next_batch`, and of each whole step."""
    weights = torch.randn(96, 96)
    batches: list[float] = []
    steps: list[float] = []
    while not done(len(steps)):
        start = time.perf_counter()
        next_batch()
        batches.append(1e3 * (time.perf_counter() - start))
        hidden = weights
        for _ in range(50):
            hidden = torch.tanh(hidden @ weights)
        steps.append(1e3 * (time.perf_counter() - start))
    return batches, steps


def row(values: list[float]) -> str:
    """Median, percentiles and worst as text."""
    ordered = sorted(values)
    return " ".join(f"{ordered[min(len(ordered) - 1, int(q * len(ordered)))]:8.2f}" for q in (0.5, 0.99, 0.999, 1.0))


def contest(name: str, work: Path, shards: int) -> None:
    """One contestant, in this process; prints its line."""
    torch.set_num_threads(1)
    span, cache = (shards - 1) // 2, work / name
    if name == "thread":
        start_thread(cache)
    source = work / "data" if name == "copy" else REPO
    loader = ShardLoader(
        source, batch_size=16, seq_len=1024, seed=1, span=span, cache=None if name == "copy" else cache
    )
    loader.next_batch()

    def done(steps: int) -> bool:
        if name == "copy":
            return steps >= COPY_STEPS
        return steps % 20 == 0 and len(list(cache.glob("*.npy"))) >= shards - 1

    batches, steps = times(loader.next_batch, done)
    print(f"{name:8} {len(steps):6} steps | next_batch {row(batches)} | step {row(steps)}", flush=True)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=17)
    parser.add_argument("--shard-mb", type=int, default=50)
    parser.add_argument("--mb-per-second", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contest(options.contestant, options.work, options.shards)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    for _ in range(options.rounds):
        for name in CONTESTANTS:
            with tempfile.TemporaryDirectory() as work:
                environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_DISABLE_XET": "1", "HF_HOME": f"{work}/home"}
                size = [str(options.shards), str(options.shard_mb * 500_000), str(1e6 * options.mb_per_second)]
                command = [sys.executable, "-c", SERVER, f"{work}/data", *size]
                pipe = subprocess.PIPE
                with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as hub:
                    assert hub.stdout is not None
                    environment |= {"HF_ENDPOINT": hub.stdout.readline().strip(), "HF_TOKEN": "hf_write"}
                    own = ["--contestant", name, "--work", work, "--shards", str(options.shards)]
                    subprocess.run(
                        [sys.executable, "-m", "benchmarks.bench_streaming", *own], env=environment, check=True
                    )
                    hub.kill()
                time.sleep(2)  # until the downloader has noticed that its reader is gone


if __name__ == "__main__":
    main()
