"""How much text a run reads, as far as that is known before it is read, and how many workers that is worth."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from shardkit.errors import DiskFull
from shardkit.files import format_bytes
from shardkit.sources.iterables import text_in
from shardkit.sources.source import Source, can_be_read_again
from shardkit.tokenization.run_spec import RunSpec

_BYTES_A_TOKEN, _BYTES_A_DOCUMENT = 4, 4_400  # FineWeb-Edu's means
_CHUNK_PARTS = 8  # less than that part of a chunk is encoded sooner than a worker for it has started


def source_bytes(source: Source, *, max_docs: int | None, max_tokens: int | None, count_to: int = 0) -> int:
    """Bytes of the source that a run with these limits reads, about: of files, or, counted in characters up to
    `count_to`, of the texts of an iterable that can be read again. 0 if nobody knows."""
    size = sum(file.weight for file in source.files) or _count_characters(source, count_to)
    limit = limit_bytes(max_docs=max_docs, max_tokens=max_tokens)
    return size if limit is None else min(size, limit)


def limit_bytes(*, max_docs: int | None, max_tokens: int | None) -> int | None:
    """Bytes of text that a run with these limits reads at most, about; None without limits."""
    pairs = ((max_docs, _BYTES_A_DOCUMENT), (max_tokens, _BYTES_A_TOKEN))
    return min((most * each for most, each in pairs if most), default=None)


def has_known_size(source: Source) -> bool:
    """Whether `source_bytes` can say something of it: not of a pipe, or of an iterable that is read once."""
    return any(file.weight for file in source.files) or can_be_read_again(source.texts)


def _count_characters(source: Source, enough: int) -> int:
    texts, count = source.texts, 0
    if texts is None or not can_be_read_again(texts):
        return 0
    for item in texts if enough else ():
        with suppress(ValueError):  # which the run itself refuses, by name
            text = text_in(item, source.options)
            count += len(text) if isinstance(text, str) else 0
        if count >= enough:
            break
    return count


class WorkerCount(NamedTuple):
    """How many workers start at once; how many there are until so many chunks were used; how many there are at most.
    Each further one is started when there is a chunk for it."""

    at_first: int
    expected: int
    most: int


def useful_workers(
    workers: int, source: Source, chunk_bytes: int, *, max_docs: int | None, max_tokens: int | None
) -> WorkerCount:
    """Of `workers` that are allowed, those that are of use. The limits say what is expected and no more: documents may
    be long, and a filter may leave few of them."""
    size = source_bytes(source, max_docs=None, max_tokens=None)
    if not size:
        return WorkerCount(1, workers, workers)
    limited = source_bytes(source, max_docs=max_docs, max_tokens=max_tokens)
    most, expected = (min(workers, 1 + each * _CHUNK_PARTS // chunk_bytes) for each in (size, limited))
    return WorkerCount(min(expected, -(-limited // chunk_bytes)), expected, most)


def check_room(spec: RunSpec, max_disk: int | None) -> None:
    """Refuse a bound of the disk that has no room for two shards. Raises `DiskFull`."""
    need = 2 * spec.shard_bytes + _working_bytes(0)
    if max_disk is not None and max_disk < need:
        raise DiskFull(
            f"--max-disk {format_bytes(max_disk)} has no room for two shards of {format_bytes(spec.shard_bytes)} and "
            f"the run's journal: give {need} bytes or more, or make smaller shards (--shard-tokens)"
        )


def room_for_next(spec: RunSpec, journal_bytes: int, max_disk: int) -> int:
    """Bytes that must be free of `max_disk` before one more shard is made: for it, and for the journal. Where the
    journal of very many tiny shards leaves no room for two of them, it is not counted, and one shard may be on its way
    while the next is made: else the run would end there, and smaller shards would not help."""
    return min(spec.shard_bytes + _working_bytes(journal_bytes), max_disk - spec.shard_bytes)


def _working_bytes(journal_bytes: int) -> int:
    """Bytes to allow for the files of `.shardkit/` while one more shard is made: the journal, a copy of it being
    written, and the summary."""
    return 2 * journal_bytes + 8192
