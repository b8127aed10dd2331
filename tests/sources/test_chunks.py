"""Every format gives the same rows however it is cut, and says in one line what is wrong with it."""

from __future__ import annotations

import gzip
import re
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_data import TEXTS, chunk_texts, lines, packed, texts_of

from shardkit.errors import ShardkitError, SourceError, UsageError
from shardkit.sources import chunks
from shardkit.sources import source as sources
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.texts import BadRow

# parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_every_arrow_kind_of_text_is_read_and_null_is_the_empty_document(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([*TEXTS, None, "end"], pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    for plain in (False, True):
        table = pa.table({"n": range(10), "text": column})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, use_dictionary=not plain)
        for chunk_bytes in (1 << 23, 1):  # with one byte each row group is a giant
            assert texts_of(tmp_path / "a.parquet", chunk_bytes=chunk_bytes) == [*TEXTS, "", "end"]


@pytest.mark.parametrize("chunk_bytes", [1, 3_000, 50_000, 1 << 23])
def test_row_groups_are_joined_or_cut_into_chunks_without_a_row_lost(tmp_path: Path, chunk_bytes: int) -> None:
    noise = np.random.default_rng(0)
    texts = [noise.bytes(int(size)).hex() for size in noise.integers(0, 400, 700)]
    for rows in (1, 50, 700):
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{rows}.parquet", row_group_size=rows)
        assert texts_of(tmp_path / f"{rows}.parquet", chunk_bytes=chunk_bytes) == texts


@pytest.mark.parametrize("dictionary", [False, True], ids=["plain", "dictionary that is given up"])
def test_a_giant_row_group_of_texts_that_differ_is_never_held_whole(tmp_path: Path, dictionary: bool) -> None:
    noise = np.random.default_rng(0)
    texts = [noise.bytes(2000).hex() for _ in range(3000)]  # 12 MB
    pages = {"dictionary_pagesize_limit": 50_000, "data_page_size": 50_000, "write_batch_size": 20}
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=dictionary, **pages)
    source = open_source(str(tmp_path / "a.parquet"))
    before, most, found = pa.total_allocated_bytes(), 0, []
    for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=50_000):
        most = max(most, pa.total_allocated_bytes() - before)
        found += list(chunk_texts(chunk, source.options))
    assert found == texts
    assert most < 8_000_000


def test_parquet_files_without_rows_give_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "1.parquet")
    assert texts_of(tmp_path) == ["x"]


def test_a_parquet_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    for texts in (["one"], ["two", "three"]):
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
        assert texts_of(tmp_path / "a.parquet") == texts


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"body": ["x"], "id": [1]}, r"a\.parquet has no column 'text': expected one of body, id \(text_field=\)"),
        ({"text": [1, 2]}, r"a\.parquet: column 'text' is int64, not text"),
        ({"text": [b"x"]}, "is binary, not text"),
        ({"text": [["x"]]}, "is list<.*, not text"),
    ],
)
def test_a_column_that_is_missing_or_no_text_is_named(tmp_path: Path, table: dict[str, Any], words: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=words):
        texts_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_parquet_file_is_one_clear_error(tmp_path: Path, keep: float) -> None:
    pq.write_table(pa.table({"text": TEXTS * 100}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(SourceError, match=r"a\.parquet is no whole parquet file .*: fetch or make it again"):
        texts_of(tmp_path / "a.parquet")


def test_damage_inside_a_parquet_file_is_a_source_error(tmp_path: Path) -> None:
    noise = [np.random.default_rng(1).bytes(300).hex() for _ in range(200)]
    pq.write_table(pa.table({"text": noise}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:200] = bytes(196)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.parquet"):
        texts_of(tmp_path / "a.parquet")


def invalid_column(kind: str) -> pa.Array:
    offsets = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfeb")])
    return column.dictionary_encode() if kind == "dictionary" else column


@pytest.mark.parametrize("kind", ["string", "dictionary"])
def test_invalid_utf8_in_parquet_names_the_row_or_is_skipped(tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.table({"text": invalid_column(kind)}), tmp_path / "a.parquet")
    for chunk_bytes, row in ((1 << 23, 1), (1, 0)):  # with one byte each row is a chunk
        with pytest.raises(BadRow) as caught:
            texts_of(tmp_path / "a.parquet", chunk_bytes=chunk_bytes)
        assert (caught.value.row, caught.value.why) == (row, "not UTF-8 (byte 0xff at offset 0)")
        assert texts_of(tmp_path / "a.parquet", chunk_bytes=chunk_bytes, skip_bad_rows=True) == ["a", "b"]


# lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=8), max_size=12),
    blank=st.sampled_from([b"", b"\n", b" \r\n\n"]),
    cut=st.booleans(),
    chunk_bytes=st.integers(1, 200),
)
def test_jsonl_gives_the_same_rows_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: list[str], blank: bytes, cut: bool, chunk_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / name
    data = blank.join(lines([text]) for text in texts)
    path.write_bytes(packed(name, data[:-1] if cut else data))
    assert texts_of(path, chunk_bytes=chunk_bytes) == texts


@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_crlf_a_byte_order_mark_and_blank_lines_are_understood(tmp_path: Path, chunk_bytes: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(["a", "b"], "\r\n") + b"\r\n  \n" + lines(["c"])[:-1])
    assert texts_of(tmp_path / "a.jsonl", chunk_bytes=chunk_bytes) == ["a", "b", "c"]


def test_null_text_is_the_empty_document_and_surrogate_escapes_survive(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\ud800"}\n')
    assert texts_of(tmp_path / "a.jsonl") == ["", "\U0001f600", "\ud800"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON ("),
        (b"nonsense", "not JSON (Expecting value at column 1)"),
        (b'{"text": "a\xff"}', "not UTF-8 (byte 0xff at offset 11)"),
        (b'{"text": "a\xed\xa0\x80"}', "not UTF-8 (byte 0xed"),
        ('{"text": "a"}'.encode("utf-16-le").replace(b"\n", b""), "not JSON ("),
        (b'["text"]', "a JSON list, not an object"),
        (b'{"body": "x"}', "no field 'text' among 'body' (--text-field)"),
        (b'{"text": 3}', "field 'text' is a int, not text"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON nested too deep to read"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_is_no_document_is_named_or_skipped(tmp_path: Path, name: str, line: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(packed(name, lines(["good"]) + line + b"\n" + lines(["also"])))
    with pytest.raises(BadRow) as caught:
        texts_of(tmp_path / name)
    assert caught.value.row == 1
    assert caught.value.why.startswith(why)
    assert texts_of(tmp_path / name, skip_bad_rows=True) == ["good", "also"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "trailer", "plain"])
def test_a_damaged_compressed_file_is_an_error_and_never_a_short_one(tmp_path: Path, name: str, damage: str) -> None:
    data = lines(TEXTS * 200)
    whole = packed(name, data)
    (tmp_path / name).write_bytes(
        {"cut": whole[: len(whole) * 3 // 4], "trailer": whole + b"x" * 40, "plain": data}[damage]
    )
    with pytest.raises(SourceError, match=rf"cannot read {re.escape(name)}"):
        texts_of(tmp_path / name, chunk_bytes=500)


def test_empty_files_hold_no_rows_but_an_empty_txt_is_a_document(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.txt"):
        (tmp_path / name).write_bytes(packed(name, b""))
    assert texts_of(f"{tmp_path}/*") == [""]


# rows without an end -------------------------------------------------------------------------------------------------


def endless(folder: Path, name: str, size: int) -> Path:
    """A file whose third row has no end for `size` bytes."""
    (folder / name).write_bytes(packed(name, lines(["a", "b"]) + b"x" * size))
    return folder / name


@pytest.mark.parametrize(
    ("name", "options", "row"),
    [
        ("a.jsonl.gz", {}, "line 3"),
        ("a.jsonl.zst", {}, "line 3"),
        ("a.txt", {"separator": "\n"}, "row 2"),
        ("a.txt", {"separator": "\n\n"}, "row 0"),
        ("a.jsonl", {}, "the row that starts at byte 46"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [7, 30, 1000])
def test_a_row_without_an_end_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], row: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 5000)
    path = endless(tmp_path, name, 50_000)
    with pytest.raises(SourceError, match=rf"{re.escape(name)}, {row}: no end of the row within 5,000 bytes"):
        texts_of(path, chunk_bytes=chunk_bytes, **options)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
@pytest.mark.parametrize("chunk_bytes", [7, 99])
def test_the_longest_row_may_be_exactly_as_long_as_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 500)
    options = {"separator": "\n"} if name == "a.txt" else {}
    for size in (500, 501):
        row = b'{"text": "' + b"x" * (size - 12) + b'"}'
        (tmp_path / name).write_bytes(packed(name, row + b"\n" + lines(["end"])))
        if size == 500:
            assert len(texts_of(tmp_path / name, chunk_bytes=chunk_bytes, **options)) == 2
        else:
            with pytest.raises(SourceError, match="no end of the row within 500 bytes"):
                texts_of(tmp_path / name, chunk_bytes=chunk_bytes, **options)


@pytest.mark.parametrize(("name", "separator"), [("a.jsonl.gz", None), ("a.txt", "\n"), ("a.txt", "--\n--")])
def test_a_long_row_is_searched_once_and_not_again_with_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, separator: str | None
) -> None:
    path = endless(tmp_path, name, 200_000)
    searched: list[int] = []
    last_end = chunks._last_end

    def counted(data: bytes, separator: bytes) -> int:
        searched.append(len(data))
        return last_end(data, separator)

    monkeypatch.setattr(chunks, "_last_end", counted)
    source = open_source(str(path), separator=separator)
    assert list(chunks.iter_chunks(source, 0, 0, 0, chunk_bytes=500))
    assert sum(searched) < 3 * 200_000


def test_a_small_file_that_decompresses_without_end_is_refused_long_before_it_fills_the_memory(tmp_path: Path) -> None:
    member = gzip.compress(bytes(32 << 20), compresslevel=1)
    (tmp_path / "a.jsonl.gz").write_bytes(member * 128)  # 4 GiB
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"line 1: .* within 268,435,456 bytes"):
            texts_of(tmp_path / "a.jsonl.gz")
        assert tracemalloc.get_traced_memory()[1] < 1.5 * sources.MAX_ROW_BYTES
    finally:
        tracemalloc.stop()


# txt ---------------------------------------------------------------------------------------------------------------


def test_a_txt_file_is_one_document_whatever_is_in_it(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    assert texts_of(tmp_path) == TEXTS
    (tmp_path / "1.txt").write_bytes(b"ab\xff")
    with pytest.raises(BadRow, match="not UTF-8"):
        texts_of(tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    data=st.text(st.sampled_from("ab\n"), max_size=40),
    separator=st.sampled_from(["\n", "\n\n", "aa", "aba", "ab\n"]),
    chunk_bytes=st.integers(1, 50),
)
def test_separated_text_is_split_as_str_split_does(
    tmp_path_factory: pytest.TempPathFactory, data: str, separator: str, chunk_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "separated.txt"
    path.write_text(data)
    expected = data.split(separator)
    found = texts_of(path, separator=separator, chunk_bytes=chunk_bytes)
    assert found == (expected if expected[-1] else expected[:-1])


def test_a_separator_is_for_txt_files_and_not_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(UsageError, match=r"separator is for text files, a\.jsonl is jsonl"):
        open_source(str(tmp_path), separator="x")
    (tmp_path / "a.jsonl").rename(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="separator is empty"):
        open_source(str(tmp_path), separator="")


# iterables ---------------------------------------------------------------------------------------------------------


def test_lists_generators_and_datasets_give_their_texts() -> None:
    rows = [{"text": text, "id": 1} for text in TEXTS]
    assert texts_of([*TEXTS, None], chunk_bytes=10) == [*TEXTS, ""]
    assert texts_of(datasets.Dataset.from_list(rows)) == TEXTS
    assert texts_of(datasets.Dataset.from_list(rows).to_iterable_dataset()) == TEXTS
    (chunk,) = iter_chunks(open_source(text for text in TEXTS), 0, 0, 0, chunk_bytes=1 << 20)
    assert chunk.payload == tuple(TEXTS)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"x", "source is a bytes"),
        (3, "source is a int"),
        ({"train": ["x"]}, r"source is a dict with train: give one of its values"),
        (datasets.DatasetDict(), "source is a DatasetDict"),
        ({"b", "a"}, "source is a set, whose order changes"),
        ([1], "document 0 is a int: expected text"),
        (["a", {"body": "x"}], "document 1 is a dict with 'body': expected text, or a row with 'text'"),
    ],
)
def test_what_is_no_iterable_of_texts_is_refused(source: Any, words: str) -> None:
    with pytest.raises(ShardkitError, match=words):
        texts_of(source)
