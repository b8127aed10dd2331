"""How much text a run reads, as far as that is known before it is read, and how many workers that is worth."""

from __future__ import annotations

from shardkit.errors import DiskFull
from shardkit.files import format_bytes
from shardkit.sources.source import Source
from shardkit.tokenization.run_spec import RunSpec

_BYTES_A_TOKEN, _BYTES_A_DOCUMENT = 4, 4_400  # FineWeb-Edu's means
_CHUNK_PARTS = 8  # less than that part of a chunk is encoded sooner than a worker for it has started


def source_bytes(source: Source, *, max_docs: int | None, max_tokens: int | None) -> int:
    """Bytes of the source's files that a run with these limits reads, about; 0 if nobody knows: of an iterable."""
    bounds = [sum(file.bytes for file in source.files)]
    bounds += [most * each for most, each in ((max_docs, _BYTES_A_DOCUMENT), (max_tokens, _BYTES_A_TOKEN)) if most]
    return min(bounds)


def useful_workers(workers: int, size: int, chunk_bytes: int) -> tuple[int, int]:
    """Of `workers` that are allowed, those to start at once for `size` bytes, and how many at most. Each further one is
    started when there is a chunk for it."""
    if not size:
        return 1, workers
    most = min(workers, 1 + size * _CHUNK_PARTS // chunk_bytes)
    return min(most, -(-size // chunk_bytes)), most


def check_room(spec: RunSpec, journal_bytes: int, max_disk: int | None) -> None:
    """Refuse a bound of the disk that has no room for two shards. Raises `DiskFull`."""
    if max_disk is not None and max_disk < 2 * spec.shard_bytes + working_bytes(journal_bytes):
        raise DiskFull(
            f"--max-disk {format_bytes(max_disk)} has no room for two shards of {format_bytes(spec.shard_bytes)}: "
            "give more, or make smaller shards (--shard-tokens)"
        )


def working_bytes(journal_bytes: int) -> int:
    """Bytes to allow for the files of `.shardkit/` while one more shard is made: the journal, a copy of it being
    written, and the summary."""
    return 2 * journal_bytes + 8192
