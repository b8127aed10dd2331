"""Bytes that are changed on the way never become text, and the user's data are not blamed for them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import FileServer, serving
from source_data import chunk_texts, lines

from shardkit import network
from shardkit.errors import SourceError
from shardkit.sources import text_files
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.ranges import RangeFile
from shardkit.sources.source import Fetched, InputFile
from shardkit.sources.texts import BadRow

TEXTS = [f"{number:04} {random.Random(number).randbytes(60).hex()}" for number in range(300)]


def write_parquet(path: Path, rows: int = 100) -> None:
    pq.write_table(
        pa.table({"text": TEXTS}),
        path,
        row_group_size=rows,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",  # of which any change would pass for text
        data_page_size=2000,
    )


def read(source: str, *, chunk_bytes: int = 15_000, skip_bad_rows: bool = False) -> list[str]:
    opened = open_source(source, skip_bad_rows=skip_bad_rows)
    chunks = iter_chunks(opened, 0, 0, 0, chunk_bytes=chunk_bytes)
    return [text for chunk in chunks for text in chunk_texts(chunk, opened.options)]


def test_a_flipped_byte_in_a_parquet_page_with_a_checksum_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    whole = path.read_bytes()
    assert read(str(path)) == TEXTS
    found = 0
    for at in random.Random(0).sample(range(4, len(whole) * 9 // 10), 60):
        path.write_bytes(bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]))
        try:
            assert read(str(path)) == TEXTS, f"the byte at {at} became other text"
        except (SourceError, BadRow):
            found += 1
    assert found > 50  # the others lie where nothing depends on them: a page header's statistics, say


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("skip_bad_rows", [False, True])
@pytest.mark.parametrize("nth", [0, 2])  # every second request is for the end of a line
def test_a_line_that_came_wrong_is_fetched_again_and_not_blamed_or_skipped(
    tmp_path: Path, server: FileServer, nth: int, skip_bad_rows: bool
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS))
    server.faults = [*[None] * nth, "flip"]
    assert read(f"{server.url}/a.jsonl", skip_bad_rows=skip_bad_rows) == TEXTS
    assert server.faults == []


def test_a_txt_file_that_came_wrong_is_fetched_again(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    server.faults = ["flip"]
    assert read(f"{server.url}/a.txt") == TEXTS[:1]


def test_a_character_that_came_wrong_at_the_end_of_a_piece_is_fetched_again(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = []

    def damage(file: InputFile, start: int, stop: int, fetched: Fetched | None = None) -> bytes:
        data = read_range(file, start, stop, fetched)
        if not damaged:
            damaged.append(start)
            data = data[:-1] + bytes([data[-1] ^ 0x80])  # a letter now, and what follows it is found in the next piece
        return data

    read_range = text_files.read_range
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", 100)
    monkeypatch.setattr(text_files, "read_range", damage)
    text = "x" * 99 + "漢" + "y" * 200
    (tmp_path / "a.txt").write_text(text)
    assert read(f"{server.url}/a.txt") == [text]
    assert damaged == [0]


def test_a_column_s_name_that_came_wrong_is_fetched_again(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = []

    def damage(self: RangeFile, start: int, size: int) -> bytes:
        data = fetch(self, start, size)
        if not damaged and b"\x04text" in data:
            damaged.append(start)
            data = data.replace(b"\x04text", b"\x04next", 1)
        return data

    fetch = RangeFile._fetch
    monkeypatch.setattr(RangeFile, "_fetch", damage)
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet", store_schema=False)
    assert read(f"{server.url}/a.parquet") == TEXTS
    assert damaged


@pytest.mark.parametrize("nth", range(4))  # the footer, and the column of three row groups
def test_a_parquet_page_that_came_wrong_is_fetched_again(tmp_path: Path, server: FileServer, nth: int) -> None:
    write_parquet(tmp_path / "a.parquet")
    server.faults = [*[None] * nth, "flip"]
    assert read(f"{server.url}/a.parquet") == TEXTS
    assert server.faults == []


@pytest.mark.parametrize("nth", range(2))
def test_a_giant_row_group_that_came_wrong_is_fetched_again(tmp_path: Path, server: FileServer, nth: int) -> None:
    write_parquet(tmp_path / "a.parquet", rows=300)
    server.faults = [*[None] * nth, "flip"]
    assert read(f"{server.url}/a.parquet", chunk_bytes=1500) == TEXTS
    assert server.faults == []


def test_what_is_wrong_at_the_server_is_still_named(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["good", "also"]) + b'{"text": "\xff"}\n')
    with pytest.raises(BadRow, match="not UTF-8"):
        read(f"{server.url}/a.jsonl")
    assert read(f"{server.url}/a.jsonl", skip_bad_rows=True) == ["good", "also"]
    write_parquet(tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[3000] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.parquet .*CRC"):
        read(f"{server.url}/a.parquet")
