"""`convert()`: a dataset of tokens in another trainer's format, or out of it; no text is tokenized."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shardkit.arguments import check_texts, user_path, whole_numbers
from shardkit.bars import TransferBar, shown
from shardkit.dataset.convert import WRITERS, convert_folder
from shardkit.dataset.formats.interface import Given
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.shards import DTYPES
from shardkit.errors import UsageError
from shardkit.tokenization.output_folder import default_prefix
from shardkit.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What `convert` made: the source's format and the new one, the tokens of each split in shardkit's form (one EOT
    before each document), how many `documents` there are (None: nobody knows the EOT), and the manifest of shards."""

    source_format: str
    format: str
    tokens: Mapping[str, int]
    documents: int | None
    manifest: Manifest | None


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str,
    tokenizer: str | None = None,
    eot_id: int | None = None,
    dtype: str | None = None,
    shard_tokens: int | None = None,
    progress: Callable[[str, int, int], None] | bool | None = True,
) -> Converted:
    """Write the dataset at `source` into the new folder `out`, in the format `to`: npy (shardkit's own), llmc (and
    modded-nanogpt), nanogpt, megatron or parquet (a row a document). The source's format is recognized.

    The EOT moves where the formats have it in another place. Converting back gives the same shards and manifest, byte
    for byte. Files that shardkit did not write say less: `tokenizer` or `eot_id` says which token ends a document,
    `dtype` ("uint16", "uint32") how long an id is where the files do not say it. `shard_tokens` cuts the stream anew.
    Memory is flat, but for the longest document of a parquet file. A conversion that was stopped leaves nothing.

    A bar says how far it is; `progress(split, done_bytes, total_bytes)` is called in its place. Raises `UsageError`,
    `SourceError` for what is no dataset, `ShardError` for a damaged one, `OutputError` if `out` is not empty or cannot
    be written. Warns (`ShardkitWarning`) where the EOT would have to move and nobody says which token it is.

    >>> made = convert("out", "for-nanogpt", to="nanogpt")
    >>> made.source_format, list(made.tokens)
    ('npy', ['val', 'train'])
    >>> back = convert("for-nanogpt", "back", to="npy")
    >>> back.manifest == Manifest.load("out")
    True
    """
    check_texts(to=to, tokenizer=tokenizer, dtype=dtype)
    if to not in WRITERS:
        raise UsageError(f"--to is {to!r:.40}: expected one of {', '.join(WRITERS)}")
    if dtype not in (None, *DTYPES):
        raise UsageError(f"--dtype is {dtype!r:.40}: expected {' or '.join(DTYPES)}")
    (shard_tokens,) = whole_numbers(shard_tokens=shard_tokens)
    (eot_id,) = whole_numbers({"eot_id": (1 << 32) - 1}, least=0, eot_id=eot_id)
    place, folder = user_path(source), user_path(out)
    vocabulary = Tokenizer(tokenizer, encoder="tiktoken") if tokenizer is not None else None
    info = vocabulary.info_with_file if vocabulary is not None else None
    if info is not None and eot_id not in (None, info.eot_id):
        raise UsageError(f"--eot-id is {eot_id}, {info} has another: leave one of the two out")
    given = Given(eot_id=eot_id if info is None else info.eot_id, dtype=dtype, tokenizer=info)
    with shown(progress, lambda: TransferBar("convert")) as tell:
        done = convert_folder(
            place,
            folder,
            to,
            given,
            shard_tokens=shard_tokens,
            prefix=default_prefix(folder.name),
            tokenizer_json=vocabulary.file if vocabulary is not None else b"",
            tell=tell,
        )
    return Converted(
        source_format=done.format, format=to, tokens=done.tokens, documents=done.documents, manifest=done.manifest
    )
