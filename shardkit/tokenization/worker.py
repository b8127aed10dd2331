"""What a worker does with one chunk, the same for every runner: read, transform, encode, audit.

A runner (`local_runner.py`, `ray_runner.py`) hands chunks to its workers and yields their tokens in the same order.
Nothing here knows of shards, folders or resuming.
"""

from __future__ import annotations

import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dill
import numpy as np
from numpy.typing import NDArray

from shardkit.errors import ShardkitError, SourceError, TokenizerError
from shardkit.sources.source import Chunk, ReadOptions
from shardkit.tokenization.tokenizer import Tokenizer

Transform = Callable[[str], str | None]
Filter = Callable[[str], bool]
# One document in this many is encoded by the reference too: 1.8 to 2.5 % of a worker's time (benchmarks/RESULTS.md).
AUDIT_STRIDE = 640
_LONG = 1 << 18  # characters; longer documents are audited only where a chunk has no shorter one


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every worker of a run needs to know. `transform` and `filter` are dill's bytes of the caller's functions, so
    that those defined in a notebook or a script travel with the globals that they use."""

    tokenizer: str
    vocabulary: str  # its hash: a file of that name may be another where the worker is, or by then
    encoder: str
    fast_json: str | None
    read: ReadOptions
    audit_stride: int
    transform: bytes | None = None
    filter: bytes | None = None


@dataclass(slots=True)
class EncodedChunk:
    """A chunk's stream: `tokens`, shape `(n,)`, of the shard dtype, `[EOT] + document` for each document, and
    `eot_positions`, int64, where the EOTs are in it, in order.

    `rows` were read; document `i` came from row `document_rows[i]` (None: row `i`). `skipped` rows gave none: blank
    ones and the `bad` ones, of which it says why. `audited` documents were encoded by the reference too. `bad_row` or
    `error` says why the chunk has no tokens. Reading began at `read_at` (`time.time()`).
    """

    chunk: Chunk
    tokens: NDArray[np.unsignedinteger] = field(default_factory=lambda: np.empty(0, np.uint16))
    eot_positions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    read_at: float = 0.0
    text_bytes: int = 0
    rows: int = 0
    document_rows: list[int] | None = None
    skipped: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    audited: int = 0
    bad_row: tuple[int, str] | None = None
    error: Exception | None = None


def until_error(chunks: Iterator[Chunk], failed: list[Exception]) -> Iterator[Chunk]:
    """`chunks` up to the first error, which goes into `failed`: the chunks before it come first in the stream, and with
    them what may be wrong there, or the end of the run."""
    try:
        yield from chunks
    except Exception as error:  # noqa: BLE001 (the runner raises it, in its turn)
        failed.append(error)


class WorkerBug(RuntimeError):
    """An exception in a worker that is not the input's fault; carries the worker's traceback."""


class ChunkEncoder:
    """A worker's state: its tokenizer, loaded once. `encode` never raises: what went wrong travels in the result."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tokenizer = Tokenizer(job.tokenizer, encoder=job.encoder, fast_json=job.fast_json)
        self.tokenizer.warm_up()
        self.transform: Transform | None = dill.loads(job.transform) if job.transform else None
        self.filter: Filter | None = dill.loads(job.filter) if job.filter else None

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Read and encode one chunk."""
        from shardkit.sources.chunks import BadRow, read_chunk

        light = Chunk(**{name: getattr(chunk, name) for name in _LIGHT})  # the payload does not travel back
        result = EncodedChunk(chunk=light, read_at=time.time())
        try:
            self._check_vocabulary()
            read = read_chunk(chunk, self.job.read)
            texts, rows = self._apply(read.texts, read.rows, chunk.where)
            ids, offsets = self.tokenizer.encode_batch(texts)
            result.audited = self._audit(chunk, texts, rows, ids, offsets)
            result.tokens = self.tokenizer.with_eot(ids, offsets)
            result.eot_positions = self.tokenizer.eot_positions(result.tokens, offsets)
            result.text_bytes = read.text_bytes
            result.rows, result.bad = read.read_rows, read.bad
            if len(read.texts) < read.read_rows:
                result.skipped = sorted(set(range(read.read_rows)).difference(read.rows))
            result.document_rows = None if len(rows) == read.read_rows else list(rows)
        except BadRow as bad:
            result.bad_row = (bad.row, bad.why)
        except ShardkitError as error:
            result.error = error
        except Exception:  # noqa: BLE001 (a bug: its traceback goes to the main process, which raises it)
            result.error = WorkerBug(f"in the worker, at {chunk.where}:\n{traceback.format_exc()}")
        return result

    def _check_vocabulary(self) -> None:
        if self.tokenizer.info.ranks_sha256 != self.job.vocabulary:
            raise TokenizerError(
                f"{self.job.tokenizer} has changed since the run began, or is another file where this worker runs: "
                "leave it alone until the run has ended, and run the same command again"
            )

    def _apply(self, texts: list[str], rows: list[int] | range, where: str) -> tuple[list[str], list[int] | range]:
        """Run the user's `transform` and `filter`; a transform that returns None drops the document."""
        transform, keep = self.transform, self.filter
        if transform is None and keep is None:
            return texts, rows
        kept: list[str] = []
        kept_rows: list[int] = []
        for text, row in zip(texts, rows, strict=True):
            try:
                changed = text if transform is None else transform(text)
                if changed is None or (keep is not None and not keep(changed)):
                    continue
            except Exception as error:
                raise SourceError(
                    f"transform or filter failed at {where}, row {row} of them:\n{traceback.format_exc()}"
                ) from error
            if not isinstance(changed, str):
                raise SourceError(
                    f"transform returned a {type(changed).__name__} at {where}, row {row} of them: expected str or None"
                )
            kept.append(changed)
            kept_rows.append(row)
        return kept, kept_rows

    def _audit(
        self, chunk: Chunk, texts: list[str], rows: Any, ids: NDArray[np.unsignedinteger], offsets: NDArray[np.int64]
    ) -> int:
        """Encode a fixed sample of the chunk's documents with the reference. The same sample at any worker count."""
        if not self.tokenizer.is_fast or not texts:
            return 0
        stride = self.job.audit_stride
        first = zlib.crc32(f"{chunk.file}:{chunk.start}:{chunk.part}".encode()) % stride
        picked = [i for i in range(first, len(texts), stride) if len(texts[i]) <= _LONG]
        if not picked:
            picked = [min(range(len(texts)), key=lambda i: (not texts[i], len(texts[i])))]
        for i in picked:
            where = f"{chunk.where}, row {rows[i]} of them"
            self.tokenizer.audit(texts[i], ids[offsets[i] : offsets[i + 1]], where)
        return len(picked)


_LIGHT = ("file", "start", "stop", "part", "weight", "input")
