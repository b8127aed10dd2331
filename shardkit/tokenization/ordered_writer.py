"""The ordered writer: takes encoded chunks in stream order and cuts them into shards, one journal line a shard.

A finished shard is synced, renamed and journalled on a thread of its own while the next one fills. The first worker
error, or the first bad row, stops the stream at its place: everything before it is kept.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.journal import JOURNAL_FILE, Journal, Resume
from shardkit.dataset.manifest import WORK_DIR, ShardInfo, SourceFile
from shardkit.dataset.shards import ShardWriter, shard_name
from shardkit.errors import OutputError, ShardkitWarning, SourceError
from shardkit.files import sha256_file
from shardkit.remote.uploader import Uploader
from shardkit.sources.source import Chunk, InputFile
from shardkit.tokenization.run_spec import ShardPlan, shard_file_bytes, working_bytes
from shardkit.tokenization.worker import EncodedChunk

_LISTED = 20  # skipped rows that are named one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeProgress:
    """How far a run is: totals over the whole run, `session_` figures since this process read its first chunk.

    `source_bytes_done` of `source_bytes` (0: unknown) is the share of the source's files already in the stream.
    """

    tokens: int
    documents: int
    shards: int
    source_bytes_done: int
    source_bytes: int
    session_tokens: int
    session_text_bytes: int
    session_seconds: float
    audited: int
    skipped: int
    process_ids: tuple[int, ...] = ()


class OrderedWriter:
    """Cuts the stream into shards, from where `journal` says that it goes on. `outbox` takes each finished shard; where
    it bounds the disk, no shard is begun before there is room for it."""

    def __init__(
        self, plan: ShardPlan, journal: Journal, inputs: tuple[InputFile, ...], outbox: Uploader | None = None
    ) -> None:
        self.plan, self.journal, self.outbox = plan, journal, outbox
        self.tokens = sum(shard.tokens for shard in journal.shards)
        self.documents = journal.resume.documents
        self.full = False
        self.first_read = 0.0
        self.session_tokens = self.session_text_bytes = self.audited = self.skipped = 0
        self._files = {i: SourceFile(path=f.path, bytes=f.bytes) for i, f in enumerate(inputs)}
        self._files.update(journal.resume.files)
        self._changed: set[int] = set()
        self._skip = journal.resume.skip_tokens
        self._shards = len(journal.shards)
        self._mask = np.empty(0, np.bool_)
        self._writer: ShardWriter | None = None
        self._shard_documents = 0
        self._finisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shardkit-finish")
        self._finishing: Future[None] | None = None
        self._checker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shardkit-check")
        to_check = journal.shards if outbox is None else []  # an outbox checks what it sends, the remote what it has
        self._checks = [self._checker.submit(_check_hash, plan.directory, shard) for shard in to_check]

    def __enter__(self) -> OrderedWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._checker.shutdown(wait=True, cancel_futures=True)
        self._finisher.shutdown(wait=True)
        if self._writer is not None:
            self._writer.abort()

    def take(self, result: EncodedChunk) -> None:
        """Append one chunk's tokens to the stream. Raises what went wrong in its worker."""
        chunk = result.chunk
        self.first_read = self.first_read or result.read_at
        if result.error is not None:
            raise result.error
        before = self._files[chunk.file]
        if result.bad_row is not None:
            row, why = result.bad_row
            raise SourceError(
                f"{chunk.input.path}, {_row_words(chunk, before.rows + row)}: {why}; mend it, or pass over such rows "
                "with --skip-bad-rows"
            )
        skip, self._skip = min(self._skip, len(result.tokens)), 0
        starts = self._starts(result.tokens)
        tokens = self._limited(result.tokens, starts, skip)
        self._write(tokens, starts, chunk, skip)
        self.session_text_bytes += result.text_bytes
        self.audited += result.audited
        self._count(result, before, len(tokens), int(np.searchsorted(starts, len(tokens))))

    def finish(self) -> tuple[SourceFile, ...]:
        """Close the last shard, wait until all is on disk, and say what each source file gave."""
        if self._writer is not None:
            self._close_shard(Resume(file=len(self._files)))  # past the end, also where a limit ended the stream
        self._wait()
        for check in self._checks:
            check.result()  # the earlier shards are what the journal says
        if not self.journal.shards:
            raise SourceError("the source holds no documents: nothing was written")
        return tuple(self._files[i] for i in sorted(self._files))

    def progress(self, done: int, total: int, process_ids: tuple[int, ...]) -> TokenizeProgress:
        """The figures for the bar."""
        return TokenizeProgress(
            tokens=self.tokens, documents=self.documents, shards=self._shards, source_bytes_done=done,
            source_bytes=total, session_tokens=self.session_tokens, session_text_bytes=self.session_text_bytes,
            session_seconds=time.time() - self.first_read if self.first_read else 0.0,
            audited=self.audited, skipped=self.skipped, process_ids=process_ids,
        )  # fmt: skip

    def _starts(self, tokens: NDArray[np.unsignedinteger]) -> NDArray[np.intp]:
        """Where the EOTs are. Uses the same memory for each chunk."""
        if len(self._mask) < len(tokens):
            self._mask = np.empty(len(tokens), np.bool_)
        return np.flatnonzero(np.equal(tokens, self.plan.eot_id, out=self._mask[: len(tokens)]))

    def _limited(
        self, tokens: NDArray[np.unsignedinteger], starts: NDArray[np.intp], skip: int
    ) -> NDArray[np.unsignedinteger]:
        """The chunk's tokens up to the run's limits; `starts` are its EOTs, `skip` tokens are in earlier shards."""
        limits = self.plan.limits
        if limits.tokens is not None:
            tokens = tokens[: limits.tokens - self.tokens + skip]
        if limits.docs is not None:
            allowed = limits.docs - self.documents + int(np.searchsorted(starts, skip))
            if len(starts) > allowed:
                tokens = tokens[: starts[allowed]]
        return tokens

    def _write(self, tokens: NDArray[np.unsignedinteger], starts: NDArray[np.intp], chunk: Chunk, done: int) -> None:
        """Put a chunk's tokens into shards, from number `done` on; `starts` are its EOTs."""
        while done < len(tokens):
            writer = self._writer or self._open_shard()
            part = tokens[done : done + writer.room]
            writer.write(part)
            documents = int(np.diff(np.searchsorted(starts, [done, done + len(part)]))[0])
            self._shard_documents += documents
            self.documents += documents
            self.tokens += len(part)
            self.session_tokens += len(part)
            done += len(part)
            if writer.room == 0:
                resume = Resume(file=chunk.file, start=chunk.start, part=chunk.part, skip_tokens=done)
                self._close_shard(resume)
        self.full = self._at_limit()

    def _count(self, result: EncodedChunk, before: SourceFile, tokens: int, documents: int) -> None:
        """Add what of a chunk is in the stream (all, or up to where the stream ends) to its file's figures."""
        chunk = result.chunk
        rows = result.rows if tokens == len(result.tokens) else _rows_of(result, documents)
        skipped = tuple(before.rows + row for row in result.skipped if row < rows)
        for row, why in result.bad:
            self.skipped += 1
            if self.skipped <= _LISTED:
                where = f"{chunk.input.path}, {_row_words(chunk, before.rows + row)}"
                warnings.warn(f"skipped {where}: {why}", ShardkitWarning, stacklevel=2)
        self._files[chunk.file] = dataclasses.replace(
            before, rows=before.rows + rows, documents=before.documents + documents,
            tokens=before.tokens + tokens, skipped_rows=before.skipped_rows + skipped,
        )  # fmt: skip
        self._changed.add(chunk.file)

    def _open_shard(self) -> ShardWriter:
        if self.outbox is not None:
            self._wait()  # so that the shard before counts
            self.outbox.wait_for_room(shard_file_bytes(self.plan) + working_bytes(self.journal))
        temp = self.plan.directory / WORK_DIR / f"{self._shards:06d}.tmp"
        self._writer = ShardWriter(temp, self.plan.dtype, self.plan.tokens_per_shard)
        self._shard_documents = 0
        return self._writer

    def _close_shard(self, resume: Resume) -> None:
        """Hand the shard to the finishing thread; at most one is being finished at a time."""
        if self._writer is None:
            raise RuntimeError("no shard is open")
        self._wait()
        split = "val" if self._shards < self.plan.val_shards else "train"
        info = ShardInfo(
            file=shard_name(self.plan.prefix, split, self._shards), split=split, index=self._shards, tokens=0,
            documents=self._shard_documents, first_document=self.documents - self._shard_documents, sha256="", bytes=0,
        )  # fmt: skip
        files = {i: self._files[i] for i in self._changed}
        self._changed.clear()
        resume = dataclasses.replace(resume, documents=self.documents, files=files)
        self._finishing = self._finisher.submit(self._finish_shard, self._writer, info, resume)
        self._writer = None
        self._shards += 1

    def _finish_shard(self, writer: ShardWriter, info: ShardInfo, resume: Resume) -> None:
        made = writer.finish(self.plan.directory / info.file)
        info = dataclasses.replace(info, tokens=made.tokens, bytes=made.bytes, sha256=made.sha256)
        self.journal.append(info, resume)
        if self.outbox is not None:
            small = {JOURNAL_FILE: self.journal.path.read_bytes()}
            self.outbox.submit(self.plan.directory / info.file, info, small)

    def _wait(self) -> None:
        if self._finishing is not None:
            self._finishing.result()
            self._finishing = None

    def _at_limit(self) -> bool:
        limits = self.plan.limits
        enough_tokens = limits.tokens is not None and self.tokens >= limits.tokens
        return enough_tokens or (limits.docs is not None and self.documents >= limits.docs)


def _rows_of(result: EncodedChunk, documents: int) -> int:
    """How many rows of the chunk the first `documents` documents took."""
    if documents == 0:
        return 0
    return documents if result.document_rows is None else result.document_rows[documents - 1] + 1


def _row_words(chunk: Chunk, row: int) -> str:
    return f"line {row + 1}" if chunk.input.format.startswith("jsonl") else f"row {row}"


def _check_hash(directory: Path, shard: ShardInfo) -> None:
    if sha256_file(directory / shard.file) != shard.sha256:
        raise OutputError(
            f"{directory / shard.file} is not what this run wrote (another SHA-256): the folder is damaged, start "
            "again with --overwrite"
        )
