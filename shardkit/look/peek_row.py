"""`peek` of a row of a batch: its text, its documents, and the source file and row each came from. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.batches.checks import is_count
from shardkit.batches.order import Cut
from shardkit.batches.row_sequence import RowSequence, Sources
from shardkit.batches.rows import DatasetRows, RowOptions
from shardkit.batches.state import read_state
from shardkit.dataset.documents import locate_token, source_of
from shardkit.dataset.token_stream import Tokens
from shardkit.dataset.typed_json import read_record
from shardkit.errors import UsageError
from shardkit.files import open_file
from shardkit.look.result_lines import ShownAsLines
from shardkit.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentPart:
    """A document's tokens in a row, how many, where they lie (`offset` in the file `shard`), and which source file and
    row the document came from, as far as the manifest knows (else None)."""

    document: int | None
    tokens: int
    shard: str
    offset: int
    source_file: str | None
    source_row: int | None

    def __str__(self) -> str:
        document = "document unknown" if self.document is None else f"document {self.document:,}"
        row = "unknown" if self.source_row is None else f"{self.source_row:,}"
        source = "source unknown" if self.source_file is None else f"{self.source_file} row {row}"
        return f"{document}  {self.tokens:,} tokens  {self.shard} at {self.offset:,}  {source}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeekedRow(ShownAsLines):
    """A row of a batch: row number `window` of `dataset`, at `place_in_epoch` of `epoch`, its number of tokens, the
    documents in it, and its text, decoded."""

    dataset: str
    epoch: int
    place_in_epoch: int
    window: int
    tokens: int
    documents: tuple[DocumentPart, ...]
    text: str


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
) -> PeekedRow:
    """Row `row` of `rank` in batch `step` (from 0) of a run that began at the beginning: its text, and its documents.

    Raises `UsageError` for a row that does not exist, and what opening the dataset raises.
    """
    options = RowOptions(
        split=split, seq_len=seq_len, shuffle=shuffle, seed=seed, layout=layout, span=span, eot_id=eot_id
    )
    with RowSequence(source, options) as line:
        cut = _cut(batch_size, world_size, rank, row)
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
) -> PeekedRow:
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
        raise UsageError(f"cannot read {path}: {error.strerror or error}; give the folder of a training run") from None
    if not found or not 1 <= step <= last:
        raise UsageError(f"{path} has no step {step} of which it knows the data: expected 1 to {last}")
    try:
        known = [field.name for field in fields(_RunData)]
        data = read_record(_RunData, {name: found[name] for name in known if name in found})
        if missing := {"fingerprint", *_DECISIVE} - data.loader.keys():
            raise ValueError(f"its loader has no {min(missing)!r} in it")
    except ValueError as error:
        raise UsageError(f"{path} does not say which data step {step} was given ({error}): it is damaged") from None
    return data


def _cut(batch_size: int, world_size: int, rank: int, row: int) -> Cut:
    if not (0 <= rank < world_size and 0 <= row < batch_size):
        raise UsageError(
            f"--rank is {rank}, --row {row}: expected 0 to {world_size - 1} and 0 to {batch_size - 1} for "
            f"{world_size} ranks and batches of {batch_size}"
        )
    return Cut(batch_size=batch_size, world_size=world_size)


def _describe(line: RowSequence, position: int, max_tokens: int, tokenizer: str | None) -> PeekedRow:
    """What the row at `position` of the line holds."""
    numbers, rows, visits = line.rows_at(np.array([position]))
    source, row = line.sources[int(numbers[0])], int(rows[0])
    source.enter(int(visits[0]))
    documents: list[DocumentPart] = []
    ids: list[int] = []
    for token, count in source.layout.pieces(row):
        part = np.empty(count, source.stream.dtype)
        source.read_tokens(token, part)
        documents += _documents(source, token, part)
        ids += part.tolist()
    epoch, place = divmod(position, line.n_rows)
    decoder = Tokenizer.of_dataset(source.manifest, name=tokenizer, encoder="tiktoken")
    return PeekedRow(
        dataset=source.name,
        epoch=epoch,
        place_in_epoch=place,
        window=row,
        tokens=len(ids),
        documents=tuple(documents),
        text=decoder.decode(ids[:max_tokens]),
    )


def _documents(source: DatasetRows, token: int, part: Tokens) -> Iterator[DocumentPart]:
    """Each document in `part`, the stream's tokens from `token` on."""
    first = locate_token(source.manifest, source.stream, token).document
    eot_id = source.stream.eot_id
    starts = [0] if eot_id is None else [0, *(np.flatnonzero(part[1:] == eot_id) + 1).tolist()]
    for number, (begin, end) in enumerate(zip(starts, [*starts[1:], len(part)], strict=True)):
        shard, offset = source.stream.shard_of(token + begin)
        document = None if first is None else first + number
        file, row = source_of(source.manifest, document)
        yield DocumentPart(
            document=document,
            tokens=end - begin,
            shard=source.stream.shards[shard].file,
            offset=offset,
            source_file=file,
            source_row=row,
        )
