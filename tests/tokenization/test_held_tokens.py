"""What a worker holds: its tokens go where they are told to, and no more are held than may be."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardkit.dataset.shard_parts import finish_parts, part_of_bytes
from shardkit.tokenization import held_tokens, tokens_on_disk
from shardkit.tokenization.held_tokens import HeldTokens
from shardkit.tokenization.tokens_on_disk import PieceOnDisk, TokensOnDisk
from shardkit.tokenization.worker_messages import Drop, Finish, Finished, Put, Written


@pytest.fixture
def room_for() -> Any:
    """A context with a bound of the size of files."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def bounded(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return bounded


def steps(held: HeldTokens, *numbers: int) -> None:
    """Let the threads of `held` do so many things each."""
    for step, number in zip(held.threads(), numbers, strict=True):
        for _ in range(number):
            step()


def test_pieces_go_to_several_shards_and_are_forgotten_when_they_are_written_or_dropped(tmp_path: Path) -> None:
    said: queue.SimpleQueue[Written | Finished] = queue.SimpleQueue()
    held = HeldTokens(said.put)
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    for path in (first, second):
        Path(path).write_bytes(b"")
    tokens = np.arange(20_000, dtype=np.uint16)
    one, other = held.hold(tokens), held.hold(tokens[:10])
    held.do(Put(one, 0, 15_000, first, 128, False))
    held.do(Put(one, 15_000, 20_000, second, 128, True))
    held.do(Put(other, 0, 5, second, 10_128, False))
    held.do(Drop(other))
    steps(held, 4, 0)
    parts: dict[str, list[object]] = {first: [part_of_bytes(0, b"h" * 128)], second: [part_of_bytes(0, b"h" * 128)]}
    for _ in range(3):
        written = said.get()
        assert isinstance(written, Written)
        parts[written.path].append(written.part)
    for path, expected in ((first, tokens[:15_000]), (second, np.concatenate([tokens[15_000:], tokens[:5]]))):
        held.do(Finish(path, parts[path]))  # type: ignore[arg-type]
        steps(held, 0, 1)
        finished = said.get()
        assert isinstance(finished, Finished)
        assert finished.error is None
        assert Path(path).read_bytes() == b"h" * 128 + expected.tobytes()
    assert held._pieces == {}
    assert held._bytes == 0


def test_a_file_that_is_gone_or_was_changed_is_said_and_ends_nothing(tmp_path: Path) -> None:
    said: queue.SimpleQueue[Written | Finished] = queue.SimpleQueue()
    held = HeldTokens(said.put)
    number = held.hold(np.zeros(50_000, np.uint16))
    held.do(Put(number, 0, 50_000, str(tmp_path / "gone"), 128, True))
    held.do(Finish(str(tmp_path / "gone"), [part_of_bytes(0, b"h")]))
    steps(held, 1, 1)
    errors = [said.get().error, said.get().error]
    assert [type(error) for error in errors] == [FileNotFoundError] * 2
    assert held._pieces == {}


def told_of_a_wait(held: HeldTokens) -> threading.Event:
    """Set when somebody waits for room."""
    waits = threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waits.set()
            return super().wait(timeout)

    held._changed = Watched()
    return waits


def test_no_more_is_encoded_while_as_much_as_may_be_waits_for_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_tokens, "_HELD_BYTES", 100)
    held = HeldTokens(lambda said: None)
    waits = told_of_a_wait(held)
    large = held.hold(np.zeros(1_000, np.uint16))  # alone it is held, whatever its size
    second = threading.Thread(target=held.hold, args=(np.zeros(10, np.uint16),))
    second.start()
    assert waits.wait(timeout=60)
    assert list(held._pieces) == [large]
    held.do(Drop(large))
    steps(held, 1, 0)
    second.join()
    assert [piece.nbytes for piece in held._pieces.values()] == [20]


@pytest.mark.parametrize("full_at", [1, 1 << 20])  # a file for each piece, and one for all
def test_tokens_for_which_nobody_waits_go_to_the_disk_and_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    monkeypatch.setattr(held_tokens, "_HELD_BYTES", 100_000)
    monkeypatch.setattr(tokens_on_disk, "_MOST_BYTES", full_at)
    said: queue.SimpleQueue[Written | Finished] = queue.SimpleQueue()
    held = HeldTokens(said.put)
    held.folder = str(tmp_path)
    (tmp_path / "shard").write_bytes(b"")
    tokens = np.arange(5 * 40_000, dtype=np.uint16).reshape(5, -1)
    numbers = [held.hold(piece, waits=False) for piece in tokens]
    assert [isinstance(piece, PieceOnDisk) for piece in held._pieces.values()] == [False, *[True] * 4]
    assert held._bytes == tokens[0].nbytes
    for place, number in enumerate(numbers):
        for begin, end in ((0, 30_000), (30_000, 40_000)):
            held.do(Put(number, begin, end, str(tmp_path / "shard"), 80_000 * place + 2 * begin, end == 40_000))
    steps(held, 10, 0)
    held.do(Finish(str(tmp_path / "shard"), [said.get().part for _ in range(10)]))  # type: ignore[union-attr, misc]
    steps(held, 0, 1)
    assert (tmp_path / "shard").read_bytes() == tokens.tobytes()
    assert (held._pieces, held._bytes) == ({}, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


def test_what_comes_back_from_the_disk_changed_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_tokens, "_HELD_BYTES", 0)
    said: queue.SimpleQueue[Written | Finished] = queue.SimpleQueue()
    held = HeldTokens(said.put)
    held.folder = str(tmp_path)
    (tmp_path / "shard").write_bytes(b"")
    held.hold(np.zeros(1, np.uint16))
    number = held.hold(np.zeros(50_000, np.uint16), waits=False)
    piece = held._pieces[number]
    assert isinstance(piece, PieceOnDisk)
    piece.file.add(np.zeros(1, np.uint16))
    piece.file._file.seek(7)
    piece.file._file.write(b"\1")
    held.do(Put(number, 0, 50_000, str(tmp_path / "shard"), 128, True))
    steps(held, 1, 0)
    error = said.get().error
    assert error is not None
    assert "came back changed" in str(error)


def test_where_the_disk_takes_no_tokens_they_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_tokens, "_HELD_BYTES", 100)
    held = HeldTokens(lambda said: None)
    held.folder = str(tmp_path / "none")
    waits = told_of_a_wait(held)
    large = held.hold(np.zeros(1_000, np.uint16))
    second = threading.Thread(target=held.hold, args=(np.zeros(10, np.uint16),), kwargs={"waits": False})
    second.start()
    assert waits.wait(timeout=60)
    held.do(Drop(large))
    steps(held, 1, 0)
    second.join(60)
    assert [piece.nbytes for piece in held._pieces.values()] == [20]


def test_what_went_to_the_disk_before_it_was_full_comes_back(tmp_path: Path, room_for: Any) -> None:
    file = TokensOnDisk(str(tmp_path))
    tokens = np.arange(1_000, dtype=np.uint16)
    with room_for(10_000):
        pieces = [file.add(tokens) for _ in range(5)]
        with pytest.raises(OSError, match="too large"):
            file.add(tokens)
        assert all(np.array_equal(piece.read(), tokens) for piece in pieces)
    pieces.append(file.add(tokens + 1))
    assert np.array_equal(pieces[-1].read(), tokens + 1)


def test_edges_of_a_file_are_written_by_whoever_completes_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    parts = [part_of_bytes(place, bytes([place])) for place in range(5)]
    assert finish_parts(str(tmp_path / "file"), parts[::-1])[0] == 5
    assert (tmp_path / "file").read_bytes() == bytes(range(5))
