"""The chunks of remote files carry the bytes that a worker needs, and give the texts of the local files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import FileServer, serving
from hypothesis import given
from hypothesis import strategies as st
from source_data import TEXTS, chunk_texts, lines, packed, texts_of

from shardkit import network
from shardkit.errors import SourceError
from shardkit.sources import chunk_bytes, footers, read_ahead
from shardkit.sources.chunk_bytes import merged
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.parquet_files import close_parquet_files
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import Source

LONG = ["x" * 300, *TEXTS, "y" * 20_000, "z" * 70_000, *TEXTS * 20, "w" * 3000]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    with serving(tmp_path) as running:
        yield running


def write(folder: Path) -> None:
    """Two files of each format that is read by ranges."""
    for number in (0, 1):
        texts = [f"{number} {text}" for text in LONG]
        noise = [os.urandom(1000).hex() for _ in texts]
        pq.write_table(pa.table({"noise": noise, "text": texts}), folder / f"{number}.parquet", row_group_size=20)
        (folder / f"{number}.jsonl").write_bytes(lines(texts))
        (folder / f"{number}.txt").write_text("\n".join(texts), newline="")


def remote_texts(server: FileServer, source: Source, chunk_bytes: int) -> list[str]:
    """What the chunks of `source` hold, decoded where there is no network any more."""
    with ReadAhead() as ahead:
        chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=chunk_bytes, ahead=ahead))
    close_parquet_files()
    asked = len(server.asked)
    texts = [text for chunk in chunks for text in chunk_texts(chunk, source.options)]
    assert len(server.asked) == asked
    return texts


@pytest.mark.parametrize("size", [5, 300, 1 << 14, 1 << 20])
@pytest.mark.parametrize("name", ["parquet", "jsonl", "txt", "jsonl.gz", "jsonl.zst"])
def test_chunks_bring_all_the_bytes_that_a_worker_needs(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    write(tmp_path)
    if name.startswith("jsonl."):
        (tmp_path / f"0.{name}").write_bytes(packed(name, (tmp_path / "0.jsonl").read_bytes()))
    monkeypatch.setattr(read_ahead, "FIRST_SPAN_BYTES", 10 * size)
    monkeypatch.setattr(read_ahead, "SPAN_BYTES", 30 * size)
    monkeypatch.setattr(chunk_bytes, "_GAP_BYTES", size)
    monkeypatch.setattr(chunk_bytes, "_STEP_BYTES", 100)
    monkeypatch.setattr(footers, "_END_BYTES", 300)
    source = open_source(f"{server.url}/0.{name}")
    assert remote_texts(server, source, 100 * size) == texts_of(tmp_path / f"0.{name}", chunk_bytes=100 * size)


@pytest.mark.parametrize("number", [0, 3, 11])
def test_reading_ahead_begins_where_a_run_goes_on(tmp_path: Path, server: FileServer, number: int) -> None:
    write(tmp_path)
    for name in ("0.parquet", "0.jsonl"):
        source = open_source(f"{server.url}/{name}")
        all_chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=4000))
        chunk = all_chunks[number]
        with ReadAhead() as ahead:
            again = list(iter_chunks(source, chunk.file, chunk.start, chunk.part, chunk_bytes=4000, ahead=ahead))
        assert [c.where for c in again] == [c.where for c in all_chunks[number:]]
        found = [text for chunk in again for text in chunk_texts(chunk, source.options)]
        assert found == [text for chunk in all_chunks[number:] for text in chunk_texts(chunk, source.options)]


def test_few_requests_fetch_many_row_groups(tmp_path: Path, server: FileServer) -> None:
    texts = [os.urandom(2000).hex() for _ in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    source = open_source(f"{server.url}/a.parquet")
    assert len(list(iter_chunks(source, 0, 0, 0, chunk_bytes=100_000))) > 40
    server.asked.clear()
    assert remote_texts(server, source, 100_000) == texts
    assert len(server.asked) <= 6  # of 1 MB at first, for 4 MB, and the footer


def test_of_a_column_among_large_ones_no_more_is_fetched_than_it_and_small_gaps(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footers, "_END_BYTES", 300)
    monkeypatch.setattr(chunk_bytes, "_GAP_BYTES", 1000)
    noise = [os.urandom(2000).hex() for _ in LONG]
    pq.write_table(pa.table({"noise": noise, "text": LONG}), tmp_path / "a.parquet", row_group_size=20)
    source = open_source(f"{server.url}/a.parquet")
    server.asked.clear()
    assert remote_texts(server, source, 1 << 20) == LONG
    ranges = [tuple(map(int, asked[6:].split("-"))) for asked in server.asked if asked]
    assert sum(stop - start + 1 for start, stop in ranges) < (tmp_path / "a.parquet").stat().st_size / 3


@pytest.mark.parametrize("name", ["0.parquet", "0.jsonl", "0.txt"])
@pytest.mark.parametrize("faults", [[503, None, 503], ["drop", "drop"], ["short", None, "drop", 500]], ids=str)
def test_what_is_fetched_ahead_is_whole_through_failures(
    tmp_path: Path, server: FileServer, name: str, faults: list[int | str | None]
) -> None:
    write(tmp_path)
    source = open_source(f"{server.url}/{name}")
    server.faults = list(faults)
    assert remote_texts(server, source, 5000) == texts_of(tmp_path / name, chunk_bytes=5000)
    assert len(server.faults) < len(faults)


def test_a_giant_row_group_after_more_than_memory_holds_is_reached(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "FIRST_AHEAD_BYTES", 100_000)
    monkeypatch.setattr(read_ahead, "FIRST_SPAN_BYTES", 20_000)
    monkeypatch.setattr(footers, "_END_BYTES", 300)
    texts = [os.urandom(500).hex() for _ in range(1000)]
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, use_dictionary=False) as writer:
        for first in range(0, 500, 10):
            writer.write_table(pa.table({"text": texts[first : first + 10]}))
        writer.write_table(pa.table({"text": texts[500:]}), row_group_size=500)
    assert remote_texts(server, open_source(f"{server.url}/a.parquet"), 20_000) == texts


def test_small_files_are_read_a_few_ahead_and_not_all_before_the_first(tmp_path: Path, server: FileServer) -> None:
    for number in range(60):
        pq.write_table(pa.table({"text": [f"{number} {os.urandom(40_000).hex()}"]}), tmp_path / f"{number}.parquet")
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    local = open_source(names)
    files = tuple(replace(file, url=f"{server.url}/{file.path}", version="") for file in local.files)
    source = replace(local, files=files)
    with pytest.MonkeyPatch.context() as patch, ReadAhead() as ahead:
        patch.setattr(chunk_bytes, "AHEAD_BYTES", 500_000)
        chunks = iter_chunks(source, 0, 0, 0, chunk_bytes=8 << 20, ahead=ahead)
        first = next(chunks)
        assert chunk_texts(first, source.options)[0].startswith(files[0].path.removesuffix(".parquet"))
        assert len(server.asked) < 30
        assert len(list(chunks)) == 59


def test_what_is_wrong_with_a_file_comes_after_the_chunks_before_it(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "0.jsonl").write_bytes(lines(LONG))
    (tmp_path / "1.parquet").write_bytes(b"PAR1 no footer PAR1" * 10)
    paths = [tmp_path / "0.jsonl", tmp_path / "1.parquet"]
    source = open_source(paths)
    source = replace(
        source, files=tuple(replace(file, url=f"{server.url}/{file.path}", version="") for file in source.files)
    )
    found: list[str] = []

    def read_all(ahead: ReadAhead) -> None:
        for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=4000, ahead=ahead):
            found.extend(chunk_texts(chunk, source.options))

    with ReadAhead() as ahead, pytest.raises(SourceError, match=r"cannot read 1\.parquet"):
        read_all(ahead)
    assert found == LONG


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)).map(lambda pair: (min(pair), max(pair)))))
def test_merged_ranges_hold_every_range_and_lie_apart(ranges: list[tuple[int, int]]) -> None:
    found = merged(ranges)
    assert all(any(first <= start and stop <= last for first, last in found) for start, stop in ranges)
    assert all(after[0] - before[1] > chunk_bytes._GAP_BYTES for before, after in pairwise(found))
    assert {start for start, _ in found} <= {start for start, _ in ranges}
    assert {stop for _, stop in found} <= {stop for _, stop in ranges}
