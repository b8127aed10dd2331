"""Copies of Hub files that are read from front to back: whole and right before a byte of them is used."""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving
from source_data import chunk_texts

from shardkit import network
from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import DiskFull
from shardkit.sources import whole_files
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import InputFile, ReadOptions, Source
from shardkit.sources.whole_files import WholeCopies


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with serving(tmp_path) as running:
        yield running


def source_of(server: FileServer, count: int) -> Source:
    """`count` files of 50 texts each, with their hashes, as the Hub lists them."""
    files = []
    for number in range(count):
        lines = "".join(f'{{"text": "{number} {row} {os.urandom(200).hex()}"}}\n' for row in range(50))
        data = gzip.compress(lines.encode())
        (server.folder / f"{number}.jsonl.gz").write_bytes(data)
        files.append(
            InputFile(
                path=f"{number}.jsonl.gz",
                url=f"{server.url}/{number}.jsonl.gz",
                bytes=len(data),
                format="jsonl.gz",
                oid=hashlib.sha256(data).hexdigest(),
            )
        )
    return Source(info=SourceInfo(id="texts"), files=tuple(files), options=ReadOptions())


def test_each_file_is_fetched_once_and_nothing_stays_open_or_on_the_disk(tmp_path: Path, server: FileServer) -> None:
    source = source_of(server, 3)
    server.faults = [None, "flip"]
    chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=4000))
    texts = [text for chunk in chunks for text in chunk_texts(chunk, source.options)]
    assert [text.rsplit(" ", 1)[0] for text in texts] == [f"{n} {row}" for n in range(3) for row in range(50)]
    gets = [asked for asked in server.asked if asked]
    assert len(gets) == 4  # one came wrong
    assert os.listdir(tmp_path / "temporary") == []
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(fd)]


@pytest.mark.parametrize(("room", "files"), [(1 << 30, 8), (1, 1)])
def test_small_files_are_fetched_while_one_is_read_and_of_long_ones_the_next(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, room: int, files: int
) -> None:
    monkeypatch.setattr(whole_files, "AHEAD_BYTES", room)
    source = source_of(server, 12)
    with ReadAhead() as ahead, WholeCopies(source.files, ahead) as copies:
        for number in (0, 1, 2):
            copy = copies.open(number)
            assert copy is not None
            with copy:
                assert hashlib.sha256(copy.read()).hexdigest() == source.files[number].oid
            assert sorted(copies._coming) == list(range(number + 1, number + 1 + files))
        for coming in copies._coming.values():
            coming.result().close()


def test_no_chunk_of_a_file_comes_before_all_of_it_is_right(server: FileServer) -> None:
    source = source_of(server, 1)
    server.faults = ["flip"]
    next(iter_chunks(source, 0, 0, 0, chunk_bytes=100))
    assert len([asked for asked in server.asked if asked]) == 2


@pytest.mark.parametrize("format", ["jsonl", "txt"])
def test_a_file_of_one_chunk_is_read_whole_too_and_a_changed_letter_is_found(server: FileServer, format: str) -> None:
    text = "b" * 1000
    data = text.encode() if format == "txt" else f'{{"text": "{text}"}}\n'.encode()
    (server.folder / "a").write_bytes(data)
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as the Hub states it of a small file
    file = InputFile(path="a", url=f"{server.url}/a", bytes=len(data), format=format, oid=oid)
    source = Source(info=SourceInfo(id="texts"), files=(file,), options=ReadOptions())
    server.faults = ["bit"]
    (chunk,) = iter_chunks(source, 0, 0, 0, chunk_bytes=4000)
    assert chunk_texts(chunk, source.options) == [text]
    assert server.faults == []


def test_a_disk_too_full_for_the_copy_is_one_clear_line(tmp_path: Path, server: FileServer) -> None:
    source = source_of(server, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(DiskFull, match=rf"no room to write {tmp_path}/temporary"):
            next(iter_chunks(source, 0, 0, 0, chunk_bytes=100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
