"""A chunk becomes texts in pieces: what is held grows neither with blank or bad lines, nor with what a dictionary makes
of a few bytes, nor with the length of a text file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_data import chunk_texts, lines, texts_of

from shardkit.errors import SourceError
from shardkit.sources import pieces as row_pieces
from shardkit.sources import source as sources
from shardkit.sources import text_files, texts
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.json_lines import filled_lines
from shardkit.sources.open import open_source
from shardkit.sources.texts import BadRow, Texts, read_chunk


def pieces(path: Path, chunk_bytes: int = 8 << 20, **options: Any) -> list[Texts]:
    source = open_source(str(path), **options)
    chunks = iter_chunks(source, 0, 0, 0, chunk_bytes=chunk_bytes)
    return [piece for chunk in chunks for piece in read_chunk(chunk, source.options)]


def peak_bytes(path: Path, **options: Any) -> int:
    tracemalloc.start()
    try:
        pieces(path, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("blank", [b"\n", b" \n", b"\r\n", b" \t\x0b\x0c\r\n"])
def test_blank_lines_take_no_more_memory_than_their_bytes(tmp_path: Path, blank: bytes) -> None:
    data = lines(["one"]) + blank * 1_000_000 + lines(["two"])
    (tmp_path / "a.jsonl").write_bytes(data)
    assert peak_bytes(tmp_path / "a.jsonl") < 4 * len(data) + 100_000
    (piece,) = pieces(tmp_path / "a.jsonl")
    assert (piece.texts, piece.rows, piece.read_rows, piece.bad_rows) == (["one", "two"], [0, 1_000_001], 1_000_002, 0)


@pytest.mark.parametrize("bad", [b"x", b'{"text": 1}', b"\xff"])
def test_bad_lines_that_are_skipped_are_counted_and_only_the_first_are_named(tmp_path: Path, bad: bytes) -> None:
    data = lines(["one"]) + (bad + b"\n") * 20_000 + lines(["two"])
    (tmp_path / "a.jsonl").write_bytes(data)
    assert peak_bytes(tmp_path / "a.jsonl", skip_bad_rows=True) < 4 * len(data) + 200_000
    (piece,) = pieces(tmp_path / "a.jsonl", skip_bad_rows=True)
    assert (piece.rows, piece.read_rows, piece.bad_rows) == ([0, 20_001], 20_002, 20_000)
    assert [row for row, _ in piece.bad] == list(range(1, row_pieces.LISTED_BAD_ROWS + 1))


@settings(max_examples=100, deadline=None)
@given(data=st.lists(st.sampled_from([b"", b" ", b"\r", b"\t ", b"x", b" y", b"z "]), max_size=12).map(b"\n".join))
def test_the_lines_that_are_not_blank_are_found_with_their_numbers(data: bytes) -> None:
    rows = data.split(b"\n")
    expected = [(number, row) for number, row in enumerate(rows) if row.strip()]
    assert list(filled_lines(data)) == expected


def test_a_dictionary_is_read_in_pieces_of_what_it_decodes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PIECE_BYTES", 50_000)
    values = [str(number) * 10_000 for number in range(5)]
    column = [None if row == 7 else values[row % 5] for row in range(300)]
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=200)
    assert (tmp_path / "a.parquet").stat().st_size < 30_000
    found = pieces(tmp_path / "a.parquet")
    assert len(found) == 60
    assert max(piece.text_bytes for piece in found) <= 50_000
    assert [text for piece in found for text in piece.texts] == [value or "" for value in column]


def test_a_giant_row_group_with_a_dictionary_is_cut_by_what_it_decodes_to(tmp_path: Path) -> None:
    values = [np.random.default_rng(number).bytes(500).hex() for number in range(50)]
    column = [values[row % 50] for row in range(2000)]
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=5000))
    assert max(len(chunk.payload or b"") for chunk in chunks) < 10_000
    assert [text for chunk in chunks for text in chunk_texts(chunk, source.options)] == column
    assert texts_of(tmp_path / "a.parquet", chunk_bytes=5000) == column  # also resumed in the middle
    assert sum(chunk.weight for chunk in chunks) <= source.files[0].bytes


def test_a_row_of_parquet_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 500)
    monkeypatch.setattr(texts, "PIECE_BYTES", 100)
    pq.write_table(pa.table({"text": ["a", "b", "x" * 501]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet, row groups 0-1, row 2 of them: .* within 500 bytes"):
        pieces(tmp_path / "a.parquet")


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), piece_bytes=st.integers(1, 9))
def test_a_text_file_is_read_in_parts_that_add_up_to_it(
    tmp_path_factory: pytest.TempPathFactory, text: str, piece_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "parts.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "TEXT_PIECE_BYTES", piece_bytes)
        found = pieces(path)
        assert texts_of(path) == [text.removeprefix("\ufeff")]
    assert "".join(piece.texts[0] for piece in found) == text.removeprefix("\ufeff")
    assert len(found) == max(1, -(-len(text.encode()) // piece_bytes))
    assert sum(piece.read_rows for piece in found) == 1
    assert [piece.unfinished for piece in found] == [True] * (len(found) - 1) + [False]
    assert [piece.continued for piece in found] == [False] + [True] * (len(found) - 1)
    assert sum(piece.text_bytes for piece in found) == len(text.encode())


@pytest.mark.parametrize("at", [0, 3, 4, 11])
def test_a_byte_that_is_not_utf8_is_named_by_its_place_in_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", 4)
    data = bytearray(b"abcdefghijkl")
    data[at] = 0xFF
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(BadRow, match=f"byte 0xff at offset {at}"):
        pieces(tmp_path / "a.txt")
    (piece,) = pieces(tmp_path / "a.txt", skip_bad_rows=True)  # no part of it is given before its end was seen
    assert (piece.texts, piece.read_rows, piece.bad_rows) == ([], 1, 1)


def test_a_character_that_is_cut_off_at_the_files_end_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", 4)
    (tmp_path / "a.txt").write_bytes("abcde日".encode()[:-1])
    with pytest.raises(BadRow, match="byte 0xe6 at offset 5"):
        pieces(tmp_path / "a.txt")
