"""Tables and arrays as sources, and columns or fields that a file has twice."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_data import texts_of

from shardkit.errors import ShardkitError, SourceError, UsageError
from shardkit.sources.texts import BadRow

TEXTS = ["first", "", "naïve"]
TABLE = {"id": [1, 2, 3], "text": TEXTS}


@pytest.mark.parametrize(
    "source",
    [
        pd.Series(TEXTS),
        pd.Series(TEXTS, dtype="string"),
        pd.Series(TEXTS, dtype="category"),
        pd.DataFrame(TABLE),
        pd.DataFrame(TABLE, index=[7, 8, 9]),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pa.table(TABLE),
        pa.table(TABLE)["text"],
        pa.array(TEXTS),
        pa.record_batch(TABLE),
    ],
    ids=lambda source: f"{type(source).__module__.partition('.')[0]} {type(source).__name__}",
)
def test_a_table_or_an_array_is_its_texts(source: Any) -> None:
    assert texts_of(source) == TEXTS


@pytest.mark.parametrize(
    "source",
    [pd.Series(["a", None]), pd.Series(["a", pd.NA], dtype="string"), np.array(["a", float("nan")], object)],
    ids=["None", "NA", "NaN"],
)
def test_a_missing_text_is_the_empty_document(source: Any) -> None:
    assert texts_of(source) == ["a", ""]


def test_a_table_without_the_column_names_those_that_it_has() -> None:
    with pytest.raises(SourceError, match=r"the DataFrame has no column 'body': expected one of id, text"):
        texts_of(pd.DataFrame(TABLE), text_field="body")
    twice = pd.DataFrame([["a", "b"]], columns=["text", "text"])
    with pytest.raises(SourceError, match="the DataFrame has 2 columns 'text'"):
        texts_of(twice)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.array("text"), UsageError, "source is a ndarray: expected"),
        (np.array([["a"], ["b"]]), SourceError, "document 0 is a ndarray: expected text"),
        (np.array([1, 2]), SourceError, "document 0 is a int64: expected text"),
        (pd.Series([1.5]), SourceError, "document 0 is a float: expected text"),
        ([{"body": "x", "id": 1}], SourceError, "document 0 is a dict with 'body', 'id': expected text, or a row with"),
        ([Path("a.txt")].__iter__(), SourceError, "document 0 is a PosixPath: expected text"),
    ],
    ids=["0-d array", "2-d array", "numbers", "floats", "rows without the field", "paths one by one"],
)
def test_what_holds_no_texts_is_one_line(source: Any, error: type[ShardkitError], message: str) -> None:
    with pytest.raises(error, match=message):
        texts_of(source)


def write_twice(path: Path, name: str = "text") -> Path:
    columns = [pa.array(["a", "b"]), pa.array(["c", "d"]), pa.array(["e", "f"])]
    pq.write_table(pa.table(columns, names=[name, "text", name]), path)
    return path


def test_two_parquet_columns_of_the_name_are_one_line_and_of_another_name_no_matter(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^a\.parquet has 3 columns named .text.: write it again with each"):
        texts_of(write_twice(tmp_path / "a.parquet"))
    assert texts_of(write_twice(tmp_path / "b.parquet", "id")) == ["c", "d"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"body": "x"}]),
        pa.array([["x"]]),
        pa.array([b"x"]),
        pa.array([1]),
        pa.array([None], pa.null()),
        pa.array([datetime.datetime(2020, 1, 1)]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_parquet_column_that_is_nested_or_no_text_is_one_line(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"text": column, "body": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: column 'text' is .*, not text: .*text_field"):
        texts_of(tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", text_field="body") == ["y"]


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ('{"text": "a", "text": "b"}', None),
        ('{"text": "a", "x": {"text": 1}, "text": "b"}', None),
        (r'{"text": "the \"text\" twice", "x": {"text": 1, "text": 2}}', ['the "text" twice']),
        ('{"id": 1, "id": 2, "text": "a"}', ["a"]),
    ],
)
def test_a_field_that_is_there_twice_is_a_bad_row_and_any_other_no_matter(
    tmp_path: Path, line: str, texts: list[str] | None
) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    if texts is not None:
        assert texts_of(tmp_path / "a.jsonl") == texts
        return
    with pytest.raises(BadRow, match="field 'text' is there twice"):
        texts_of(tmp_path / "a.jsonl")
    assert texts_of(tmp_path / "a.jsonl", skip_bad_rows=True) == []
