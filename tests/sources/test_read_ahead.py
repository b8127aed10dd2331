"""Bytes are fetched ahead of need: in order, over several connections, into bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving

from shardkit import network
from shardkit.errors import SourceError
from shardkit.sources import read_ahead
from shardkit.sources.ranges import AheadFile
from shardkit.sources.read_ahead import Connections, ReadAhead
from shardkit.sources.source import InputFile

KB = 1 << 10


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    with serving(tmp_path) as running:
        yield running


def served(server: FileServer, size: int) -> tuple[InputFile, bytes]:
    data = os.urandom(size)
    (server.folder / "a.bin").write_bytes(data)
    return InputFile(path="a.bin", url=f"{server.url}/a.bin", bytes=size, format="txt"), data


def test_spans_give_their_bytes_in_whatever_order_they_are_waited_for(server: FileServer) -> None:
    file, data = served(server, 100 * KB)
    with ReadAhead() as ahead:
        spans = [ahead.ask(file, start, start + 10 * KB) for start in range(0, 100 * KB, 10 * KB)]
        for span in (spans[7], spans[0], spans[9]):
            assert ahead.wait(span, span.stop) == data[span.start : span.stop]
        assert ahead.wait(spans[3], spans[3].start + 5) == data[30 * KB : 30 * KB + 5]


def test_no_more_is_fetched_than_memory_allows_until_something_was_read(server: FileServer) -> None:
    file, data = served(server, 100 * KB)
    with ReadAhead(most_bytes=30 * KB) as ahead:
        spans = [ahead.ask(file, start, start + 10 * KB) for start in range(0, 100 * KB, 10 * KB)]
        for span in spans[:3]:
            ahead.wait(span, span.stop)
        assert len(server.asked) == 3
        for number, span in enumerate(spans):
            assert ahead.wait(span, span.stop) == data[span.start : span.stop]
            assert len(server.asked) <= number + 3
            ahead.release(span)


def test_what_somebody_waits_for_is_fetched_even_if_there_is_no_room(server: FileServer) -> None:
    file, data = served(server, 40 * KB)
    with ReadAhead(most_bytes=10 * KB) as ahead:
        first, second = ahead.ask(file, 0, 20 * KB), ahead.ask(file, 20 * KB, 40 * KB)
        assert ahead.wait(first, 20 * KB) == data[: 20 * KB]
        assert ahead.wait(second, 40 * KB) == data[20 * KB :]


def test_all_that_somebody_waits_for_is_fetched_at_once_even_if_there_is_no_room(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = served(server, 40 * KB)
    together = threading.Barrier(4, timeout=60)

    def read_into(
        file: InputFile, start: int, into: memoryview, *, arrived: Callable[[int], None], **_: object
    ) -> None:
        together.wait()
        arrived(len(into))

    monkeypatch.setattr(read_ahead, "read_into", read_into)
    with ReadAhead(most_bytes=10 * KB) as ahead:
        spans = [ahead.ask(file, start, start + 10 * KB) for start in range(0, 40 * KB, 10 * KB)]
        ahead.hurry(spans)
        assert [len(ahead.wait(span, span.stop)) for span in spans] == [10 * KB] * 4


def test_an_error_is_raised_for_the_span_that_has_it_and_for_no_other(server: FileServer) -> None:
    file, data = served(server, 20 * KB)
    gone = InputFile(path="b.bin", url=f"{server.url}/b.bin", bytes=10, format="txt")
    with ReadAhead() as ahead:
        first, bad, last = ahead.ask(file, 0, KB), ahead.ask(gone, 0, 10), ahead.ask(file, KB, 2 * KB)
        assert ahead.wait(last, 2 * KB) == data[KB : 2 * KB]
        with pytest.raises(SourceError, match=r"cannot read b\.bin.*no such file"):
            ahead.wait(bad, 10)
        assert ahead.wait(first, KB) == data[:KB]


def test_at_its_end_no_thread_is_left(server: FileServer) -> None:
    file, _ = served(server, 50 * KB)
    with ReadAhead() as ahead:
        for start in range(0, 50 * KB, KB):
            ahead.ask(file, start, start + KB)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("shardkit-source")]
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_a_file_that_is_read_ahead_gives_its_bytes_and_goes_back_where_it_is_told_to(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "FIRST_SPAN_BYTES", 7 * KB)
    file, data = served(server, 100 * KB)
    with ReadAhead(most_bytes=20 * KB) as ahead, AheadFile(file, ahead, stop=60 * KB) as remote:
        assert remote.read(15 * KB) == data[: 15 * KB]
        assert remote.read(1) == data[15 * KB : 15 * KB + 1]
        remote.seek(10)
        assert remote.read(70 * KB) == data[10 : 70 * KB + 10]  # more than is read ahead
        assert remote.read() == data[70 * KB + 10 :]
        assert remote.read() == b""


def test_there_are_more_connections_as_long_as_they_bring_more_to_one_who_waits() -> None:
    connections = Connections(0.0)
    assert connections.count == read_ahead.FIRST_CONNECTIONS
    connections.look(100, 0.1, waited_for=True)
    assert connections.count == read_ahead.FIRST_CONNECTIONS  # too soon to tell
    connections.look(1000, 1.0, waited_for=False)
    assert connections.count == read_ahead.FIRST_CONNECTIONS  # nobody waits
    counts = []
    for second in range(2, 8):
        connections.look(1000 * 2**second, second, waited_for=True)
        counts.append(connections.count)
    assert counts == [16, 32, 64, 64, 64, 64]
    assert counts[-1] == read_ahead.MOST_CONNECTIONS


def test_connections_that_bring_no_more_are_given_up_and_tried_again_later() -> None:
    connections = Connections(0.0)
    connections.look(1000, 1.0, waited_for=True)
    connections.look(2050, 2.0, waited_for=True)
    assert connections.count == read_ahead.FIRST_CONNECTIONS
    connections.look(9000, 3.0, waited_for=True)
    assert connections.count == read_ahead.FIRST_CONNECTIONS
    connections.look(10_000, 40.0, waited_for=True)
    assert connections.count == 2 * read_ahead.FIRST_CONNECTIONS
