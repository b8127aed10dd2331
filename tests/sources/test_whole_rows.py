"""Rows of several columns are the same rows in every format, and as bounded as texts are."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_data import texts_of

from shardkit.errors import SourceError, UsageError
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.parquet import column_ranges
from shardkit.sources.pieces import BadRow
from shardkit.sources.texts import read_chunk

ROWS: list[dict[str, Any]] = [
    {"n": i, "title": f"naïve {i}", "meta": {"tags": ["a", "日本"]}, "turns": [{"role": "user", "content": f"hi {i}"}]}
    for i in range(40)
]
ROWS[3] = {"n": None, "title": None, "meta": None, "turns": None}
COLUMNS = ("title", "turns", "meta.tags", "n")


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"title": r["title"], "turns": r["turns"], "meta.tags": r["meta"] and r["meta"]["tags"], "n": r["n"]}
        for r in rows
    ]


def parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet", row_group_size=7)
    return folder / "a.parquet"


def arrow(folder: Path) -> Path:
    with pa.ipc.new_file(folder / "a.arrow", (table := pa.Table.from_pylist(ROWS)).schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return folder / "a.arrow"


def jsonl(folder: Path) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "a.jsonl"


def json_array(folder: Path) -> Path:
    (folder / "a.json").write_text(json.dumps(ROWS, indent=1))
    return folder / "a.json"


@pytest.mark.parametrize("write", [parquet, arrow, jsonl, json_array])
@pytest.mark.parametrize("chunk_bytes", [40, 8 << 20])
def test_a_row_is_the_same_in_each_format_wherever_it_is_cut(tmp_path: Path, write: Any, chunk_bytes: int) -> None:
    texts = texts_of(write(tmp_path), chunk_bytes=chunk_bytes, columns=COLUMNS)
    assert [json.loads(text) for text in texts] == expected(ROWS)
    some = texts_of(write(tmp_path), chunk_bytes=chunk_bytes, columns=COLUMNS, where="n >= 30", sample=0.5)
    chosen = [json.loads(text) for text in some]
    assert 0 < len(chosen) < 10
    assert chosen == [row for row in expected(ROWS[30:]) if row in chosen]


def test_rows_of_comma_separated_values_are_text(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["title", "x", "n"], ['a "b"\nc', "", "1"], ["日本", "y", "2"]])
    for chunk_bytes in (1, 1 << 20):
        texts = texts_of(tmp_path / "a.csv", chunk_bytes=chunk_bytes, columns=("n", "title"), where="n > 0")
        assert [json.loads(text) for text in texts] == [{"n": "1", "title": 'a "b"\nc'}, {"n": "2", "title": "日本"}]


def test_items_of_an_iterable_are_rows() -> None:
    rows = [{"title": "a", "n": np.int64(1), "x": 0}, {"title": None, "n": 2.5, "x": 0}]
    assert [json.loads(text) for text in texts_of(rows, columns=("title", "n"))] == [
        {"title": "a", "n": 1},
        {"title": None, "n": 2.5},
    ]
    with pytest.raises(SourceError, match="document 0: no column 'other' among 'title', 'n', 'x'"):
        texts_of(rows, columns=("other",))
    with pytest.raises(SourceError, match="document 0: a str: expected a row, as a dict"):
        texts_of(["a"], columns=("other",))
    with pytest.raises(UsageError, match="to_pylist"):
        texts_of(pa.table({"title": ["a"]}), columns=("title",))


def test_values_that_json_has_not_are_written_as_text_or_refused(tmp_path: Path) -> None:
    moment, day = datetime.datetime(2026, 1, 2, 3, 4, 5), datetime.date(2026, 1, 2)
    table = pa.table({"at": [moment], "day": [day], "price": [Decimal("1.50")], "raw": [b"x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    [text] = texts_of(tmp_path / "a.parquet", columns=("at", "day", "price"))
    assert json.loads(text) == {"at": "2026-01-02T03:04:05", "day": "2026-01-02", "price": "1.50"}
    with pytest.raises(SourceError, match=r"a.parquet, .*row 0 of them: a bytes, which JSON does not have \(columns\)"):
        texts_of(tmp_path / "a.parquet", columns=("day", "raw"))


def test_a_row_that_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    good = pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"title": good, "n": [0, 1, 2]}), tmp_path / "a.parquet")
    texts = texts_of(tmp_path / "a.parquet", columns=("n", "title"), skip_bad_rows=True)
    assert [json.loads(text)["n"] for text in texts] == [0, 2]
    with pytest.raises(BadRow, match="0xff") as error:
        texts_of(tmp_path / "a.parquet", columns=("n", "title"))
    assert error.value.row == 1


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no column 'other': expected one of .*title.* \(columns\)"):
        texts_of(parquet(tmp_path), columns=("title", "other"))
    with pytest.raises(BadRow, match=r"no field 'other' among .*\(columns\)"):
        texts_of(jsonl(tmp_path), columns=("title", "other"))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match="columns asks for columns, and a.txt has none"):
        texts_of(tmp_path / "a.txt", columns=("title",))


def test_no_column_is_fetched_that_is_not_asked_for(tmp_path: Path) -> None:
    table = pa.table({"title": ["a"] * 9, "big": ["b" * 1000] * 9, "turns": [[{"role": "user", "content": "c"}]] * 9})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), columns=("turns", "title"))
    [chunk] = iter_chunks(source, 0, 0, 0, chunk_bytes=1 << 20)
    meta = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    asked = {meta.column(i).path_in_schema: meta.column(i).total_compressed_size for i in range(meta.num_columns)}
    del asked["big"]
    assert len(asked) == 3
    assert sorted(stop - start for start, stop in column_ranges(chunk, source.options)) == sorted(asked.values())


def test_long_rows_of_a_dictionary_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"title": long, "n": range(600)}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), columns=("n", "title"))
    [chunk] = iter_chunks(source, 0, 0, 0, chunk_bytes=8 << 20)
    pieces = [piece.text_bytes for piece in read_chunk(chunk, source.options)]
    assert sum(pieces) > 60_000_000
    assert max(pieces) <= 16 << 20
