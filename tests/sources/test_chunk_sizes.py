"""Chunks are large while there is much to read, and small at the end: what they hold stays the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dill
import pytest
from source_data import job_of
from texts import documents, write_parquet

from shardkit.sources import texts as texts_module
from shardkit.sources.chunk_sizes import ChunkSizes
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.source import Chunk, Source
from shardkit.sources.texts import read_chunk
from shardkit.tokenization.worker import ChunkEncoder

LEAST = 8_000


def chunks_of(source: Source, workers: int | None, start: int = 0, unread: int = 0) -> list[Chunk]:
    sizes = ChunkSizes(least=LEAST, workers=workers, unread=unread)
    return list(iter_chunks(source, 0, start, 0, chunk_bytes=LEAST, sizes=sizes))


def read(source: Source, chunks: list[Chunk]) -> list[str]:
    return [text for chunk in chunks for piece in read_chunk(chunk, source.options) for text in piece.texts]


def written(folder: Path, kind: str) -> Source:
    texts = [text or "" for text in documents(300)]
    if kind == "parquet":
        write_parquet(folder / "a.parquet", texts, rows=1)
    else:
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    return open_source(folder)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_chunks_of_any_sizes_hold_the_same_texts_also_from_any_of_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(texts_module, "PIECE_BYTES", 10_000)  # so that a large chunk is read in pieces
    source = written(tmp_path, kind)
    small, large = chunks_of(source, None), chunks_of(source, 1)
    whole = read(source, small)
    assert read(source, large) == whole
    assert len(large) < 0.8 * len(small)
    assert large[-1].stop - large[-1].start <= max(chunk.stop - chunk.start for chunk in small)
    assert sum(chunk.weight for chunk in large) == pytest.approx(source.files[0].bytes, rel=0.01)
    for place in (1, len(large) // 2, len(large) - 1):
        before, after = large[:place], chunks_of(source, None, start=large[place].start)
        assert read(source, before) + read(source, after) == whole


def test_the_more_workers_there_are_and_the_less_is_read_the_smaller_chunks_are(tmp_path: Path) -> None:
    source = written(tmp_path, "jsonl")
    size = source.files[0].bytes
    one, few, many = (chunks_of(source, workers) for workers in (1, 4, 1000))
    assert len(one) < len(few) < len(many) == len(chunks_of(source, None))
    assert max(chunk.weight for chunk in one) == 2 * LEAST
    assert len(chunks_of(source, 1, unread=size)) == len(many)


def test_a_row_is_named_by_its_place_in_the_chunk_whichever_piece_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "PIECE_BYTES", 10_000)
    source = written(tmp_path, "jsonl")
    chunk, texts = chunks_of(source, 1)[0], read(source, chunks_of(source, 1)[:1])
    last = texts[-1]
    assert texts.index(last) == len(texts) - 1

    def refuse(text: str) -> str:
        if text == last:
            raise ValueError
        return text

    def number(text: str) -> Any:
        return 5 if text == last else text

    for transform, says in ((refuse, "transform or filter failed at"), (number, "transform returned a int at")):
        job = job_of("bytes", source.options, transform=dill.dumps(transform, recurse=True))
        *pieces, failed = ChunkEncoder(job).encode(chunk)
        assert pieces
        assert str(failed.error).startswith(f"{says} a.jsonl, bytes 0-16000, row {len(texts) - 1} of them")
