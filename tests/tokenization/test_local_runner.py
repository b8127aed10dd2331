"""The runner of this machine: who writes a shard, and what is still made of it when something goes wrong."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from reference import folder_bytes, shard_bytes
from source_data import job_of

from shardkit import open_shard, tokenize
from shardkit.errors import DiskFull, WorkerError
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.tokenization import worker_pool
from shardkit.tokenization.local_runner import LocalRunner
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.runner import OpenShard
from shardkit.tokenization.spawning import Worker
from shardkit.tokenization.worker import EncodedChunk
from shardkit.tokenization.worker_messages import Answer, Written, receive_answers

pytestmark = pytest.mark.usefixtures("fresh_workers")
SIZE = 40_000  # tokens of a piece, more than is written as an edge
TEXTS = ["x" * (SIZE - 1)] * 2  # of which each worker gets one


def begun(runner: LocalRunner) -> Generator[EncodedChunk]:
    source = open_source(TEXTS)
    return runner.run(job_of("bytes", source.options), iter_chunks(source, 0, 0, 0, chunk_bytes=SIZE // 2))


def a_shard(temp: Path) -> OpenShard:
    shard = OpenShard(temp, np.dtype("<u2"), 2 * SIZE)
    shard.temp.write_bytes(b"")
    return shard


def give(runner: LocalRunner, piece: EncodedChunk, shard: OpenShard) -> None:
    runner.write(piece, 0, piece.count, shard)


def written(runner: LocalRunner, shard: OpenShard) -> None:
    while shard.waiting:
        runner._collect(None)


def made(runner: LocalRunner, shard: OpenShard) -> int:
    """The tokens in the file of a shard that has all of them."""
    runner.finish(shard)
    runner.wait(shard)
    return len(open_shard(shard.temp))


def stop(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGSTOP)
    while psutil.Process(worker.process.pid).status() != psutil.STATUS_STOPPED:
        pass


def kill(worker: Worker) -> None:
    worker.process.kill()
    worker.process.wait()


def test_a_shard_that_a_worker_completed_when_it_died_is_completed_by_another(tmp_path: Path) -> None:
    with LocalRunner(2) as runner:
        shard = a_shard(tmp_path / "a")
        for piece in begun(runner):
            give(runner, piece, shard)
        written(runner, shard)
        for worker in runner._workers:
            stop(worker)
        runner.finish(shard)
        (asked,) = [worker for worker in runner._workers if worker.finishing]
        (other,) = [worker for worker in runner._workers if worker is not asked]
        kill(asked)
        other.process.send_signal(signal.SIGCONT)
        assert runner.wait(shard).tokens == len(open_shard(shard.temp)) == 2 * SIZE


def test_a_worker_that_dies_takes_the_shards_with_it_whose_tokens_it_had_and_no_others(tmp_path: Path) -> None:
    with LocalRunner(2) as runner:
        earlier, later = a_shard(tmp_path / "a"), a_shard(tmp_path / "b")
        pieces = begun(runner)
        give(runner, next(pieces), earlier)
        piece = next(pieces)
        worker: Worker = piece.holder[0]
        stop(worker)
        give(runner, piece, later)
        kill(worker)
        with pytest.raises(WorkerError, match="died by signal SIGKILL while it wrote tokens"):
            written(runner, later)
        assert made(runner, earlier) == SIZE
        for _ in range(2):
            with pytest.raises(WorkerError, match="died by signal SIGKILL while it wrote tokens"):
                made(runner, later)


def test_a_shard_that_cannot_be_written_ends_the_run_and_not_the_one_before_it(tmp_path: Path) -> None:
    with LocalRunner(2) as runner:
        earlier, later = a_shard(tmp_path / "a"), a_shard(Path("/dev/full"))
        pieces = begun(runner)
        give(runner, next(pieces), earlier)
        give(runner, next(pieces), later)
        with pytest.raises(DiskFull, match="no room to write /dev/full"):
            written(runner, later)
        assert made(runner, earlier) == SIZE
        with pytest.raises(DiskFull, match="no room to write /dev/full"):
            made(runner, later)


def test_after_the_end_of_the_stream_a_worker_of_whom_nothing_is_wanted_may_die(tmp_path: Path) -> None:
    with LocalRunner(2) as runner:
        shard = a_shard(tmp_path / "a")
        pieces = begun(runner)
        piece = next(pieces)
        (other,) = [worker for worker in runner._workers if worker is not piece.holder[0]]
        give(runner, piece, shard)
        pieces.close()
        kill(other)
        assert made(runner, shard) == SIZE


@pytest.mark.parametrize("shards", [1, 3])
def test_a_ctrl_c_keeps_each_shard_that_has_all_its_tokens(tmp_path: Path, shards: int) -> None:
    def interrupt(progress: TokenizeProgress) -> None:
        if progress.shards >= shards:  # of which the last has not been completed yet
            raise KeyboardInterrupt

    texts = ["text " * 100] * 40
    with pytest.raises(KeyboardInterrupt):
        tokenize(texts, tmp_path, tokenizer="bytes", shard_tokens=1000, chunk_bytes=500, progress=interrupt, prefix="p")
    whole = shard_bytes(texts, 1000, "p", tokenizer="bytes")
    made = folder_bytes(tmp_path)
    assert len(made) == shards
    assert made.items() <= whole.items()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_ctrl_c_within_a_message_ends_the_run_and_nothing_is_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[Answer]] = []

    def of_written(answers: list[Answer]) -> bool:
        return any(isinstance(answer, Written) for answer in answers)

    def receive(pipe: Any) -> list[Answer]:
        told.append(receive_answers(pipe))
        if of_written(told[-1]):
            raise KeyboardInterrupt
        return told[-1]

    monkeypatch.setattr(worker_pool, "receive_answers", receive)
    with pytest.raises(KeyboardInterrupt):
        tokenize(["text " * 100] * 40, tmp_path, tokenizer="bytes", shard_tokens=1000, chunk_bytes=500, progress=False)
    assert not list(tmp_path.rglob("*.tmp"))
    assert [of_written(answers) for answers in told] == [False] * (len(told) - 1) + [True]
