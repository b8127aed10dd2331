"""What can be measured of a source and of this machine in some seconds: text from all over the source, a short real run
of `tokenize`, and a file written to the disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.errors import SourceError
from shardkit.files import LongFile, free_bytes, write_error
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import Source
from shardkit.sources.texts import BadRow, Texts, read_chunk
from shardkit.tokenization.pipeline import tokenize
from shardkit.tokenization.progress_bar import tree_rss
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.tokenizer import Tokenizer

_CHUNKS, _CHUNK_BYTES = 32, 1 << 20
_ENCODED_BYTES = 256 << 10  # of a chunk's text
_SAMPLE_SECONDS, _RUN_SECONDS, _RUN_TOKENS = 15.0, 10.0, 40_000_000
_WRITTEN_BYTES = 64 << 20
_LEAST_SEEN = 5  # results of chunks, to draw a line through
# Student's t for 95 %, by the degrees of freedom from 1
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
Tell = Callable[[str, int, int], object]


@dataclass(slots=True)
class SourceSample:
    """Chunks from all over a source, a number each: bytes of the file, of text, documents, and tokens (EOTs too)."""

    weights: list[float] = field(default_factory=list)
    text_bytes: list[float] = field(default_factory=list)
    documents: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    encoded_bytes: int = 0
    encoded_tokens: int = 0
    read_seconds: float = 0.0
    encode_seconds: float = 0.0
    reached_end: bool = True

    def total(self, of: list[float], size: int) -> float:
        """What a source of `size` bytes has of it, at the sample's rate."""
        return sum(of) / max(1e-9, sum(self.weights)) * size

    def error(self, of: list[float], size: int) -> float:
        """Half of the 95 % interval of `total`, by how much chunks differ from each other: a ratio's standard error."""
        count, total = len(of), self.total(of, size)
        covered = min(1.0, self.encoded_bytes / max(1.0, self.total(self.text_bytes, size)))
        if covered > 0.999:
            return 0.0
        if count < 2:
            return total
        weights, found = np.array(self.weights), np.array(of)
        rest = found - weights * (found.sum() / weights.sum())
        deviation = sqrt(float((rest**2).sum()) / (count - 1) / count) / weights.mean() * size
        return float(deviation) * _STUDENT[min(count - 1, len(_STUDENT)) - 1] * sqrt(1 - covered)


def sample_source(source: Source, tokenizer: Tokenizer, tell: Tell) -> SourceSample:
    """Read chunks at equal distances over `source`, and encode a part of each. Raises `SourceError`."""
    sample, began = SourceSample(), time.monotonic()
    size = sum(file.bytes for file in source.files)
    every = max(1, size // (_CHUNKS * _CHUNK_BYTES))
    with ReadAhead() as ahead:
        for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=_CHUNK_BYTES, ahead=ahead, every=every):
            start = time.perf_counter()
            try:
                pieces = list(read_chunk(chunk, source.options))
            except BadRow as bad:
                raise SourceError(
                    f"{chunk.where}, row {bad.row} of them: {bad.why}; mend it, or pass over such rows with "
                    "--skip-bad-rows"
                ) from None
            sample.read_seconds += time.perf_counter() - start
            _count(sample, chunk.weight, pieces, tokenizer)
            tell("sampling", min(size, int(sum(sample.weights)) * every), size)
            if time.monotonic() - began > _SAMPLE_SECONDS:
                sample.reached_end = False
                break
    return sample


def _count(sample: SourceSample, weight: int, pieces: list[Texts], tokenizer: Tokenizer) -> None:
    texts = [text for piece in pieces for text in piece.texts]
    text_bytes = sum(piece.text_bytes for piece in pieces)
    documents = len(texts) - sum(piece.continued for piece in pieces)
    chosen = texts[:: max(1, text_bytes // _ENCODED_BYTES)]
    start = time.perf_counter()
    tokens = int(tokenizer.encode_batch(chosen)[1][-1]) if chosen else 0
    sample.encode_seconds += time.perf_counter() - start
    encoded = sum(len(text.encode(errors="replace")) for text in chosen)
    sample.encoded_bytes += encoded
    sample.encoded_tokens += tokens
    sample.weights.append(float(weight))
    sample.text_bytes.append(float(text_bytes))
    sample.documents.append(float(documents))
    sample.tokens.append(tokens * text_bytes / max(1, encoded) + documents)


@dataclass(slots=True)
class MeasuredRun:
    """A real run of `tokenize` here, cut short or not (`finished`): tokens a second once it goes, what it took to get
    going beside that, the most memory, and of a source over the network the bytes a second and the share of time that
    workers waited."""

    seconds: float = 0.0
    start_seconds: float = 0.0
    tokens: int = 0
    documents: int = 0  # of one that is finished
    tokens_per_second: float = 0.0
    memory_bytes: int = 0
    workers: int = 1
    network_rate: float = 0.0
    waited_share: float | None = None
    finished: bool = False


class _Enough(Exception):
    """The run has been measured."""


def measure_run(source: Any, out: Path, tell: Tell, **options: Any) -> MeasuredRun:
    """Tokenize the beginning of `source` into a folder beside `out` that is removed again: for ten seconds, or 40M
    tokens. Raises what `tokenize` does."""
    run, began = MeasuredRun(), time.monotonic()
    seen: list[tuple[int, float]] = []

    def watch(now: TokenizeProgress) -> None:
        run.memory_bytes = max(run.memory_bytes, tree_rss(now.process_ids))
        run.workers = max(run.workers, len(now.process_ids))
        run.tokens, run.network_rate = now.session_tokens, now.network_bytes / max(now.network_seconds, 1e-9)
        run.waited_share = now.waited_share
        seen.append((now.session_tokens, time.monotonic() - began))
        tell("tokenizing", now.source_bytes_done, now.source_bytes)
        if now.session_tokens >= _RUN_TOKENS or now.session_seconds >= _RUN_SECONDS:
            raise _Enough

    with tempfile.TemporaryDirectory(prefix=".shardkit-plan-", dir=out) as folder:
        try:
            made = tokenize(source, Path(folder) / "out", progress=watch, **options)
            run.tokens, run.documents, run.finished = made.tokens, made.documents, True
        except _Enough:
            pass
        run.seconds = time.monotonic() - began
    run.tokens_per_second, run.start_seconds = steady_rate(seen)
    return run


def steady_rate(seen: list[tuple[int, float]]) -> tuple[float, float]:
    """Tokens a second once a run goes, and the seconds that it took beside that: of the line through (tokens, seconds)
    that was `seen`, the first quarter left out, in which workers begin, and results of all of them come at once."""
    tokens, seconds = np.array(seen, np.float64).reshape(-1, 2).T
    late = tokens >= tokens[-1] / 4 if len(tokens) else np.empty(0, np.bool_)
    if np.count_nonzero(late) >= _LEAST_SEEN and np.ptp(tokens[late]) > 0:
        slope, start = np.polyfit(tokens[late], seconds[late], 1)
        if slope > 0:
            return float(1 / slope), max(0.0, float(start))
    return (float(tokens[-1] / max(seconds[-1], 1e-9)), 0.0) if len(tokens) else (0.0, 0.0)


def measure_disk(out: Path) -> float:
    """Bytes a second of a file written to the disk of `out`, and synced; it is removed. Raises `OutputError`."""
    handle, name = tempfile.mkstemp(prefix=".shardkit-plan-", dir=out)
    os.close(handle)
    path, size = Path(name), min(_WRITTEN_BYTES, free_bytes(out) // 2)
    block = os.urandom(1 << 20)
    try:
        file = LongFile(path)
        began = time.perf_counter()
        for _ in range(max(1, size // len(block))):
            file.write(block)
        written = file.sync()
        seconds = time.perf_counter() - began
        file.close()
    except OSError as error:
        raise write_error(error, path, size) from None
    finally:
        path.unlink(missing_ok=True)
    return written / max(seconds, 1e-9)
