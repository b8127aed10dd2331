"""Runs of `tokenize` that take a moment, ways to end them early, and damage to their journals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shardkit import Manifest, tokenize
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.shards import ShardWriter, WrittenShard
from shardkit.sources.source import Chunk
from shardkit.tokenization.runner import Destination, OpenShard
from shardkit.tokenization.worker import ChunkEncoder, EncodedChunk, Job

TEXTS = [f"document {number} " * 40 for number in range(400)]


def make(out: Path, **options: Any) -> Manifest:
    settings = {"tokenizer": "bytes", "shard_tokens": 20_000, "prefix": "p", "chunk_bytes": 1 << 13, "workers": 1}
    return tokenize(TEXTS, out, **{**settings, **options})


def after(shards: int, action: Callable[[], object]) -> Callable[[Any], None]:
    """A `progress` that does `action` once, when so many shards are finished."""
    done: list[object] = []

    def progress(now: Any) -> None:
        if now.shards > shards and not done:
            done.append(True)
            action()

    return progress


def stop() -> None:
    raise KeyboardInterrupt


def change_line(folder: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a value in a line of the journal that has the form of one, and nothing else."""
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[number])
    change(record)
    lines[number] = json.dumps(record).encode() + b"\n"
    path.write_bytes(b"".join(lines))


class InProcess:
    """A runner without processes: runs of a few milliseconds, where it is not the runner that is tested."""

    reads_ahead, shared, process_ids, most_finishing, workers, whole_files_from = False, None, (), 1, 1, 1

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def send_to(self, destination: Destination) -> bool:
        return False

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:
        encoder = ChunkEncoder(job)
        for chunk in chunks:
            yield from encoder.encode(chunk)

    def write(self, piece: EncodedChunk, begin: int, end: int, shard: OpenShard) -> None:
        shard.append(end - begin)
        shard.parts.append(piece.tokens[begin:end].copy())

    def finish(self, shard: OpenShard) -> None:
        writer = ShardWriter(shard.temp, shard.dtype, shard.tokens)
        for tokens in shard.parts:
            writer.write(tokens)
        shard.made = writer.finish(shard.temp)

    def is_completed(self, shard: OpenShard) -> bool:
        return shard.made is not None

    def wait(self, shard: OpenShard) -> WrittenShard:
        assert shard.made is not None
        return shard.made
