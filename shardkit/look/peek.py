"""`shardkit peek`: a document, or a row of a batch, as text, and the source file and row it came from. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.checks import is_count
from shardkit.batches.order import Cut
from shardkit.batches.row_sequence import RowSequence, Sources
from shardkit.batches.rows import DatasetRows, RowOptions
from shardkit.batches.state import read_state
from shardkit.dataset.documents import locate_token, source_of
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.token_stream import Tokens
from shardkit.dataset.typed_json import read_record
from shardkit.errors import ShardError, UsageError
from shardkit.files import open_file
from shardkit.tokenization.tokenizer import Tokenizer


def peek_document(
    directory: Path, document: int, *, max_tokens: int = 300, tokenizer: str | None = None
) -> dict[str, Any]:
    """Document number `document` (from 0) of the dataset: where it is, where it came from, and its text, decoded.

    Raises `UsageError` if there is no such document, or nothing says which tokenizer made it.
    """
    known = KnownFiles(directory)
    manifest = Manifest.of_folder(directory)
    decoder = decoder_of(manifest, tokenizer)
    counts = _document_counts(known, manifest, decoder.eot_id)
    if not 0 <= document < sum(counts):
        raise UsageError(f"no document {document}: {directory} holds {sum(counts):,} documents, from 0")
    number, before = 0, 0
    while before + counts[number] <= document:
        before += counts[number]
        number += 1
    offset, ids = _read_document(known, manifest, number, document - before, decoder.eot_id, max_tokens)
    file, row = source_of(manifest, document)
    return {
        "document": document,
        "shard": manifest.shards[number].file,
        "offset": offset,
        "source_file": file,
        "source_row": row,
        "tokens_shown": len(ids),
        "text": decoder.decode(ids),
    }


def decoder_of(manifest: Manifest, tokenizer: str | None) -> Tokenizer:
    """The tokenizer to decode the dataset with: as named, else its own, else GPT-2's."""
    return Tokenizer.of_dataset(manifest, name=tokenizer, encoder="tiktoken")


def _document_counts(known: KnownFiles, manifest: Manifest, eot_id: int) -> list[int]:
    if manifest.tokenizer is not None:
        return [shard.documents for shard in manifest.shards]
    return [int(np.count_nonzero(known.map(shard, manifest.dtype) == eot_id)) for shard in manifest.shards]


def _read_document(
    known: KnownFiles, manifest: Manifest, number: int, nth: int, eot_id: int, max_tokens: int
) -> tuple[int, NDArray[np.unsignedinteger]]:
    """Offset of the `nth` EOT in shard `number`, and the ids after it up to the next EOT, across shard ends."""
    tokens = known.map(manifest.shards[number], manifest.dtype)
    places = np.flatnonzero(tokens == eot_id)
    if nth >= len(places):
        raise ShardError(
            f"{known.directory / manifest.shards[number].file} holds {len(places):,} EOT tokens, the manifest says "
            f"{manifest.shards[number].documents:,}: it is damaged, fetch or make it again"
        )
    offset = int(places[nth])
    parts: list[NDArray[np.unsignedinteger]] = []
    begin, wanted = offset + 1, max_tokens
    for shard in manifest.shards[number:]:
        tokens = known.map(shard, manifest.dtype)
        part = np.array(tokens[begin : begin + wanted])
        ends = np.flatnonzero(part == eot_id)
        parts.append(part[: ends[0]] if len(ends) else part)
        wanted -= len(part)
        if len(ends) or wanted <= 0:
            break
        begin = 0
    return offset, np.concatenate(parts)


_RUN_LOG = "log.jsonl"
_DECISIVE = ("split", "seq_len", "shuffle", "seed", "layout", "span")  # of a loader's state


def peek_row(
    source: Sources,
    *,
    step: int,
    rank: int = 0,
    row: int = 0,
    batch_size: int,
    seq_len: int,
    world_size: int = 1,
    split: str = "train",
    shuffle: bool = True,
    seed: int = 0,
    layout: str = "contiguous",
    span: int | None = None,
    eot_id: int | None = None,
    max_tokens: int = 300,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Row `row` of `rank` in batch `step` (from 0) of a run that began at the beginning: its text, and its documents.

    Raises `UsageError` for a row that does not exist, and what opening the dataset raises.
    """
    options = RowOptions(
        split=split, seq_len=seq_len, shuffle=shuffle, seed=seed, layout=layout, span=span, eot_id=eot_id
    )
    with RowSequence(source, options) as line:
        cut = _cut(batch_size, world_size, rank, row)
        if step < 0:
            raise UsageError(f"--step is {step}: expected 0 or more")
        position = int(cut.positions(cut.position_of(step), steps=1, rank=rank)[0, row])
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
    """What `peek_row` shows, of step `step` of the training run in folder `run`, as its `log.jsonl` counts steps.

    `micro_step` counts the step's forward passes on a rank, from 0; the dataset is looked for where it was, or in
    `moved_to`. Raises `UsageError` for a row that does not exist or a log that does not say which data the step was
    given, and `StateError` where the dataset is another by now.
    """
    data = _data_of(run, step)
    saved = data.loader
    if isinstance(saved["fingerprint"], list):
        raise UsageError(f"{run} was fed a mixture: give its parts and numbers by themselves")
    options = RowOptions(**{name: saved[name] for name in _DECISIVE}, eot_id=data.eot_id)
    cut = _cut(data.micro_batch, data.world_size, rank, row)
    if not 0 <= micro_step < data.micro_steps:
        raise UsageError(f"--micro-step is {micro_step}: expected 0 to {data.micro_steps - 1}")
    with RowSequence(moved_to or data.folder, options) as line:
        begin = read_state(line.identity, saved, n_windows=line.n_rows)
        batches = (step - data.after_step - 1) * data.micro_steps + micro_step
        position = begin.position + batches * cut.global_batch + rank * cut.batch_size + row
        return _describe(line, position, max_tokens, tokenizer)


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunData:
    """What a training run's log says of the data of the steps after one."""

    after_step: int
    folder: str
    loader: dict[str, Any]
    micro_batch: int
    micro_steps: int
    world_size: int
    eot_id: int | None = None


def _data_of(run: Path, step: int) -> _RunData:
    """The log's line on the data that `step` was given: the last one before it."""
    path = run / _RUN_LOG
    found: dict[str, Any] = {}
    last = 0
    try:
        with open_file(path) as file:
            for text in file:
                try:
                    line = json.loads(text)  # a loss may be no number
                except (ValueError, RecursionError):  # cut short by a kill
                    continue
                now, after = (line.get("step"), line.get("after_step")) if isinstance(line, dict) else (None, None)
                last = max(last, now if is_count(now) else 0)
                if is_count(after) and after < step:
                    found = line
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}; give the --out folder of a training run"
        ) from error
    if not found or not 1 <= step <= last:
        raise UsageError(f"{path} has no step {step} of which it knows the data: expected 1 to {last}")
    try:
        known = [field.name for field in fields(_RunData)]
        data = read_record(_RunData, {name: found[name] for name in known if name in found})
        if missing := {"fingerprint", *_DECISIVE} - data.loader.keys():
            raise ValueError(f"its loader has no {min(missing)!r} in it")
    except ValueError as error:
        raise UsageError(f"{path} does not say which data step {step} was given ({error}): it is damaged") from error
    return data


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


def _describe(line: RowSequence, position: int, max_tokens: int, tokenizer: str | None) -> dict[str, Any]:
    """What the row at `position` of the line holds."""
    numbers, rows, visits = line.rows_at(np.array([position]))
    source, row = line.sources[int(numbers[0])], int(rows[0])
    source.enter(int(visits[0]))
    documents: list[dict[str, Any]] = []
    ids: list[int] = []
    for token, count in source.layout.pieces(row):
        part = np.empty(count, source.stream.dtype)
        source.read_tokens(token, part)
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
        "text": decoder_of(source.manifest, tokenizer).decode(ids[:max_tokens]),
    }


def _documents(source: DatasetRows, token: int, part: Tokens) -> Iterator[dict[str, Any]]:
    """A line for each document in `part`, the stream's tokens from `token` on."""
    first = locate_token(source.manifest, source.stream, token).document
    eot_id = source.stream.eot_id
    starts = [0] if eot_id is None else [0, *(np.flatnonzero(part[1:] == eot_id) + 1).tolist()]
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
