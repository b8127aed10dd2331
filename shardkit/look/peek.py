"""`peek`: a document, or a row of a batch, as text, and the source file and row it came from. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.arguments import user_path, whole_numbers
from shardkit.batches.row_sequence import Sources
from shardkit.dataset.documents import source_of
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.shards import MEND
from shardkit.errors import ShardError, UsageError
from shardkit.files import counted
from shardkit.look.peek_row import PeekedRow, peek_row, peek_run
from shardkit.look.result_lines import ShownAsLines
from shardkit.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class PeekedDocument(ShownAsLines):
    """A document: where its EOT lies (`offset` in the file `shard`), which source file and row it came from, as far as
    the manifest knows (else None), and its first `tokens_shown` tokens as text."""

    document: int
    shard: str
    offset: int
    source_file: str | None
    source_row: int | None
    tokens_shown: int
    text: str


def peek(
    directory: Sources | None = None,
    *,
    document: int | None = None,
    run: str | os.PathLike[str] | None = None,
    step: int | None = None,
    micro_step: int = 0,
    rank: int = 0,
    row: int = 0,
    batch_size: int | None = None,
    seq_len: int | None = None,
    world_size: int = 1,
    seed: int = 0,
    split: str = "train",
    shuffle: bool = True,
    layout: str = "contiguous",
    span: int | None = None,
    eot_id: int | None = None,
    tokens: int = 300,
    tokenizer: str | None = None,
) -> PeekedDocument | PeekedRow:
    """A document of the dataset `directory`, or a row of a batch, decoded, and where it came from.

    `document` counts from 0, the default. With `step`, row `row` of that batch of `rank`, where the other options are
    those that the loader was given. With `run`, the folder of a training run, whose log has those options, `step`
    counts as the log does, and `micro_step` the step's forward passes; `directory` says then where the data are, if
    they have moved. At most `tokens` tokens are decoded, with `tokenizer` in place of the dataset's own. Of shards
    without a manifest `eot_id` says which token begins a document.

    Raises `UsageError` for options that do not go together, and for a document, step or row that does not exist;
    `StateError` if the data of `run` are others by now; and what opening the dataset raises.

    >>> peek("out", document=1).source_row
    1
    >>> peek("out", step=3, row=1, batch_size=4, seq_len=64).tokens
    64
    """
    document, step, eot_id = whole_numbers(least=0, document=document, step=step, eot_id=eot_id)
    batch_size, seq_len, span = whole_numbers(batch_size=batch_size, seq_len=seq_len, span=span)
    micro_step, rank, row, seed = whole_numbers(
        least=0, or_none=False, micro_step=micro_step, rank=rank, row=row, seed=seed
    )
    tokens, world_size = whole_numbers(or_none=False, tokens=tokens, world_size=world_size)
    show: dict[str, Any] = {"max_tokens": tokens, "tokenizer": tokenizer}
    if run is not None:
        if step is None:
            raise UsageError("--run needs --step S")
        if directory is not None and not isinstance(directory, str | os.PathLike):
            raise UsageError("with --run, expected a folder where its data have moved to")
        moved_to = None if directory is None else str(user_path(directory))
        return peek_run(user_path(run), step=step, micro_step=micro_step, rank=rank, row=row, moved_to=moved_to, **show)
    if directory is None:
        raise UsageError("give a dataset's DIR, or --run RUN with --step S")
    if step is None:
        if not isinstance(directory, str | os.PathLike):
            raise UsageError("a document is one of a dataset's folder: expected its path")
        return peek_document(user_path(directory), document or 0, eot_id=eot_id, **show)
    if document is not None or batch_size is None or seq_len is None:
        raise UsageError("--step needs the loader's --batch-size and --seq-len, and no --document")
    loader: dict[str, Any] = {
        "world_size": world_size,
        "seed": seed,
        "split": split,
        "shuffle": shuffle,
        "layout": layout,
    }
    return peek_row(
        directory,
        step=step,
        rank=rank,
        row=row,
        batch_size=batch_size,
        seq_len=seq_len,
        span=span,
        eot_id=eot_id,
        **loader,
        **show,
    )


def peek_document(
    directory: Path, document: int, *, max_tokens: int = 300, tokenizer: str | None = None, eot_id: int | None = None
) -> PeekedDocument:
    """Document number `document` (from 0) of the dataset: where it is, where it came from, and its text, decoded.
    `eot_id` begins a document in bare shards, of which nothing says it; without it the tokenizer's does.

    Raises `UsageError` if there is no such document, nothing says which tokenizer made it, or `eot_id` is another than
    the manifest's.
    """
    known = KnownFiles(directory)
    manifest = Manifest.of_folder(directory)
    decoder = Tokenizer.of_dataset(manifest, name=tokenizer, encoder="tiktoken")
    if manifest.tokenizer is not None and eot_id not in (None, decoder.eot_id):
        raise UsageError(f"--eot-id is {eot_id}, {directory} was made with {decoder.eot_id}: leave it out")
    eot_id = decoder.eot_id if eot_id is None else eot_id
    counts = _document_counts(known, manifest, eot_id)
    if not any(counts) and manifest.tokenizer is None:
        raise UsageError(
            f"{directory} holds no token {eot_id}, which would begin a document: say which one does, with --eot-id "
            "NUMBER or --tokenizer NAME"
        )
    if not 0 <= document < sum(counts):
        raise UsageError(f"no document {document}: {directory} holds {counted(sum(counts), 'document')}, from 0")
    number, before = 0, 0
    while before + counts[number] <= document:
        before += counts[number]
        number += 1
    offset, ids = _read_document(known, manifest, number, document - before, eot_id, max_tokens)
    file, row = source_of(manifest, document)
    return PeekedDocument(
        document=document,
        shard=manifest.shards[number].file,
        offset=offset,
        source_file=file,
        source_row=row,
        tokens_shown=len(ids),
        text=decoder.decode(ids),
    )


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
            f"{manifest.shards[number].documents:,}: it is damaged, {MEND}"
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
