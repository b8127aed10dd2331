"""How many cores one main process of `shardkit tokenize` feeds, where as many workers answer as it can listen to.

    python -m benchmarks.bench_main_process [--workers 500] [--pieces 6000]

`bench_scale` has the main process of a whole run: with two workers it sleeps between two pieces, and finds the caches
full of theirs when it wakes up. Here another process plays all workers, with a pipe each: it encodes and writes
nothing, and says at once what a worker says of a chunk that is one piece of 16 MB of text. What is left out of the main
process: footers of files, and the names and journal lines of shards, some ms each.
"""

from __future__ import annotations

import argparse
import os
import selectors
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from multiprocess.connection import Pipe

from shardkit import tokenize
from shardkit.dataset.shard_parts import Edge, Part
from shardkit.sources.source import Chunk
from shardkit.tokenization import finished_shards, make_shards, start_runner, worker_pool
from shardkit.tokenization.pipes import Outbox
from shardkit.tokenization.run_size import WorkerCount
from shardkit.tokenization.spawning import Worker
from shardkit.tokenization.worker import EncodedChunk, Job
from shardkit.tokenization.worker_messages import (
    ChunkSender,
    Encoded,
    Finish,
    Finished,
    MessageReceiver,
    Put,
    Written,
    send_answers,
)

TOKENS, DOCUMENTS = 4_180_000, 4_000  # of 16 MB of text
WORKER_SECONDS = 24.4  # of a core for 10^9 tokens of gpt2 (benchmarks/RESULTS.md)


class Ended(Exception):
    """All pieces came: the shards that nobody wrote are not looked for."""


def answers_to(message: Any, eots: Any) -> Iterator[Any]:
    """What a worker says to one message."""
    if isinstance(message, Chunk):
        stated = {"count": TOKENS, "eot_positions": eots, "text_bytes": 16 << 20, "rows": DOCUMENTS, "audited": 6}
        yield Encoded.of(EncodedChunk(chunk=message, read_at=time.time(), holder=message.start + 1, **stated), message)
    elif isinstance(message, Put):
        edges = Edge(message.place, bytes(2048)), Edge(message.place + 4096, bytes(2048))
        yield Written(message.path, Part(message.place, 2 * (message.end - message.begin), 0, edges))
    elif isinstance(message, Finish):
        yield Finished(message.path, 1, "0" * 64)
    elif not isinstance(message, Job):
        raise TypeError(message)


def play_workers(pipes: list[Any]) -> None:
    """Be the workers at these ends of pipes, until they close."""
    eots = np.linspace(0, TOKENS - 1, DOCUMENTS, dtype=np.int64)
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ, MessageReceiver(pipe, None))
        while True:
            for key, _ in selector.select():
                said = [answer for message in key.data.receive() for answer in answers_to(message, eots)]
                if said:
                    send_answers(key.fileobj, said)


def run(workers: int, pieces: int) -> float:
    """Processor seconds of the main process for a piece."""
    pairs = [Pipe() for _ in range(workers)]
    if os.fork() == 0:
        for ours, _ in pairs:
            ours.close()
        try:
            play_workers([theirs for _, theirs in pairs])
        except BaseException as error:  # noqa: BLE001 (the main process has ended)
            os._exit(0 if isinstance(error, EOFError | OSError) else 1)
    for _, theirs in pairs:
        theirs.close()
    ends, times = iter(pairs), list[float]()

    def start(count: int, shared: Any, *, number: int) -> list[Worker]:  # noqa: ARG001
        boxes = [Outbox(next(ends)[0]) for _ in range(count)]
        return [Worker("", mock.Mock(pid=os.getpid()), box._pipe, box, ChunkSender(box, None)) for box in boxes]

    def chunks(source: Any, *place: Any, **how: Any) -> Iterator[Chunk]:  # noqa: ARG001
        return (Chunk(file=0, start=n, stop=n + 1, weight=1, input=source.files[0]) for n in range(pieces))

    def tell(progress: Any) -> None:  # noqa: ARG001
        times.append(time.process_time())
        if len(times) == pieces:
            raise Ended

    patched: dict[tuple[Any, str], Callable[..., Any]] = {
        (worker_pool, "start_workers"): start,
        (make_shards, "iter_chunks"): chunks,
        (start_runner, "useful_workers"): lambda *given, **how: WorkerCount(workers, workers, workers),  # noqa: ARG005
        (finished_shards.FinishedShards, "_name_and_record"): lambda *given: None,  # noqa: ARG005
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_text("made up")
        for (place, name), made in patched.items():
            mock.patch.object(place, name, made).start()
        try:
            tokenize(Path(folder, "a.txt"), Path(folder, "out"), tokenizer="gpt2", progress=tell)
        except Ended:
            pass
        finally:
            mock.patch.stopall()
    first = min(pieces // 2, 4 * workers)
    return (times[-1] - times[first]) / (pieces - 1 - first)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--pieces", type=int, default=6_000)
    args = parser.parse_args(arguments)
    seconds = run(args.workers, args.pieces)
    a_gtok = seconds / TOKENS * 1e9
    print(f"{seconds * 1e3:.3f} ms a piece, {a_gtok:.3f} s a Gtok: it feeds {WORKER_SECONDS / a_gtok:,.0f} cores")


if __name__ == "__main__":
    main()
