"""No more workers than there is work for, whatever `workers` allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from texts import write_parquet

from shardkit import tokenize
from shardkit.tokenization import pipeline
from shardkit.tokenization.run_size import useful_workers

TEXTS = [f"document {number} " * 40 for number in range(300)]  # 210 kB


def workers_of(source: Any, out: Path, **options: Any) -> int:
    """How many worker processes there were when the last chunk was in the stream."""
    seen: list[int] = []
    settings = {"tokenizer": "bytes", "shard_tokens": 100_000, "prefix": "p", "workers": 64, "val_shards": 0}
    tokenize(source, out, progress=lambda now: seen.append(len(now.process_ids)), **{**settings, **options})
    return seen[-1]


@pytest.mark.parametrize("kind", ["texts", "parquet", "jsonl", "txt"])
def test_three_hundred_documents_are_one_chunk_and_start_one_worker_of_sixty_four(tmp_path: Path, kind: str) -> None:
    source: Any = TEXTS
    if kind == "parquet":
        source = write_parquet(tmp_path / "a.parquet", TEXTS, rows=10)
    elif kind == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
    elif kind == "txt":  # a chunk each, and all together too little for a second worker
        source = tmp_path / "texts"
        source.mkdir()
        for number, text in enumerate(TEXTS):
            (source / f"{number}.txt").write_text(text)
    assert workers_of(source, tmp_path / "out") == 1


def test_an_iterable_of_unknown_size_starts_a_worker_for_each_chunk_and_no_more(tmp_path: Path) -> None:
    assert 1 <= workers_of((text for text in TEXTS), tmp_path / "out", chunk_bytes=110_000) <= 2


def test_a_limit_of_documents_or_tokens_limits_the_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_parquet(tmp_path / "a.parquet", TEXTS * 100, rows=1000)
    asked: list[int] = []

    def note(workers: int, size: int, chunk_bytes: int) -> tuple[int, int]:
        asked.append(size)
        return 1, min(2, workers)

    monkeypatch.setattr(pipeline, "useful_workers", note)
    workers_of(source, tmp_path / "docs", max_docs=1)
    workers_of(source, tmp_path / "tokens", max_tokens=100)
    assert asked == [4_400, 400]


@pytest.mark.parametrize(
    ("workers", "size", "expected"),
    [
        (64, 0, (1, 64)),  # unknown
        (64, 1, (1, 1)),
        (64, 1 << 20, (1, 2)),
        (64, 16 << 20, (2, 17)),
        (64, 30 << 30, (64, 64)),
        (1, 30 << 30, (1, 1)),
        (4, 9 << 20, (2, 4)),
    ],
)
def test_workers_start_at_once_for_what_is_surely_there_and_later_for_what_may_be(
    workers: int, size: int, expected: tuple[int, int]
) -> None:
    assert useful_workers(workers, size, 8 << 20) == expected
