"""`transform` and `filter` see the whole row where columns are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardkit import open_shard, peek, tokenize
from shardkit.errors import OutputError, SourceError, UsageError

ROWS = [
    {"title": f"title {i}", "text": f"text of {i}", "turns": [{"role": "user", "content": f"q {i}"}], "score": i % 5}
    for i in range(300)
]
SMALL: dict[str, Any] = {"tokenizer": "bytes", "shard_tokens": 1000, "progress": False, "workers": 2}


@pytest.fixture
def source(tmp_path: Path) -> str:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=20)
    return str(tmp_path / "a.parquet")


def tokens(folder: Path) -> bytes:
    return b"".join(open_shard(shard).tobytes() for shard in sorted(folder.glob("*.npy")))


def as_chat(row: dict[str, Any]) -> str | None:
    return None if row["score"] == 4 else "".join(f"{turn['role']}: {turn['content']}\n" for turn in row["turns"])


def test_a_transform_makes_the_document_of_several_columns(source: str, tmp_path: Path) -> None:
    tokenize([as_chat(row) for row in ROWS if row["score"] != 4], tmp_path / "expected", prefix="a", **SMALL)
    columns = ["turns", "score"]
    manifest = tokenize(source, tmp_path / "out", columns=columns, transform=as_chat, chunk_bytes=500, **SMALL)
    assert tokens(tmp_path / "out") == tokens(tmp_path / "expected")
    assert manifest.source is not None
    assert manifest.source.options["columns"] == columns
    place = peek(tmp_path / "out", document=100)
    assert "q 125" in str(place), "its row is known, though rows were dropped"
    with pytest.raises(OutputError, match="columns"):
        tokenize(source, tmp_path / "out", columns=[*columns, "title"], transform=as_chat, chunk_bytes=500, **SMALL)


def test_a_filter_alone_sees_the_row_and_the_text_field_is_the_document(source: str, tmp_path: Path) -> None:
    kept = [row for row in ROWS if row["score"] > 2]
    tokenize([row["title"] for row in kept], tmp_path / "expected", prefix="a", **SMALL)
    how: dict[str, Any] = {"columns": ["score"], "filter": lambda row: row["score"] > 2, "text_field": "title"}
    tokenize(source, tmp_path / "out", **how, **SMALL)
    assert tokens(tmp_path / "out") == tokens(tmp_path / "expected")
    with pytest.raises(SourceError, match="column 'turns' holds a list at .*row 3 of them"):
        tokenize(source, tmp_path / "other", **{**how, "text_field": "turns"}, **SMALL)


def test_columns_that_nothing_looks_at_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="columns says what transform and filter get"):
        tokenize(source, tmp_path / "out", columns=["title"], **SMALL)
    for wrong in ("title", [], [1], 3):
        with pytest.raises(UsageError, match="expected a list of the names of columns"):
            tokenize(source, tmp_path / "out", columns=wrong, transform=as_chat, **SMALL)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
