"""`to_datasets()`: a split as a `datasets.Dataset` of windows or documents, whose tokens stay in the mapped shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardkit.arguments import check_texts, whole_numbers
from shardkit.dataset.documents import document_starts
from shardkit.dataset.folder import PLAN_FOLDER, WORK_DIR
from shardkit.dataset.token_stream import TokenStream, open_split
from shardkit.errors import ShardError, UsageError

if TYPE_CHECKING:
    import datasets

_MOST_TOKENS = np.iinfo(np.int32).max  # of the lists in one chunk: their offsets are int32


def to_datasets(
    directory: str | os.PathLike[str], *, split: str = "train", seq_len: int | None = None, eot_id: int | None = None
) -> datasets.Dataset:
    """A `datasets.Dataset` of a split, with the column `input_ids` (uint16 or uint32), for the tools of Hugging Face.

    With `seq_len` a row is a window of so many tokens of the stream, one after the other; what is left at the end of
    the split is left out. Without, a row is a document with the EOT before it; what comes before the split's first EOT
    (the rest of a document of the split before) is left out, and `eot_id` is needed of shards without a manifest.

    Tokens are read from the memory-mapped shards: nothing is copied but rows that lie across two shards, and where
    documents begin. To pickle such a dataset (spawned workers) copies all of it: `save_to_disk` it first.

    Raises `ManifestError`, `ShardError`, `UsageError`.

    >>> rows = to_datasets("out", seq_len=1024)
    >>> len(rows), len(rows[0]["input_ids"])
    (..., 1024)
    >>> to_datasets("out", split="val")[0]["input_ids"][0]  # a document, after GPT-2's end-of-text token
    50256
    """
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable

    check_texts(split=split)
    seq_len, eot_id = whole_numbers({"eot_id": (1 << 32) - 1, "seq_len": _MOST_TOKENS}, seq_len=seq_len, eot_id=eot_id)
    manifest, stream = open_split(directory, split, verify=False)
    if manifest.tokenizer is not None:
        eot_id = manifest.tokenizer.eot_id
    value = datasets.Value(stream.dtype.name)
    if seq_len is not None:
        column = datasets.List(value, length=seq_len)
        chunks = list(_windows(stream, seq_len))
    else:
        if eot_id is None:
            raise UsageError(
                f"nothing says which token begins a document in {stream.directory}: give eot_id, or seq_len"
            )
        column, cache = datasets.List(value), stream.directory / WORK_DIR / PLAN_FOLDER
        chunks = list(_documents(stream, document_starts(stream, eot_id, cache)))
    features = datasets.Features({"input_ids": column})
    lists = pa.chunked_array(chunks, features.arrow_schema.field("input_ids").type)
    key = json.dumps([manifest.fingerprint, split, seq_len, eot_id])  # else all tokens would be hashed
    return datasets.Dataset(
        InMemoryTable(pa.table({"input_ids": lists}, schema=features.arrow_schema)),
        info=datasets.DatasetInfo(features=features),
        split=datasets.NamedSplit(split),
        fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
    )


def _windows(stream: TokenStream, seq_len: int) -> Iterator[Any]:
    import pyarrow as pa

    row, rows = 0, stream.tokens // seq_len
    while row < rows:
        number, offset = stream.shard_of(row * seq_len)
        whole = (stream.shards[number].tokens - offset) // seq_len
        tokens = _mapped(stream, number, offset, whole * seq_len) if whole else _copied(stream, row * seq_len, seq_len)
        yield pa.FixedSizeListArray.from_arrays(_arrow(tokens), seq_len)
        row += max(1, whole)


def _documents(stream: TokenStream, starts: NDArray[np.int64]) -> Iterator[Any]:
    import pyarrow as pa

    bounds = np.append(starts, stream.tokens)
    document = 0
    while document < len(starts):
        start = int(bounds[document])
        number, offset = stream.shard_of(start)
        end = min(stream.starts[number + 1], start + _MOST_TOKENS)
        last = int(np.searchsorted(bounds, end, "right")) - 1  # documents before `last` end in the shard
        if last > document:
            tokens = _mapped(stream, number, offset, int(bounds[last]) - start)
        elif bounds[document + 1] - start > _MOST_TOKENS:
            raise ShardError(f"{stream.directory} has a document of more than {_MOST_TOKENS:,} tokens: give seq_len")
        else:
            last = document + 1
            tokens = _copied(stream, start, int(bounds[last]) - start)
        offsets = (bounds[document : last + 1] - start).astype(np.int32)
        yield pa.ListArray.from_arrays(pa.array(offsets), _arrow(tokens))
        document = last


def _mapped(stream: TokenStream, number: int, offset: int, count: int) -> NDArray[np.unsignedinteger]:
    return stream.known.map(stream.shards[number], stream.dtype.name)[offset : offset + count]


def _copied(stream: TokenStream, token: int, count: int) -> NDArray[np.unsignedinteger]:
    tokens = np.empty(count, stream.dtype)
    stream.read(token, tokens)
    return tokens


def _arrow(tokens: NDArray[np.unsignedinteger]) -> Any:
    """The tokens as an Arrow array, in the same memory."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.from_numpy_dtype(tokens.dtype), len(tokens), [None, pa.py_buffer(tokens)])
