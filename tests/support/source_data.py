"""Texts, the files of every format that hold them, and what a run and its resume read of those."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import zstandard

from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.source import Chunk, ReadOptions, Source
from shardkit.sources.texts import read_chunk
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.worker import Job

TEXTS = ["first", "", "naïve \u2028 日本", "x<|endoftext|>y", "a\nb\r\n", " ", "\0", "last " * 50]


def texts_of(source: Any, *, chunk_bytes: int = 8 << 20, **options: Any) -> list[str]:
    """Every document, by way of chunks that are resumed in the middle: what a run and its resume would read."""
    opened: Source = open_source(source if not isinstance(source, Path) else str(source), **options)
    chunks = list(iter_chunks(opened, 0, 0, 0, chunk_bytes=chunk_bytes))
    if chunks:
        middle = chunks[len(chunks) // 2]
        again = list(iter_chunks(opened, middle.file, middle.start, middle.part, chunk_bytes=chunk_bytes))
        assert [c.where for c in again] == [c.where for c in chunks[len(chunks) // 2 :]]
        assert [c.payload for c in again] == [c.payload for c in chunks[len(chunks) // 2 :]]
    return [text for chunk in chunks for text in chunk_texts(chunk, opened.options)]


def chunk_texts(chunk: Chunk, options: ReadOptions) -> list[str]:
    """The documents of a chunk, those that come in parts put together."""
    texts: list[str] = []
    for piece in read_chunk(chunk, options):
        if piece.continued:
            texts[-1] += piece.texts[0]
        else:
            texts += piece.texts
    return texts


def lines(texts: list[str], end: str = "\n") -> bytes:
    return "".join(json.dumps({"id": 1, "text": t}, ensure_ascii=False) + end for t in texts).encode()


def packed(name: str, data: bytes) -> bytes:
    """The bytes of a file of that name; compressed ones in two members or frames."""
    half = len(data) // 2
    if name.endswith(".gz"):
        return gzip.compress(data[:half]) + gzip.compress(data[half:])
    if name.endswith(".zst"):
        return zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    return data


def job_of(tokenizer: str, options: ReadOptions, **more: Any) -> Job:
    """What a worker is told, with an audit of every document."""
    return Job(
        vocabulary=Tokenizer(tokenizer).vocabulary,
        encoder="auto",
        read=options,
        audit_stride=1,
        **more,
    )
