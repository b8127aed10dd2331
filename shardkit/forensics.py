"""Which text a row of a batch held, and where it came from: what to look at when a loss leaps. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from shardkit.errors import UsageError
from shardkit.inspect import decoder_of
from shardkit.lines import Line, LineOptions, Source, Sources
from shardkit.order import Cut
from shardkit.provenance import locate_token, source_of
from shardkit.stream import Tokens


def peek_row(
    source: Sources,
    *,
    position: int,
    options: LineOptions,
    max_tokens: int = 300,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """The row at `position` of the line of `source`: its text, decoded, and a line for each document in it.

    Raises `UsageError` where nothing says which tokenizer made it, and what opening the dataset raises.
    """
    line = Line(source, options)
    try:
        numbers, rows = line.places(np.array([position]))
        chosen, row = line.sources[int(numbers[0])], int(rows[0])
        documents, ids = [], []
        for token, count in chosen.layout.pieces(row):
            part = np.empty(count, chosen.stream.dtype)
            chosen.enter(row)
            chosen.stream.read(token, part)
            documents += list(_documents(chosen, token, part))
            ids += part.tolist()
    finally:
        line.close()
    epoch, place = divmod(position, line.n_rows)
    return {
        "dataset": chosen.name,
        "epoch": epoch,
        "position": place,
        "window": row,
        "tokens": len(ids),
        "documents": documents,
        "text": decoder_of(chosen.manifest, chosen.name, tokenizer).decode(ids[:max_tokens]),
    }


def position_of(*, step: int, rank: int, row: int, batch_size: int, world_size: int) -> int:
    """The position of `row` of `rank` in batch `step` of a run from the start. Raises `UsageError` for none."""
    for name, value, least in (("batch-size", batch_size, 1), ("world-size", world_size, 1), ("step", step, 0)):
        if value < least:
            raise UsageError(f"--{name} is {value}: expected at least {least}")
    if not (0 <= rank < world_size and 0 <= row < batch_size):
        raise UsageError(
            f"--rank is {rank}, --row {row}: expected 0 to {world_size - 1} and 0 to {batch_size - 1} (--world-size, "
            "--batch-size)"
        )
    cut = Cut(batch_size=batch_size, world_size=world_size)
    return int(cut.positions(cut.window(step), steps=1, rank=rank)[0, row])


def _documents(source: Source, token: int, part: Tokens) -> Iterator[dict[str, Any]]:
    """A line for each document in `part`, the stream's tokens from `token` on."""
    manifest = source.manifest
    first = locate_token(manifest, source.stream, token)
    starts = [0] if source.eot_id is None else [0, *(np.flatnonzero(part[1:] == source.eot_id) + 1).tolist()]
    for number, (begin, end) in enumerate(zip(starts, [*starts[1:], len(part)], strict=True)):
        shard, offset = source.stream.shard_of(token + begin)
        document = None if first.document is None else first.document + number
        file, row = source_of(manifest, document)
        yield {
            "document": f"document {'unknown' if document is None else f'{document:,}'}",
            "shard": f"{source.stream.shards[shard].file} at {offset:,}",
            "tokens": f"{end - begin:,} tokens",
            "source": "source unknown" if file is None else f"{file} row {'unknown' if row is None else f'{row:,}'}",
        }
