"""Whether a dataset holds what its source gives: how source files begin is read and encoded again."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import Manifest
from shardkit.dataset.shards import read_header
from shardkit.errors import ShardError, UsageError
from shardkit.look.opened import tokenizer_of
from shardkit.look.shard_pass import FileStart
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.source import Source
from shardkit.tokenization.worker import ChunkEncoder, Job

_FILES = 16  # of a source, at equal distances
_CHUNK_BYTES = 1 << 20
# What changes the stream and cannot be done again from what the manifest says.
_NOT_AGAIN = ("transform", "filter", "skip_duplicates", "sources")


class SourceComparison:
    """Compares shards with the `source` that they were made of, in any thread; `why_not` says why that cannot be done,
    if it cannot. Raises `UsageError` for another source, and what opening one raises."""

    def __init__(self, manifest: Manifest, source: str | None) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self.why_not = _why_not(manifest, source)
        if self.why_not is not None or source is None:
            return
        tokenizer, self.why_not = tokenizer_of(manifest)
        if tokenizer is None:
            return
        self._source = _opened(manifest, source)
        files = manifest.source.files if manifest.source else ()
        self._tokens = [file.tokens for file in files]
        filled = [number for number, file in enumerate(files) if file.documents]
        picked = {filled[i * len(filled) // _FILES] for i in range(_FILES)} if len(filled) > _FILES else set(filled)
        self._numbers = {files[number].path: number for number in picked}
        job = Job(vocabulary=tokenizer.vocabulary, encoder="tiktoken", read=self._source.options, audit_stride=1)
        self._encoder = ChunkEncoder(job)

    def check(self, file: BufferedReader, path: Path, starts: Sequence[FileStart]) -> int:
        """Compare an open shard, where source files begin in it; how many were compared. Raises `ShardError`, and
        `SourceError` for a source that cannot be read."""
        compared = 0
        for start in starts:
            number = self._numbers.get(start.path)
            if number is None:
                continue
            with self._lock:
                expected = self._beginning(number, start.path)[: self._tokens[number]]
            file.seek(0)
            header = read_header(file, path)
            file.seek(header.bytes + start.offset * header.dtype.itemsize)
            count = min(len(expected), header.tokens - start.offset)
            got = np.frombuffer(file.read(count * header.dtype.itemsize), header.dtype)
            if differs := np.flatnonzero(got != expected[:count])[:1].tolist():
                at = differs[0]
                raise ShardError(
                    f"{path}: from token {start.offset + at:,} on it does not hold what {start.path} gives from its "
                    f"token {at:,} on (expected {expected[at : at + 5].tolist()}, got {got[at : at + 5].tolist()}): "
                    "the file has changed, its size has not, or the manifest was edited; tokenize again"
                )
            compared += 1
        return compared

    def _beginning(self, number: int, path: str) -> NDArray[np.unsignedinteger]:
        """The first tokens that a source file gives, and the EOT before them."""
        for chunk in iter_chunks(self._source, number, 0, 0, chunk_bytes=_CHUNK_BYTES):
            if chunk.file != number:
                break
            for piece in self._encoder.encode(chunk):
                if piece.error is not None:
                    raise piece.error
                if piece.bad_row is not None:
                    raise ShardError(f"{path}, row {piece.bad_row[0]:,} of {chunk.where}: {piece.bad_row[1]}")
                if len(piece.tokens):
                    return piece.tokens
        raise ShardError(f"{path} gives no document, where the manifest counts some: it is another file")


def _why_not(manifest: Manifest, source: str | None) -> str | None:
    if manifest.source is None:
        return "no manifest names the source"
    if source is None:
        return f"its source, {manifest.source.id}, was not given"
    changed = [name for name in _NOT_AGAIN if manifest.source.options.get(name)]
    return f"it was made with {changed[0]}, which is not in the manifest" if changed else None


def _opened(manifest: Manifest, source: str) -> Source:
    """The source, opened as it was for the dataset."""
    info = manifest.source
    assert info is not None
    of_hub = info.revision is not None and not os.path.exists(source)
    opened = open_source(
        source,
        name=info.config if of_hub else None,
        split=info.split or "train",
        revision=info.revision if of_hub else None,
        include=info.options.get("include"),
        text_field=info.text_field or "text",
        separator=info.options.get("separator"),
        skip_bad_rows=bool(info.options.get("skip_bad_rows")),
        where=info.options.get("where"),
        sample=info.options.get("sample"),
    )
    if opened.texts is not None:
        raise UsageError(f"{source} is a pipe: a source to compare with is a file, a folder, or a remote")
    made_of, found = ([(file.path, file.bytes) for file in files] for files in (info.files, opened.files))
    if made_of != found:
        other = next((pair for pair in zip(made_of, found, strict=False) if pair[0] != pair[1]), None)
        why = f"{len(found):,} files, expected {len(made_of):,}"
        if other is not None:
            (name, size), (its_name, its_size) = other
            why = f"{its_name} of {its_size:,} bytes, expected {name} of {size:,} bytes"
        raise UsageError(f"{source} is not the source of this dataset: it has {why}")
    return opened
