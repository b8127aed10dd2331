"""What a worker holds: its tokens go where they are told to, and no more are held than may be."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import numpy as np
import pytest

from shardkit.dataset.shard_parts import finish_parts, part_of_bytes
from shardkit.tokenization import held_tokens
from shardkit.tokenization.held_tokens import HeldTokens
from shardkit.tokenization.worker_messages import Drop, Finish, Finished, Put, Written


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


def test_no_more_is_encoded_while_as_much_as_may_be_waits_for_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_tokens, "_HELD_BYTES", 100)
    held, waits = HeldTokens(lambda said: None), threading.Event()

    class Watched(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waits.set()
            return super().wait(timeout)

    held._changed = Watched()
    large = held.hold(np.zeros(1_000, np.uint16))  # alone it is held, whatever its size
    second = threading.Thread(target=held.hold, args=(np.zeros(10, np.uint16),))
    second.start()
    assert waits.wait(timeout=60)
    assert list(held._pieces) == [large]
    held.do(Drop(large))
    steps(held, 1, 0)
    second.join()
    assert [len(tokens) for tokens in held._pieces.values()] == [10]


def test_edges_of_a_file_are_written_by_whoever_completes_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    parts = [part_of_bytes(place, bytes([place])) for place in range(5)]
    assert finish_parts(str(tmp_path / "file"), parts[::-1])[0] == 5
    assert (tmp_path / "file").read_bytes() == bytes(range(5))
