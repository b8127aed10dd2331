"""What is said of a run beside its shards: other texts than before, options without effect, a stream that has no
documents or no train split."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Collection
from pathlib import Path

from shardkit.dataset.journal import Journal
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, SourceFile
from shardkit.errors import OutputError, ShardkitWarning
from shardkit.files import counted
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.source import can_be_read_again
from shardkit.tokenization.run_spec import RunSpec, ShardShape

_OTHERS = "the source gives other texts than when the run began"
OTHER_TEXTS = f"{_OTHERS}: give the same ones as then, start again with --overwrite, or choose another --out"
_ANOTHER_PLACE = "to make a dataset of these, --push to another place, with another --out"


def check_same_texts(spec: RunSpec, journal: Journal, directory: Path, *, place: str | None = None) -> None:
    """Raise `OutputError` if the stream in `directory` has come to its end (as `journal` or a manifest says, or at the
    remote `place`), and is of other texts than the iterable gives now. One that goes on is looked at there.

    Warns (`ShardkitWarning`) where nobody can say: nothing was noted here, the iterable gives its items only once, or a
    limit ended the stream somewhere in what was noted.
    """
    texts, noted = spec.source.texts, journal.resume.digest if journal.resume.file else ""  # of all of them
    if texts is None or not (place or journal.resume.file or (directory / MANIFEST_NAME).exists()):
        return
    if can_be_read_again(texts):
        if not noted and place is None:
            return  # an earlier version's
        digests = (chunk.digest for chunk in iter_chunks(spec.source, 0, 0, 0, chunk_bytes=spec.chunk_bytes))
        is_limited = spec.max_docs is not None or spec.max_tokens is not None
        if noted and noted in (digests if is_limited else deque(digests, maxlen=1)):
            return
        if noted and not is_limited:
            raise OutputError(f"{directory}: {OTHER_TEXTS if place is None else f'{_OTHERS}: {_ANOTHER_PLACE}'}")
    warnings.warn(
        f"{place or directory} is finished and stays as it is: whether the {type(texts).__name__} gives the texts that "
        f"it was made of is not known; {'--overwrite makes it again' if place is None else _ANOTHER_PLACE}",
        ShardkitWarning,
        stacklevel=3,
    )


def no_documents(spec: RunSpec, files: Collection[SourceFile]) -> str:
    """Why a stream is empty, of whose source each of `files` gave something or not."""
    rows = sum(file.rows - file.skipped for file in files)
    given = " and ".join(name for name in ("transform", "filter") if getattr(spec, name) is not None)
    if rows and given:
        return f"{given} left none of the source's {counted(rows, 'document')}: nothing was written"
    read, options = sum(file.rows for file in files), spec.source.options
    chosen = " and ".join(f"--{name}" for name in ("where", "sample") if getattr(options, name) is not None)
    if read and chosen:
        is_json = any(file.kind in ("jsonl", "json") for file in spec.source.files)
        asked = ", ".join(options.choice.columns) if is_json else ""  # in JSON no row has to have them
        hint = f" (a field that a row does not have is a missing value: are these right? {asked})" if asked else ""
        return f"{chosen} left none of the source's {counted(read, 'row')}: nothing was written{hint}"
    names = [file.path for file in spec.source.files]
    of = spec.source.info.id if len(names) < 2 else f"{spec.source.info.id} ({names[0]} and {len(names) - 1:,} more)"
    return f"the source holds no documents ({of}): nothing was written"


def warn_of_missing_splits(manifest: Manifest, shape: ShardShape) -> None:
    """Warn (`ShardkitWarning`) where the stream has no train split, with options that give it one, if any do."""
    shards, tokens = len(manifest.shards), manifest.tokens
    if shards > shape.val_shards:
        return
    fitting = max(1, tokens // (shape.val_shards + 9))
    filled = f"{counted(tokens, 'token')} filled {counted(shards, 'shard')}, so there is no train split"
    if tokens == manifest.documents:
        advice = "every document is empty"
    elif -(-tokens // fitting) > shape.val_shards:
        advice = (
            f"run again with --overwrite, and --shard-tokens {fitting} for about {tokens // fitting} shards or "
            "--val-shards 0"
        )
    else:
        advice = "run again with --overwrite and --val-shards 0"
    warnings.warn(f"{filled}: {advice}", ShardkitWarning, stacklevel=3)
