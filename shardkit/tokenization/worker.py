"""What a worker does with one chunk, the same for every runner: read, transform, encode, audit.

A runner (`local_runner.py`, `ray_runner.py`) hands chunks to its workers and yields their tokens in the same order.
Nothing here knows of shards, folders or resuming.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import ShardkitError, SourceError
from shardkit.redaction import redact
from shardkit.sources.pieces import utf8_size
from shardkit.sources.source import MAX_ROW_BYTES, Chunk, ReadOptions
from shardkit.tokenization import cutting
from shardkit.tokenization.document_hashes import DocumentHashes
from shardkit.tokenization.engine_calls import Unencodable
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.user_functions import UserFunctions
from shardkit.tokenization.vocabulary import Vocabulary

if TYPE_CHECKING:
    from shardkit.sources.texts import Texts

# One document in this many is encoded by the reference too: 1.8 to 2.5 % of a worker's time (benchmarks/RESULTS.md).
AUDIT_STRIDE = 640
_AUDITED = 1 << 16  # characters, the most of one document that is audited, where it can be cut
_LONG = 1 << 18  # the same of one that cannot be cut; a longer one is audited only if the worker has audited none yet
_MUCH = 1 << 19  # characters of a piece that does not go without an audit


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every worker of a run needs to know. `transform` and `filter` are dill's bytes of the caller's functions, so
    that those defined in a notebook or a script travel with the globals that they use."""

    vocabulary: Vocabulary
    encoder: str
    read: ReadOptions
    audit_stride: int
    transform: bytes | None = None
    filter: bytes | None = None
    hashes_documents: bool = False
    chunk_bytes: int = 8 << 20  # of text in a chunk of a file that is given out whole
    tokens_folder: str = ""  # where tokens of such a file wait for their place, on the disk


@dataclass(slots=True)
class EncodedChunk:
    """A piece of a chunk's stream: `tokens`, shape `(n,)`, of the shard dtype, `[EOT] + document` for each document (of
    one that goes on from the piece before, the tokens alone), and `eot_positions`, int64, where the EOTs are in it.
    Outside the worker `tokens` is empty, `count` says how many there are, and `holder`, who has them.

    `rows` were read; document `i` came from row `document_rows[i]` (None: row `i`) of the piece. `skipped` rows gave
    none, as runs (first, last), shape `(runs, 2)`: blank ones, and `bad_rows` bad ones, of which `bad` says why of the
    first few; and `duplicates`, rows in order that were left out. `hashes`, if the job asks for them, are of the
    documents that end in it. `audited` documents were encoded
    by the reference too. `bad_row` or `error` says why the piece has no tokens. Reading began at `read_at`
    (`time.time()`), after the worker had `waited` for the chunk, in seconds; it fetched `fetched_bytes` over the
    network itself. After the `last` piece comes the next chunk.
    """

    chunk: Chunk
    tokens: NDArray[np.unsignedinteger] = field(default_factory=lambda: np.empty(0, np.uint16))
    count: int = 0
    holder: Any = None
    eot_positions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    read_at: float = 0.0
    waited: float = 0.0
    fetched_bytes: int = 0
    text_bytes: int = 0
    rows: int = 0
    document_rows: NDArray[np.int64] | None = None
    skipped: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    bad: list[tuple[int, str]] = field(default_factory=list)
    bad_rows: int = 0
    duplicates: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    hashes: list[bytes] = field(default_factory=list)
    audited: int = 0
    bad_row: tuple[int, str] | None = None
    error: Exception | None = None
    last: bool = True


class WorkerBug(RuntimeError):
    """An exception in a worker that is not the input's fault; carries the worker's traceback."""


class ChunkEncoder:
    """A worker's state: its tokenizer, loaded once. `encode` never raises: what went wrong travels in the result."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tokenizer = Tokenizer(job.vocabulary, encoder=job.encoder)
        self.tokenizer.warm_up()
        self.has_audited = False
        self.hashes = DocumentHashes() if job.hashes_documents else None
        self.functions = UserFunctions(job.transform, job.filter, job.read)

    def encode(self, chunk: Chunk) -> Iterator[EncodedChunk]:
        """Read and encode one chunk, a piece at a time. The last one is marked, also where something went wrong. A
        whole file is cut into chunks here, and gives the pieces of all of them: the last one of each is marked."""
        from shardkit.sources.chunks import chunks_within

        try:
            for one in chunks_within(chunk, self.job.read, self.job.chunk_bytes):
                yield from self._encode_chunk(one)
        except Exception as error:  # noqa: BLE001 (from cutting a whole file; it travels)
            yield _failed(chunk, error)

    def _encode_chunk(self, chunk: Chunk) -> Iterator[EncodedChunk]:
        from shardkit.sources.texts import BadRow, read_chunk

        light = Chunk(**{name: getattr(chunk, name) for name in _LIGHT})  # the payload does not travel back
        began, documents, rows, weight = time.time(), 0, 0, chunk.weight
        try:
            for texts, last in _with_last(self._pieces(read_chunk(chunk, self.job.read), chunk.where)):
                result = self._encode_piece(light, texts, documents, rows)
                documents += len(texts.texts)
                rows += texts.read_rows
                share = weight if last else min(weight, texts.text_bytes)
                weight -= share
                result.chunk = dataclasses.replace(light, weight=share)
                result.read_at, result.last = began, last
                if self.hashes is not None:
                    result.hashes = self.hashes.of(result.tokens, result.eot_positions, ends=not texts.unfinished)
                yield result
                if last:
                    return
            failed = EncodedChunk(chunk=light, read_at=began)  # no piece at all
        except BadRow as bad:
            failed = EncodedChunk(chunk=light, bad_row=(bad.row, bad.why))
        except Exception as error:  # noqa: BLE001 (it travels)
            failed = _failed(light, error)
        yield failed

    def _encode_piece(self, chunk: Chunk, read: Texts, earlier: int, first_row: int) -> EncodedChunk:
        """Encode one piece; `earlier` documents of the chunk were in the pieces before, and `first_row` rows."""
        result = EncodedChunk(chunk=chunk, bad=read.bad, bad_rows=read.bad_rows)
        texts, rows = self.functions.apply(read, chunk.where, first_row)
        texts, rows, passed_over = self._not_too_long(texts, rows)
        while True:
            try:
                ids, offsets = self.tokenizer.encode_batch(texts)
                break
            except Unencodable as failure:
                passed_over.append(self._pass_over(rows[failure.number], failure.why))
                texts = texts[: failure.number] + texts[failure.number + 1 :]
                rows = [*rows[: failure.number], *rows[failure.number + 1 :]]
        result.audited = self._audit(chunk, texts, rows, ids, offsets, earlier, first_row)
        result.tokens = self.tokenizer.with_eot(ids, offsets, continued=read.continued)
        result.count = len(result.tokens)
        result.eot_positions = self.tokenizer.eot_positions(result.tokens, offsets, continued=read.continued)
        result.text_bytes = read.text_bytes if texts is read.texts else utf8_size(texts)
        result.rows = read.read_rows
        result.bad, result.bad_rows = [*read.bad, *passed_over], read.bad_rows + len(passed_over)
        filled = read.rows
        if passed_over:
            without = {row for row, _ in passed_over}
            filled = [row for row in filled if row not in without]
        result.skipped = _gaps(filled if read.read_rows else [], read.read_rows)
        if len(rows) != read.read_rows:
            result.document_rows = np.asarray(rows if read.read_rows else [], np.int64)
        return result

    def _pieces(self, read: Iterator[Texts], where: str) -> Iterator[Texts]:
        """`read`, with a document that comes in parts cut where its tokens stay the same, or put together where the
        whole is needed."""
        whole = self.functions.are_given
        most = MAX_ROW_BYTES if whole else cutting.LONGEST_RUN
        parts, begun, size = list[str](), False, 0
        for piece in read:
            if not (piece.unfinished or piece.continued):
                yield piece
                continue
            parts.append(piece.texts[0])
            size += piece.text_bytes
            if whole and piece.unfinished and sum(map(len, parts)) <= most:
                continue  # joined once, not with each piece
            text = "".join(parts)
            at = len(text)
            if piece.unfinished:
                at = self._last_place(text) if not whole and self.tokenizer.cuts else 0
            text, parts = text[:at], [text[at:]]
            if len(parts[0]) > most:
                reason = "`transform` and `filter` take a document whole" if whole else "it has no place to be cut"
                raise SourceError(
                    f"{where}: a document of more than {most:,} characters ({reason} for {self.tokenizer.name}): split "
                    "it, or give --separator"
                )
            if text or not piece.unfinished:
                row = 0 if not begun else -1
                yield dataclasses.replace(
                    piece, texts=[text], rows=[row], read_rows=row + 1, text_bytes=size, continued=begun
                )
                begun, size = piece.unfinished, 0

    def _last_place(self, text: str) -> int:
        anywhere = self.tokenizer.engine == "bytes" or self.job.vocabulary.by_character
        return len(text) if anywhere else cutting.last_place(text, 0, len(text))

    def _not_too_long(
        self, texts: list[str], rows: list[int] | range
    ) -> tuple[list[str], list[int] | range, list[tuple[int, str]]]:
        """Without the documents that would take too much memory, and those."""
        if max(map(len, texts), default=0) <= cutting.LONGEST_RUN:
            return texts, rows, []
        whys = [self.tokenizer.why_too_long(text) for text in texts]
        passed_over = [self._pass_over(row, why) for row, why in zip(rows, whys, strict=True) if why is not None]
        good = [place for place, why in enumerate(whys) if why is None]
        return [texts[place] for place in good], [rows[place] for place in good], passed_over

    def _pass_over(self, row: int, why: str) -> tuple[int, str]:
        """A row that cannot be encoded and is skipped, as the caller wished, with the reason. Else raises `BadRow`."""
        from shardkit.sources.texts import BadRow

        if not self.job.read.skip_bad_rows or row < 0:  # the earlier parts of row -1 are in the stream
            raise BadRow(row, why)
        return row, why

    def _audit(
        self,
        chunk: Chunk,
        texts: list[str],
        rows: Any,
        ids: NDArray[np.unsignedinteger],
        offsets: NDArray[np.int64],
        earlier: int,
        first_row: int,
    ) -> int:
        """Encode a fixed sample of the piece's documents with the reference: one in `audit_stride`; where that gives
        none, the shortest one, if the piece has much text, or this worker has audited none yet."""
        if not self.tokenizer.is_fast or not texts:
            return 0
        stride = self.job.audit_stride
        first = zlib.crc32(f"{chunk.file}:{chunk.start}:{chunk.part}".encode()) % stride
        most = sys.maxsize if self.tokenizer.cuts else _LONG
        picked = [i for i in range((first - earlier) % stride, len(texts), stride) if len(texts[i]) <= most]
        if not any(texts[i] for i in picked) and (not self.has_audited or sum(map(len, texts)) >= _MUCH):
            shortest = min(range(len(texts)), key=lambda i: (not texts[i], len(texts[i])))
            picked = [shortest] if len(texts[shortest]) <= most or not self.has_audited else []
        for i in picked:
            self.has_audited = self.has_audited or bool(texts[i])
            where = f"{chunk.where}, row {first_row + rows[i]} of them"
            text, got = texts[i], ids[offsets[i] : offsets[i + 1]]
            if len(text) > _AUDITED and self.tokenizer.cuts and (place := cutting.last_place(text, 0, _AUDITED)):
                text = text[:place]  # how it begins stands for the whole
                got = got[: len(self.tokenizer.encode_batch([text])[0])]
            self.tokenizer.audit(text, got, where)
        return len(picked)


def _failed(chunk: Chunk, error: Exception) -> EncodedChunk:
    """What is told of a chunk at which something went wrong; of a bug, with the traceback."""
    if not isinstance(error, ShardkitError):
        error = WorkerBug(redact(f"in the worker, at {chunk.where}:\n{traceback.format_exc()}"))
    return EncodedChunk(chunk=chunk, error=error)


def _with_last(pieces: Iterator[Texts]) -> Iterator[tuple[Texts, bool]]:
    """`pieces`, each with whether it is the last. What goes wrong with one is raised after those before it."""
    before = next(pieces, None)
    while before is not None:
        piece, failure = None, None
        try:
            piece = next(pieces, None)
        except Exception as error:  # noqa: BLE001 (raised below)
            failure = error
        yield before, piece is None and failure is None
        if failure is not None:
            raise failure
        before = piece


def _gaps(rows: list[int] | range, read_rows: int) -> NDArray[np.int64]:
    """The runs of rows, as (first, last), that are not among `rows`, which ascend."""
    ends = np.concatenate([[-1], np.asarray(rows, np.int64), [read_rows]])
    gaps = np.flatnonzero(np.diff(ends) > 1)
    return np.stack([ends[gaps] + 1, ends[gaps + 1] - 1], axis=1)


_LIGHT = ("file", "start", "stop", "part", "weight", "input", "digest")
