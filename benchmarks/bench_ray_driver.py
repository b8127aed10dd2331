"""How many cores one process that drives a Ray cluster feeds (`shardkit tokenize --runner ray`).

    python -m benchmarks.bench_ray_driver [--workers 100] [--pieces 8000] [--rounds 3]

As `bench_main_process`: tasks encode and write nothing, and say at once what is said of a chunk that is one piece of 16
MB of text; its tokens are 1 MB, so that they lie in the object store as the real ones do. The cluster is this machine,
with two CPUs, and believes that it has `--workers`. Counted is all processor time of the process, Ray's own threads
among it, from the fourth chunk of each worker on. The baseline, in turn with it: Ray alone, a task that does nothing
for each chunk, of which the oldest is waited for.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from shardkit import tokenize
from shardkit.dataset.shards import WrittenShard
from shardkit.sources.source import Chunk
from shardkit.tokenization import finished_shards, make_shards, ray_cluster, ray_runner, ray_tasks
from shardkit.tokenization.task_sizes import TaskSizes
from shardkit.tokenization.worker import EncodedChunk, Job

TOKENS, DOCUMENTS = 4_180_000, 4_000  # of 16 MB of text
WORKER_SECONDS = 24.4  # of a core for 10^9 tokens of gpt2 (benchmarks/RESULTS.md)
A_PIECE = TOKENS / 1e9 * WORKER_SECONDS
CPUS = 2  # as many processes play all workers


class Ended(Exception):
    """All pieces came: the shards that nobody wrote are not looked for."""


class Played:
    """In the place of a `ChunkEncoder`."""

    def __init__(self, job: Job) -> None:
        del job
        self.tokens = np.zeros(1 << 19, np.uint16)
        self.eots = np.linspace(0, TOKENS - 1, DOCUMENTS, dtype=np.int64)

    def encode(self, chunk: Chunk) -> Iterator[EncodedChunk]:
        """What a worker says of a chunk."""
        stated: dict[str, Any] = {"text_bytes": 16 << 20, "rows": DOCUMENTS, "audited": 6, "read_at": time.time()}
        yield EncodedChunk(chunk=chunk, tokens=self.tokens, count=TOKENS, eot_positions=self.eots, **stated)


def encode(*given: Any) -> Iterator[Any]:
    """`ray_tasks.encode`, of played chunks."""
    mock.patch.object(ray_tasks, "ChunkEncoder", Played).start()
    for made in ray_tasks.encode(*given):
        if isinstance(made, ray_tasks.EncodedTask):
            pieces = len(made.pieces)
            yield made._replace(token_bytes=2 * TOKENS * pieces, seconds=A_PIECE * pieces)
        else:
            yield made


def write_shard(path: str, dtype: str, tokens: int, *given: Any) -> WrittenShard:
    """`ray_tasks.write_shard`, of which nothing is written."""
    del path, dtype, given
    return WrittenShard(tokens=tokens, bytes=1, sha256="0" * 64)


def nothing(number: int) -> int:
    """The task of the baseline."""
    return number


def processor_seconds() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ray_alone(workers: int, pieces: int) -> Iterator[float]:
    """A task for each piece, of which the oldest is waited for."""
    import ray

    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    task: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(nothing)
    waiting: deque[Any] = deque()
    for number in range(pieces):
        while len(waiting) < 4 * workers:
            waiting.append(task.remote(number))
        ray.get(waiting.popleft())
        yield processor_seconds()


def shardkit_on_ray(workers: int, pieces: int) -> Iterator[float]:
    """A run, whose tasks play."""
    times = list[float]()

    def chunks(source: Any, *place: Any, **how: Any) -> Iterator[Chunk]:  # noqa: ARG001
        return (Chunk(file=0, start=n, stop=n + 1, weight=16 << 20, input=source.files[0]) for n in count())

    def tell(progress: Any) -> None:  # noqa: ARG001
        times.append(processor_seconds())
        if len(times) == pieces:
            raise Ended

    def many(size: Any) -> None:
        size.cpus, size.store_bytes = workers, workers << 31

    import ray

    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    mock.patch.object(ray_cluster.ClusterSize, "look", many).start()
    patched: tuple[tuple[Any, str, Any], ...] = (
        (make_shards, "iter_chunks", chunks),
        (ray_runner, "TaskSizes", lambda: TaskSizes(10**9, 10**9 * 2 * TOKENS, 10**9 * A_PIECE)),
        (finished_shards.FinishedShards, "_name_and_record", lambda *given: None),  # noqa: ARG005
        *((ray_runner, one.__name__, one) for one in (encode, write_shard)),
    )
    for place, name, made in patched:
        mock.patch.object(place, name, made).start()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_text("made up")
        with suppress(Ended):
            tokenize(Path(folder, "a.txt"), Path(folder, "out"), runner="ray", progress=tell)
    return iter(times)


WAYS = {"ray": ray_alone, "shardkit": shardkit_on_ray}


def run_here(way: str, workers: int, pieces: int) -> float:
    """Processor seconds of this process for a piece."""
    began = time.monotonic()
    times = list(WAYS[way](workers, pieces))
    first = pieces // 2
    print(f"{way}: {(time.monotonic() - began):.0f} s", file=sys.stderr)
    return (times[-1] - times[first]) / (pieces - 1 - first)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--pieces", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.here:
        print(run_here(args.here, args.workers, args.pieces))
        return
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way, times in found.items():
            words = [sys.executable, "-m", "benchmarks.bench_ray_driver", "--here", way]
            words += ["--workers", str(args.workers), "--pieces", str(args.pieces)]
            environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environment)
            times.append(float(done.stdout.splitlines()[-1]))
    for way, times in found.items():
        a_piece = statistics.median(times)
        a_gtok = a_piece / TOKENS * 1e9
        print(
            f"{way}: {a_piece * 1e3:.3f} ms a piece ({', '.join(f'{one * 1e3:.3f}' for one in times)}), "
            f"{a_gtok:.3f} s a Gtok: it feeds {WORKER_SECONDS / a_gtok:,.0f} cores"
        )


if __name__ == "__main__":
    main()
