"""`--where` and `--sample` choose the same rows of every format, however it is cut and wherever it lies, and what they
leave out is known by its number."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from file_server import FileServer, serving

from shardkit.errors import SourceError, UsageError
from shardkit.sources import chunk_bytes, footers, read_ahead
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.parquet_files import close_parquet_files
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.texts import BadRow, read_chunk

COUNT = 400
TABLE = pa.table(
    {
        "score": pa.array([None if n % 11 == 5 else n / 100 for n in range(COUNT)], pa.float64()),
        "lang": [("en", "de", "fr")[n % 3] for n in range(COUNT)],
        "text": [f"document {n} " + "x" * (n * 7 % 50) for n in range(COUNT)],
        "meta": [{"n": n, "ok": n % 2 == 0} for n in range(COUNT)],
    }
)
WHERE = "score >= 1 and lang in ('en', 'de')"
KEPT = (pc.field("score") >= 1) & pc.field("lang").isin(["en", "de"])
Row = tuple[str, int, str]  # the file, the number of the row in it, and its text


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table in a file of each format that has columns."""
    folder = tmp_path_factory.mktemp("tables")
    pq.write_table(TABLE, folder / "a.parquet", row_group_size=20)
    pq.write_table(TABLE, folder / "giant.parquet", row_group_size=300)
    pyarrow.feather.write_feather(TABLE, folder / "a.feather", chunksize=30)
    rows = TABLE.to_pylist()
    lines = "".join(json.dumps(row) + "\n\n" for row in rows).encode()  # a blank line after each
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "a.json").write_bytes(json.dumps(rows, indent=1).encode())
    file = io.StringIO(newline="")
    flat = [{**row, "meta.n": row["meta"]["n"]} for row in rows]
    writer = csv.DictWriter(file, ["meta.n", "text", "lang", "score"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(flat)
    (folder / "a.csv").write_text(file.getvalue(), newline="")
    return folder


def rows_of(place: object, chunk_bytes: int = 8 << 20, **options: Any) -> Iterator[Row]:
    """What is read of a source, as the ordered writer counts it."""
    source = open_source(str(place), **options)
    counted = [0] * len(source.files)
    with ReadAhead() as ahead:
        for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=chunk_bytes, ahead=ahead):
            for piece in read_chunk(chunk, source.options):
                for row, text in zip(piece.rows, piece.texts, strict=True):
                    assert 0 <= row < piece.read_rows
                    yield source.files[chunk.file].path, counted[chunk.file] + row, text
                counted[chunk.file] += piece.read_rows
    assert set(counted) <= {COUNT, 2 * COUNT}  # none is lost, and blank lines are rows


FILES = ["a.parquet", "giant.parquet", "a.feather", "a.jsonl", "a.jsonl.gz", "a.json", "a.csv"]


@pytest.mark.parametrize("size", [300, 3_000, 8 << 20])
@pytest.mark.parametrize("name", FILES)
def test_where_keeps_the_rows_that_pyarrow_keeps(tables: Path, name: str, size: int) -> None:
    numbers = pa.table({**dict(zip(TABLE.column_names, TABLE.columns, strict=True)), "number": range(COUNT)})
    kept = numbers.filter(KEPT).select(["number", "text"]).to_pylist()
    step = 2 if "jsonl" in name else 1
    expected = [(name, row["number"] * step, row["text"]) for row in kept]
    assert list(rows_of(tables / name, size, where=WHERE)) == expected
    if name != "a.csv":
        within = list(rows_of(tables / name, size, where="meta.n < 5 and meta.ok"))
        assert [row for _, row, _ in within] == [0, 2 * step, 4 * step]
    assert [row for _, row, _ in rows_of(tables / name, size, where="meta.n >= 398")] == [398 * step, 399 * step]


@pytest.mark.parametrize("name", FILES)
def test_a_sample_is_the_same_however_a_file_is_cut_and_part_of_a_larger_one(tables: Path, name: str) -> None:
    def sampled(share: float, size: int = 8 << 20, **options: Any) -> list[Row]:
        return list(rows_of(tables / name, size, sample=share, **options))

    tenth, half = sampled(0.1), sampled(0.5)
    for size in (300, 3_000):
        assert sampled(0.1, size) == tenth
    assert 20 <= len(tenth) <= 60
    assert 160 <= len(half) <= 240
    assert set(tenth) < set(half) < set(sampled(1.0))
    chosen = set(rows_of(tables / name, where=WHERE))
    assert sampled(0.5, 300, where=WHERE) == [row for row in half if row in chosen]


def test_a_sample_is_a_formula_of_the_files_name_and_the_rows_number(tables: Path, tmp_path: Path) -> None:
    for name in ("a.parquet", "a.feather", "a.json", "a.csv"):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / name).write_bytes((tables / name).read_bytes())
        assert list(rows_of(tmp_path / "b" / name, sample=0.1)) == list(rows_of(tables / name, sample=0.1))
    found = [row for _, row, _ in rows_of(tables / "a.parquet", sample=0.1)]
    assert found[:6] == [4, 9, 25, 28, 40, 69]  # of all versions: another formula would be another sample


@pytest.mark.parametrize(
    "texts",
    [
        {"a.txt": "one", "b.txt": "two", "c.txt": "three", "d.txt": "four", "e.txt": "five", "f.txt": "six"},
    ],
)
def test_whole_texts_separated_ones_and_iterables_are_sampled_too(tmp_path: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    source = open_source(str(tmp_path), sample=0.5)
    chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=100))
    pieces = [piece for chunk in chunks for piece in read_chunk(chunk, source.options)]
    assert [piece.read_rows for piece in pieces] == [1] * 6
    assert 0 < sum(len(piece.texts) for piece in pieces) < 6
    (tmp_path / "s.md").write_text("|".join(map(str, range(COUNT))))
    for given, options in ((str(tmp_path / "s.md"), {"separator": "|"}), ([f"{n}" for n in range(COUNT)], {})):
        found = {}
        for size in (10, 1000):
            source = open_source(given, sample=0.1, **options)
            chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=size))
            found[size] = [text for c in chunks for piece in read_chunk(c, source.options) for text in piece.texts]
        assert found[10] == found[1000]
        assert 20 <= len(found[10]) <= 60


@pytest.mark.parametrize(
    ("name", "where", "says"),
    [
        ("a.parquet", "words > 3", "a.parquet has no column 'words': expected one of score, lang, text, meta (where=)"),
        ("a.parquet", "lang > 3", "a.parquet: column 'lang' is string, where= compares it with a number"),
        ("a.feather", "meta == 'x'", "column 'meta' is struct"),
        ("a.csv", "words > 3", "a.csv has no column 'words'"),
        ("a.csv", "lang > 3", "'lang' is 'en', where= compares it with a number"),
        ("a.jsonl", "lang > 3", "'lang' is text, where= compares it with a number"),
    ],
)
def test_a_column_that_is_not_there_or_of_another_kind_is_one_clear_line(
    tables: Path, name: str, where: str, says: str
) -> None:
    with pytest.raises((SourceError, BadRow)) as caught:
        list(rows_of(tables / name, where=where))
    assert says.replace("where=", "") in str(caught.value).replace("--where", "").replace("where=", "")


def test_what_has_no_columns_and_a_share_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"where= asks for columns, and a\.txt has none"):
        open_source(str(tmp_path / "a.txt"), where="x > 1")
    for share in (0, -0.1, 1.5, float("nan"), "0.1", True):
        with pytest.raises(UsageError, match="sample is .*: expected a share of the rows"):
            open_source(str(tmp_path / "a.txt"), sample=share)  # type: ignore[arg-type]


@pytest.fixture
def server(tables: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(footers, "_END_BYTES", 300)
    monkeypatch.setattr(footers, "_LEAST_BYTES", 300)
    monkeypatch.setattr(chunk_bytes, "_GAP_BYTES", 10)
    close_parquet_files()
    with serving(tables) as running:
        yield running


def test_row_groups_of_which_statistics_say_that_none_is_kept_are_not_fetched(server: FileServer, tables: Path) -> None:
    noise = [f"{n} {os.urandom(1000).hex()}" for n in range(COUNT)]
    pq.write_table(TABLE.set_column(2, "text", [noise]), tables / "noise.parquet", row_group_size=20)
    metadata = pq.read_metadata(tables / "noise.parquet")
    expected = list(rows_of(tables / "noise.parquet", where="score >= 3.9"))
    server.asked.clear()
    assert list(rows_of(f"{server.url}/noise.parquet", where="score >= 3.9")) == expected
    assert len(expected) == 9
    fetched = np.zeros((tables / "noise.parquet").stat().st_size, bool)
    for asked in filter(None, server.asked):
        start, stop = asked.removeprefix("bytes=").split("-")
        fetched[int(start) : int(stop) + 1] = True
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(2)
        start = column.dictionary_page_offset or column.data_page_offset
        was_read = fetched[start : start + column.total_compressed_size].any()
        assert was_read == (group == metadata.num_row_groups - 1)


@pytest.mark.parametrize("name", ["giant.parquet", "a.parquet", "a.jsonl", "a.csv"])
def test_a_server_gives_the_same_rows(
    server: FileServer, tables: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "SPAN_BYTES", 1_000)
    for options in ({"where": WHERE}, {"sample": 0.3}, {"where": "meta.n > 100", "sample": 0.5}):
        expected = list(rows_of(tables / name, 500, **options))
        assert list(rows_of(f"{server.url}/{name}", 500, **options)) == expected
