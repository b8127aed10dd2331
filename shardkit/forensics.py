"""Which text a row of a batch held, and where it came from: what to look at when a loss leaps. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.errors import UsageError
from shardkit.inspect import decoder_of
from shardkit.lines import Line, LineOptions, Source, Sources
from shardkit.order import Cut
from shardkit.provenance import locate_token, source_of
from shardkit.state import read_state
from shardkit.stream import Tokens

_RUN_LOG = "log.jsonl"


def peek_row(
    source: Sources,
    options: LineOptions,
    *,
    step: int,
    rank: int = 0,
    row: int = 0,
    batch_size: int,
    world_size: int = 1,
    max_tokens: int = 300,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Row `row` of `rank` in batch `step` (from 0) of a run that began at the beginning: its text, and its documents.

    Raises `UsageError` for a row that is none, and what opening the dataset raises.
    """
    with Line(source, options) as line:
        cut = _cut(batch_size, world_size, rank, row)
        if step < 0:
            raise UsageError(f"--step is {step}: expected 0 or more")
        position = int(cut.positions(cut.window(step), steps=1, rank=rank)[0, row])
        return _describe(line, position, max_tokens, tokenizer)


def peek_run(
    run: Path,
    *,
    step: int,
    micro_step: int = 0,
    rank: int = 0,
    row: int = 0,
    moved_to: str | None = None,
    max_tokens: int = 300,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """The same of step `step`, as its `log.jsonl` counts them, of the training run in folder `run`.

    `micro_step` counts the step's forward passes on a rank, from 0; the dataset is looked for where it was, or in
    `moved_to`. Raises `UsageError` for a row that is none, `StateError`
    where the log does not say which data the step was given, or the dataset is another by now.
    """
    data = _data_of(run, step)
    saved = data["loader"]
    if isinstance(saved["fingerprint"], list):
        raise UsageError(f"{run} was fed a mixture: give its parts and numbers by themselves")
    options = LineOptions(
        split=saved["split"], seq_len=saved["seq_len"], shuffle=saved["shuffle"], seed=saved["seed"],
        layout=saved["layout"], span=saved["span"], eot_id=data.get("eot_id"),
    )  # fmt: skip
    cut = _cut(data["micro_batch"], data["world_size"], rank, row)
    if not 0 <= micro_step < data["micro_steps"]:
        raise UsageError(f"--micro-step is {micro_step}: expected 0 to {data['micro_steps'] - 1}")
    with Line(moved_to or data["folder"], options) as line:
        begin = read_state(line.identity, saved, n_windows=line.n_rows)
        batches = (step - data["after_step"] - 1) * data["micro_steps"] + micro_step
        position = begin.position + batches * cut.global_batch + rank * cut.batch_size + row
        return _describe(line, position, max_tokens, tokenizer)


def _data_of(run: Path, step: int) -> dict[str, Any]:
    """The log's line on the data that `step` was given: the last one before it."""
    path = run / _RUN_LOG
    found: dict[str, Any] | None = None
    last = 0
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # cut short by a kill
                continue
            last = max(last, line.get("step", 0))
            if line.get("after_step", step) < step:
                found = line
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}; give the --out folder of a training run") from error
    if found is None or not 1 <= step <= last:
        raise UsageError(f"{path} has no step {step} of which it knows the data: expected 1 to {last}")
    return found


def _cut(batch_size: int, world_size: int, rank: int, row: int) -> Cut:
    for name, value in (("batch-size", batch_size), ("world-size", world_size)):
        if value < 1:
            raise UsageError(f"--{name} is {value}: expected at least 1")
    if not (0 <= rank < world_size and 0 <= row < batch_size):
        raise UsageError(
            f"--rank is {rank}, --row {row}: expected 0 to {world_size - 1} and 0 to {batch_size - 1} for "
            f"{world_size} ranks and batches of {batch_size}"
        )
    return Cut(batch_size=batch_size, world_size=world_size)


def _describe(line: Line, position: int, max_tokens: int, tokenizer: str | None) -> dict[str, Any]:
    """What the row at `position` of the line holds."""
    numbers, rows = line.places(np.array([position]))
    source, row = line.sources[int(numbers[0])], int(rows[0])
    source.enter(row)
    documents: list[dict[str, Any]] = []
    ids: list[int] = []
    for token, count in source.layout.pieces(row):
        part = np.empty(count, source.stream.dtype)
        source.stream.read(token, part)
        documents += _documents(source, token, part)
        ids += part.tolist()
    epoch, place = divmod(position, line.n_rows)
    return {
        "dataset": source.name,
        "epoch": epoch,
        "place_in_epoch": place,
        "window": row,
        "tokens": len(ids),
        "documents": documents,
        "text": decoder_of(source.manifest, source.name, tokenizer).decode(ids[:max_tokens]),
    }


def _documents(source: Source, token: int, part: Tokens) -> Iterator[dict[str, Any]]:
    """A line for each document in `part`, the stream's tokens from `token` on."""
    first = locate_token(source.manifest, source.stream, token).document
    starts = [0] if source.eot_id is None else [0, *(np.flatnonzero(part[1:] == source.eot_id) + 1).tolist()]
    for number, (begin, end) in enumerate(zip(starts, [*starts[1:], len(part)], strict=True)):
        shard, offset = source.stream.shard_of(token + begin)
        document = None if first is None else first + number
        file, row = source_of(source.manifest, document)
        yield {
            "document": "document unknown" if document is None else f"document {document:,}",
            "tokens": f"{end - begin:,} tokens",
            "shard": f"{source.stream.shards[shard].file} at {offset:,}",
            "source": "source unknown" if file is None else f"{file} row {'unknown' if row is None else f'{row:,}'}",
        }
