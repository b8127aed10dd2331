"""A source in parts: they follow each other, hold all of it and weigh the same, whoever works them out."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import serving
from hypothesis import given
from hypothesis import strategies as st
from source_data import chunk_texts, lines, packed

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import UsageError
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.parts import cut_part, parse_part
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import InputFile, ReadOptions, Source

TEXTS = [f"document {number} " * (number % 9) for number in range(120)]


@given(
    files=st.lists(st.tuples(st.sampled_from(["jsonl", "txt", "jsonl.gz"]), st.integers(0, 5_000)), max_size=12),
    count=st.integers(1, 40),
    chunk_bytes=st.integers(1, 1_000),
)
def test_the_parts_of_any_files_follow_each_other_hold_all_bytes_once_and_weigh_the_same(
    files: list[tuple[str, int]], count: int, chunk_bytes: int
) -> None:
    inputs = [InputFile(path=f"{i}", url=f"{i}", bytes=size, format=kind) for i, (kind, size) in enumerate(files)]
    source = Source(info=SourceInfo(id="x"), files=tuple(inputs), options=ReadOptions())
    cuts = [cut_part(source, index, count, chunk_bytes) for index in range(count)]
    parts = [part for part, _ in cuts]
    assert all(part.begin <= part.end for part in parts)
    assert all(before.end == after.begin for before, after in pairwise(parts))
    assert (parts[0].begin, parts[-1].end) == ((0, 0, 0), (len(files), 0, 0))
    read: dict[str, list[tuple[int, int]]] = {}
    for _, part in cuts:
        for file in part.files:
            stretch = file.stretch
            first, stop = (0, None) if stretch is None else (stretch.start, stretch.stop)
            read.setdefault(file.path, []).append((first, file.bytes if stop is None else stop))
            assert stretch is None or stretch.bytes == read[file.path][-1][1] - first > 0
            assert first % chunk_bytes == 0 or first == 0
    assert list(read) == [file.path for file in inputs]
    for file in inputs:
        ranges = read[file.path]
        assert (ranges[0][0], ranges[-1][1]) == (0, file.bytes)
        assert all(before[1] == after[0] for before, after in pairwise(ranges))
        assert len(ranges) == 1 or file.format == "jsonl"
    total = sum(file.bytes for file in inputs)
    whole = max((file.bytes for file in inputs if file.format != "jsonl"), default=0)
    off = max(total / count / 16, min(chunk_bytes, 5_000) / 2, whole / 2) + 1  # of each border
    assert all(abs(sum(file.weight for file in part.files) - total / count) <= 2 * off for _, part in cuts)


def write(folder: Path) -> Source:
    """Files that can be cut and one that cannot."""
    pq.write_table(pa.table({"text": TEXTS}), folder / "a.parquet", row_group_size=7)
    (folder / "b.jsonl").write_bytes(lines(TEXTS))
    (folder / "c.jsonl.gz").write_bytes(packed("c.jsonl.gz", lines(TEXTS[:9])))
    pq.write_table(pa.table({"text": TEXTS[:3]}), folder / "d.parquet")
    return open_source(str(folder / "*"))


@pytest.mark.parametrize("chunk_bytes", [64, 1_000, 1 << 20])
@pytest.mark.parametrize("count", [1, 2, 5, 60])
def test_the_chunks_of_all_parts_are_the_chunks_of_the_whole(tmp_path: Path, count: int, chunk_bytes: int) -> None:
    source = write(tmp_path)
    chunks = iter_chunks(source, 0, 0, 0, chunk_bytes=chunk_bytes)
    whole = [(chunk.input.path, chunk.start, chunk.stop, chunk.part) for chunk in chunks]
    found, texts, weights = [], list[str](), list[int]()
    for index in range(count):
        _, part = cut_part(source, index, count, chunk_bytes)
        weights.append(sum(file.weight for file in part.files))
        for chunk in iter_chunks(part, 0, 0, 0, chunk_bytes=chunk_bytes):
            found.append((chunk.input.path, chunk.start, chunk.stop, chunk.part))
            texts += chunk_texts(chunk, source.options)
    assert found == whole
    assert texts == [*TEXTS, *TEXTS, *TEXTS[:9], *TEXTS[:3]]
    assert sum(weights) == sum(file.bytes for file in source.files)


def test_the_parts_of_remote_files_are_read_ahead_as_the_whole_is(tmp_path: Path) -> None:
    write(tmp_path)
    texts = list[str]()
    with serving(tmp_path) as server:
        for name in ("a.parquet", "b.jsonl"):
            source = open_source(f"{server.url}/{name}")
            for index in range(3):
                _, part = cut_part(source, index, 3, 500)
                assert part.files[0].stretch is not None
                with ReadAhead() as ahead:
                    for chunk in iter_chunks(part, 0, 0, 0, chunk_bytes=500, ahead=ahead):
                        texts += chunk_texts(chunk, source.options)
    assert texts == [*TEXTS, *TEXTS]


def test_a_resume_within_a_stretch_goes_on_there(tmp_path: Path) -> None:
    _, part = cut_part(write(tmp_path), 1, 3, 300)
    chunks = list(iter_chunks(part, 0, 0, 0, chunk_bytes=300))
    middle = chunks[len(chunks) // 2]
    again = iter_chunks(part, middle.file, middle.start, middle.part, chunk_bytes=300)
    assert [chunk.where for chunk in again] == [chunk.where for chunk in chunks[len(chunks) // 2 :]]


def test_a_file_is_not_cut_where_little_is_gained() -> None:
    files = tuple(InputFile(path=f"{i}", url="", bytes=100 + i % 2, format="jsonl") for i in range(8))
    source = Source(info=SourceInfo(id="x"), files=files, options=ReadOptions())
    parts = [cut_part(source, index, 4, 1)[1] for index in range(4)]
    assert [[json.loads(file.path) for file in part.files] for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert all(file.stretch is None for part in parts for file in part.files)


@pytest.mark.parametrize(("text", "part"), [("0/1", (0, 1)), ("63/64", (63, 64)), (" 3 / 4\n", (3, 4))])
def test_a_part_is_written_as_its_index_and_their_count(text: str, part: tuple[int, int]) -> None:
    assert parse_part(text) == part


@pytest.mark.parametrize("text", ["", "1", "1/", "4/4", "-1/4", "1/0", "1/1048577", "1/2/3", "٣/4"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_part(text)
