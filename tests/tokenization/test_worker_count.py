"""No more workers than there is work for, whatever `workers` allows."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from texts import write_parquet

from shardkit import tokenize
from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import WorkerError
from shardkit.sources.source import Chunk, InputFile, ReadOptions, Source
from shardkit.tokenization import worker_pool
from shardkit.tokenization.local_runner import LocalRunner
from shardkit.tokenization.run_size import useful_workers
from shardkit.tokenization.spawning import Worker, start_workers
from shardkit.tokenization.vocabulary import load_vocabulary
from shardkit.tokenization.worker import Job

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


def test_a_limit_of_documents_or_tokens_limits_the_workers_too(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "a.parquet", TEXTS * 100, rows=1000)
    for limits in ({"max_docs": 100}, {"max_tokens": 100}):
        assert workers_of(source, tmp_path / next(iter(limits)), chunk_bytes=4 << 20, **limits) == 1


@pytest.mark.parametrize(
    ("text", "documents", "options"),
    [
        ("long " * 20_000, 40, {"max_docs": 30, "chunk_bytes": 100_000}),
        ("short", 40_000, {"max_docs": 1_000, "chunk_bytes": 20_000, "filter": lambda text: text.startswith("39")}),
    ],
    ids=["long documents", "a filter"],
)
def test_where_a_limit_takes_more_text_than_expected_there_are_as_many_workers_as_allowed(
    tmp_path: Path, text: str, documents: int, options: dict[str, Any]
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"text": "{number} {text}"}}\n' for number in range(documents)))
    assert workers_of(source, tmp_path / "out", workers=6, **options) == 6


def listed(size: int) -> Source:
    file = InputFile(path="a", url="a", bytes=size, format="jsonl")
    return Source(info=SourceInfo(id="a"), files=(file,), options=ReadOptions())


@pytest.mark.parametrize(
    ("workers", "size", "expected"),
    [
        (64, 0, (1, 64, 64)),  # unknown
        (64, 1, (1, 1, 1)),
        (64, 1 << 20, (1, 2, 2)),
        (64, 16 << 20, (2, 17, 17)),
        (64, 30 << 30, (64, 64, 64)),
        (1, 30 << 30, (1, 1, 1)),
        (4, 9 << 20, (2, 4, 4)),
    ],
)
def test_workers_start_at_once_for_what_is_surely_there_and_later_for_what_may_be(
    workers: int, size: int, expected: tuple[int, int, int]
) -> None:
    assert useful_workers(workers, listed(size), 8 << 20, max_docs=None, max_tokens=None) == expected


def test_a_limit_says_how_many_workers_are_expected_and_not_how_many_there_may_be() -> None:
    assert useful_workers(64, listed(30 << 30), 8 << 20, max_docs=1000, max_tokens=None) == (1, 5, 64)
    assert useful_workers(64, listed(30 << 30), 8 << 20, max_docs=None, max_tokens=4 << 20) == (2, 17, 64)
    assert useful_workers(64, listed(1), 8 << 20, max_docs=1000, max_tokens=None) == (1, 1, 1)


@pytest.mark.usefixtures("fresh_workers")
def test_workers_that_do_not_read_yet_stop_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the second in which they import what they need: here until the last chunk was asked for."""
    starting: list[Worker] = []

    def start_stopped(*arguments: Any, **options: Any) -> list[Worker]:
        workers = start_workers(*arguments, **options)
        for worker in workers:
            worker.process.send_signal(signal.SIGSTOP)
        starting.extend(workers)
        return workers

    def go_on() -> None:
        for worker in starting:
            worker.process.send_signal(signal.SIGCONT)

    asked = threading.Event()

    def chunks() -> Iterator[Chunk]:
        file = InputFile(path="texts", url="", bytes=0, format="texts")
        for number in range(3):
            yield Chunk(file=0, start=number, stop=number + 1, weight=0, input=file, payload=("a b " * (1 << 18),))
        asked.set()
        go_on()

    monkeypatch.setattr(worker_pool, "start_workers", start_stopped)
    vocabulary = load_vocabulary("gpt2", None)
    job = Job(vocabulary=vocabulary, encoder="tiktoken", read=ReadOptions(), audit_stride=640)
    results: list[tuple[int, int, int]] = []

    def run() -> None:
        with suppress(WorkerError):
            results.extend((result.chunk.start, result.rows, len(starting)) for result in runner.run(job, chunks()))

    with LocalRunner(3, at_first=1) as runner:
        thread = threading.Thread(target=run)
        thread.start()
        assert asked.wait(60)
        thread.join()
    assert results == [(0, 1, 3), (1, 1, 3), (2, 1, 3)]
