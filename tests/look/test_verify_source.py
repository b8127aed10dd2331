"""`verify --source`: a dataset is compared with the source that it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hub_server import HubServer

from shardkit import push, tokenize, verify
from shardkit.cli import main
from shardkit.errors import ShardError, UsageError
from shardkit.look import against_source

SMALL: dict[str, Any] = {"tokenizer": "bytes", "shard_tokens": 4000, "workers": 1, "progress": False}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    if name.endswith("parquet"):
        pq.write_table(
            pa.Table.from_pylist(rows), folder / name, row_group_size=10, compression="none", use_dictionary=False
        )
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(params=["parquet", "jsonl"])
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for file in range(3):
        rows = [{"text": f"text {row} of {file}", "n": row} for row in range(100)]
        write(tmp_path / "texts", f"{file}.{request.param}", rows)
    return tmp_path / "texts"


def test_the_files_are_compared_with_the_same_choice_of_rows(source: Path, tmp_path: Path) -> None:
    tokenize(source, tmp_path / "all", **SMALL)
    tokenize(source, tmp_path / "some", where="n >= 15", sample=0.5, **SMALL)
    for folder in (tmp_path / "all", tmp_path / "some"):
        assert verify(folder, deep=True, progress=False).not_compared == "its source, texts, was not given"
        result = verify(folder, deep=True, source=source, progress=False)
        assert (result.compared_files, result.not_compared) == (3, None)
    assert verify(tmp_path / "all", progress=False).compared_files is None


def test_a_source_that_has_changed_without_another_size_is_found(source: Path, tmp_path: Path) -> None:
    tokenize(source, tmp_path / "out", **SMALL)
    file = sorted(source.iterdir())[1]
    data = file.read_bytes()
    place = data.index(b"text 3 of 1")
    file.write_bytes(data[:place] + b"TEXT" + data[place + 4 :])
    if file.suffix == ".parquet":
        assert pq.read_table(file)["text"][3].as_py() == "TEXT 3 of 1"
    with pytest.raises(ShardError, match=rf"does not hold what {file.name} gives from its row 0 on, 3\d tokens later"):
        verify(tmp_path / "out", deep=True, source=source, progress=False)
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "out"), "--deep", "--source", str(source)])
    assert done.exit_code == 1


def test_places_from_all_over_a_parquet_file_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_source, "_CHUNK_BYTES", 60)  # a row group at a time
    write(tmp_path / "texts", "a.parquet", [{"text": f"text {row}", "n": row} for row in range(320)])
    tokenize(tmp_path / "texts", tmp_path / "all", **SMALL)
    tokenize(tmp_path / "texts", tmp_path / "some", where="n >= 5", sample=0.5, max_docs=130, **SMALL)
    for folder, places in (("all", 16), ("some", 12)):
        result = verify(tmp_path / folder, deep=True, source=tmp_path / "texts", progress=False)
        assert result.compared_files == 1
        assert (result.compared_places or 0) >= places
    file = tmp_path / "texts" / "a.parquet"
    data = file.read_bytes()
    place = data.index(b"text 228")
    file.write_bytes(data[:place] + b"TEXT" + data[place + 4 :])
    with pytest.raises(ShardError, match=r"what a\.parquet gives from its row 220 on, 7\d tokens later"):
        verify(tmp_path / "all", deep=True, source=tmp_path / "texts", progress=False)


def test_another_source_is_refused_and_so_is_one_that_nothing_looks_at(source: Path, tmp_path: Path) -> None:
    tokenize(source, tmp_path / "out", **SMALL)
    with pytest.raises(UsageError, match="source is looked at with deep=True"):
        verify(tmp_path / "out", source=source, progress=False)
    last = sorted(source.iterdir())[2]
    last.rename(last.with_name(f"9{last.suffix}"))
    with pytest.raises(UsageError, match=rf"it has 9{last.suffix} of .*, expected 2{last.suffix} of "):
        verify(tmp_path / "out", deep=True, source=source, progress=False)
    (source / f"9{last.suffix}").unlink()
    with pytest.raises(UsageError, match="it has 2 files, expected 3"):
        verify(tmp_path / "out", deep=True, source=source, progress=False)


def test_what_cannot_be_made_again_is_not_compared(source: Path, tmp_path: Path) -> None:
    tokenize(source, tmp_path / "out", transform=str.upper, **SMALL)
    result = verify(tmp_path / "out", deep=True, source=source, progress=False)
    assert result.not_compared == "it was made with transform, which is not in the manifest"
    assert result.compared_files == 0


def test_a_repo_is_compared_with_a_dataset_of_the_hub(source: Path, tmp_path: Path, hub: HubServer) -> None:
    hub.seed_repo("alice/texts", {file.name: file.read_bytes() for file in source.iterdir()})
    tokenize("alice/texts", tmp_path / "out", **SMALL)
    push(tmp_path / "out", "alice/tokens", progress=False)
    hub.seed_repo("alice/texts", {file.name: b"" for file in source.iterdir()})  # another commit
    result = verify("alice/tokens", deep=True, source="alice/texts", progress=False)
    assert result.compared_files == 3
