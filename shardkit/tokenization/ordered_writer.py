"""The ordered writer: says, piece by piece in stream order, where in the shards the tokens of encoded chunks belong.

It sees counts alone; the runner has the tokens put there. The first worker error, or the first bad row, stops the
stream at its place: everything before it is kept.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shardkit.cores import available_cores
from shardkit.dataset.journal import Journal, Resume
from shardkit.dataset.known_files import SeenShards
from shardkit.dataset.manifest import WORK_DIR, ShardInfo, SourceFile
from shardkit.dataset.shards import ShardWriter, shard_blocks
from shardkit.errors import OutputError, ShardError, ShardkitWarning, SourceError
from shardkit.files import write_error
from shardkit.sources.source import Chunk
from shardkit.tokenization.finished_shards import FinishedShards, remove, remove_all
from shardkit.tokenization.live_push import LivePush
from shardkit.tokenization.piece_rows import eots_before, row_words, with_piece
from shardkit.tokenization.run_checks import OTHER_TEXTS, no_documents
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.runner import OpenShard, Runner
from shardkit.tokenization.worker import EncodedChunk
from shardkit.waits import result_of

_LISTED = 20  # skipped rows that are named one by one


class OrderedWriter:
    """Cuts the stream that `runner` gives into shards in the folder of `seen`, from where `journal` says it goes on. A
    context manager.

    `seen` gets to know the shards that are written and, without `uploads`, the earlier ones. `uploads` is handed each
    finished shard; where it bounds the disk, no shard is begun before it fits.
    """

    def __init__(
        self, spec: RunSpec, seen: SeenShards, journal: Journal, runner: Runner, uploads: LivePush | None = None
    ) -> None:
        self.spec, self.directory, self.journal, self.uploads = spec, seen.directory, journal, uploads
        self._runner = runner
        self.tokens = sum(shard.tokens for shard in journal.shards)
        self.documents = journal.resume.documents
        self.full = False
        self.first_read = 0.0
        self.session_tokens = self.session_text_bytes = self.audited = self.skipped = 0
        self._waited, self._fetched_bytes = 0.0, 0  # of the workers
        none = 0 if spec.skip_duplicates else None
        self._files = {
            i: SourceFile(path=f.path, bytes=f.bytes, duplicates=none) for i, f in enumerate(spec.source.files)
        }
        self._files.update(journal.resume.files)
        self._changed: set[int] = set()
        self._file: SourceFile | None = None  # what the chunk's file gave up to the piece, where a chunk is begun
        self._chunk_tokens = 0  # in earlier pieces of the chunk
        self._skip = journal.resume.skip_tokens  # more than a chunk has, where an earlier version made longer ones
        self._digest, self._first_digest = journal.resume.digest, ""
        self._shards = len(journal.shards)
        self._shard: OpenShard | None = None
        self._shard_documents = 0
        self._finished = FinishedShards(runner, seen, journal, uploads)
        self._checker = ThreadPoolExecutor(max_workers=available_cores(), thread_name_prefix="shardkit-check")
        to_check = journal.shards if uploads is None else []  # with a remote, `pull` checks them at the end
        self._checks = [self._checker.submit(_check_earlier, seen, shard) for shard in to_check]

    def __enter__(self) -> OrderedWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self._shard is not None:
                remove(self._shard.temp)  # it may have the room that those before it need
            self._checker.shutdown(wait=True, cancel_futures=True)
            self._finished.close()
        finally:  # also at a Ctrl-C in there
            remove_all(self.directory)

    def append_chunk(self, result: EncodedChunk) -> None:
        """Append the tokens of a chunk's next piece to the stream. Raises what went wrong in its worker."""
        chunk = result.chunk
        if not self.first_read and self._digest not in ("", chunk.digest):  # where it goes on
            raise SourceError(OTHER_TEXTS)
        self._digest, self._first_digest = chunk.digest, self._first_digest or chunk.digest
        self.first_read = self.first_read or result.read_at
        self._waited += result.waited
        self._fetched_bytes += result.fetched_bytes
        if result.error is not None:
            raise result.error
        before = self._file or self._files[chunk.file]
        if result.bad_row is not None:
            row, why = result.bad_row
            where = f"{chunk.input.path}, {row_words(chunk, max(0, before.rows + row))}"
            raise SourceError(f"{where}: {why}; mend it, or pass over such rows with --skip-bad-rows")
        skip = min(self._skip, result.count)
        self._skip -= skip
        tokens = self._up_to_limits(result, skip)
        self._write(tokens, result, skip)
        self._finished.record_completed()
        self.session_text_bytes += result.text_bytes * (tokens - skip) // max(1, result.count)  # of what is written
        self.audited += result.audited
        self._chunk_tokens += result.count
        self._file = self._added(before, result, tokens, eots_before(result, tokens))
        if result.last or self.full:
            self._files[chunk.file], self._file, self._chunk_tokens = self._file, None, 0
            self._changed.add(chunk.file)

    def finish(self) -> tuple[SourceFile, ...]:
        """Close the last shard, wait until all is on disk, and say what each source file gave.

        Raises `SourceError` if the source ended before it gave what is in earlier shards.
        """
        if self._skip:
            raise SourceError(OTHER_TEXTS)
        past_the_end = Resume(file=len(self._files), digest=self._digest)  # also where a limit ended the stream
        if self._shard is not None and self._is_cut(self._shard):
            self._cut_in_two(self._shard, past_the_end)
        elif self._shard is not None:
            self._close_shard(self._shard, past_the_end)
        self._finished.settle()
        for check in self._checks:
            result_of(check)  # the earlier shards are what the journal says
        if not self.journal.shards and self.spec.part is None:
            raise SourceError(no_documents(self.spec, self._files.values()))
        return tuple(self._files[i] for i in sorted(self._files))

    def progress(
        self, done: int, total: int, process_ids: tuple[int, ...], fetched_bytes: int, seconds: float
    ) -> TokenizeProgress:
        """The figures for the bar; `done` of `total` bytes of the source's files are in the stream. This process has
        fetched `fetched_bytes` in `seconds`."""
        session = time.time() - self.first_read if self.first_read else 0.0
        return TokenizeProgress(
            tokens=self.tokens,
            documents=self.documents,
            shards=self._shards,
            source_bytes_done=done,
            source_bytes=total,
            session_tokens=self.session_tokens,
            session_text_bytes=self.session_text_bytes,
            session_seconds=session,
            audited=self.audited,
            skipped=self.skipped,
            process_ids=process_ids,
            network_bytes=fetched_bytes + self._fetched_bytes,
            network_seconds=seconds,
            waited_share=min(1.0, self._waited / (session * len(process_ids))) if process_ids and session else None,
            end_of_text=self.spec.tokenizer.vocabulary.end_of_text,
        )

    def _up_to_limits(self, result: EncodedChunk, skip: int) -> int:
        """How many of the piece's tokens are within the run's limits; the first `skip` are in earlier shards."""
        tokens, spec = result.count, self.spec
        if spec.max_tokens is not None:
            tokens = min(tokens, spec.max_tokens - self.tokens + skip)
        if spec.max_docs is not None:
            allowed = spec.max_docs - self.documents + eots_before(result, skip)
            if len(result.eot_positions) > allowed:
                tokens = min(tokens, int(result.eot_positions[allowed]))
        return tokens

    def _write(self, tokens: int, result: EncodedChunk, done: int) -> None:
        """Have the first `tokens` of a piece put into shards, from number `done` on."""
        while done < tokens:
            if self._shard is not None and self._shard.room == 0:  # not before it is known not to be the last
                self._close_shard(self._shard, self._place(result.chunk, done))
            shard = self._shard or self._open_shard()
            end = min(tokens, done + shard.room)
            self._runner.write(result, done, end, shard)
            documents = eots_before(result, end) - eots_before(result, done)
            self._shard_documents += documents
            self.documents += documents
            self.tokens += end - done
            self.session_tokens += end - done
            done = end
        self.full = self._skip == 0 and self._at_limit(ends=result.last or tokens < result.count)

    def _added(self, before: SourceFile, result: EncodedChunk, tokens: int, documents: int) -> SourceFile:
        """A file's figures `before`, and what of a piece is in the stream (all, or up to where the stream ends)."""
        self._name_skipped(result, before.rows)
        return with_piece(before, result, tokens, documents, whole=tokens == result.count)

    def _name_skipped(self, result: EncodedChunk, rows: int) -> None:
        for number, (row, why) in enumerate(result.bad, self.skipped):
            if number < _LISTED:
                where = f"{result.chunk.input.path}, {row_words(result.chunk, rows + row)}"
                warnings.warn(f"skipped {where}: {why}", ShardkitWarning, stacklevel=2)
        self.skipped += result.bad_rows

    def _open_shard(self) -> OpenShard:
        if self.uploads is not None and self.uploads.fills_this_disk:
            self._finished.settle()  # so that the shards before count
            self.uploads.wait_for_room()
        shard = OpenShard(self._temp(), self.spec.tokenizer.dtype, self.spec.tokens_per_shard)
        try:
            shard.temp.write_bytes(b"")
        except OSError as error:
            raise write_error(error, shard.temp, shard.bytes_to_come()) from None
        self._shard, self._shard_documents = shard, 0
        return shard

    def _temp(self) -> Path:
        """The file of the shard that comes next, while it is written: nobody else's, whatever happens."""
        return self.directory / WORK_DIR / f"{self._shards:06d}.{os.getpid()}.tmp"

    def _close_shard(self, shard: OpenShard, resume: Resume) -> None:
        """The shard has all its tokens."""
        info, resume = self._described(resume)
        self._shard = None
        self._finished.add(shard, info, resume)

    def _described(self, resume: Resume) -> tuple[ShardInfo, Resume]:
        """What is known of the shard that has all its tokens, and where the stream goes on. It is the present one no
        more."""
        info = ShardInfo(
            file=self.spec.shard_file(self._shards),
            split=self.spec.split(self._shards),
            index=self._shards,
            tokens=0,
            documents=self._shard_documents,
            first_document=self.documents - self._shard_documents,
            sha256="",
            bytes=0,
        )
        files = {i: self._files[i] for i in self._changed}
        self._changed.clear()
        self._shards += 1
        return info, dataclasses.replace(resume, documents=self.documents, files=files)

    def _place(self, chunk: Chunk, done: int) -> Resume:
        """Where the stream goes on after the first `done` tokens of a chunk's present piece."""
        skip = self._chunk_tokens + done
        return Resume(file=chunk.file, start=chunk.start, part=chunk.part, skip_tokens=skip, digest=chunk.digest)

    def _is_cut(self, shard: OpenShard) -> bool:
        """Whether the shard that is written is cut in two, if the stream ends here."""
        return self.spec.cuts_only_shard and self._shards == 0 and shard.tokens > 1

    def _cut_in_two(self, whole: OpenShard, past_the_end: Resume) -> None:
        """Write the stream that ends in its first shard as two: a small one for val, and the rest.

        A run that is killed between the two reads its source from the beginning, and passes over the first.
        """
        changed, val = set(self._changed), self.spec.val_tokens(whole.tokens)
        self.documents = 0
        self._runner.finish(whole)
        self._runner.wait(whole)
        for begin, end, files, resume in (
            (0, val, set(), Resume(skip_tokens=val, digest=self._first_digest)),
            (val, whole.tokens, changed, past_the_end),
        ):
            if self.uploads is not None:
                self.uploads.wait_for_room()
            writer = ShardWriter(self._temp().with_suffix(".cut.tmp"), whole.dtype, whole.capacity)
            self._shard_documents = 0
            for block in shard_blocks(whole.temp, begin, end):
                writer.write(block)
                self._shard_documents += int(np.count_nonzero(block == self.spec.tokenizer.eot_id))
            self.documents += self._shard_documents
            self._changed = files
            info, resume = self._described(resume)
            self._finished.record(writer.finish(self.directory / info.file), info, resume)
        remove(whole.temp)
        self._shard = None

    def _at_limit(self, *, ends: bool) -> bool:
        """Whether the stream is as long as it may be; `ends` says that its last document is whole."""
        spec = self.spec
        enough_tokens = spec.max_tokens is not None and self.tokens >= spec.max_tokens
        return enough_tokens or (ends and spec.max_docs is not None and self.documents >= spec.max_docs)


def _check_earlier(seen: SeenShards, shard: ShardInfo) -> None:
    try:
        seen.check(shard)
    except ShardError as error:
        raise OutputError(f"{error}, or start again with --overwrite") from None
