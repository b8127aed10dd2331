"""A run that reads some rows gives the bytes of one on a file that pyarrow filtered before, and knows every row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from reference import folder_bytes

import shardkit
from shardkit import Manifest
from shardkit.dataset import records
from shardkit.dataset.documents import locate_token
from shardkit.dataset.token_stream import open_split
from shardkit.errors import OutputError, ShardkitWarning, SourceError

COUNT = 8_000
WHERE = "score >= 2 and lang == 'en'"
tokenize = partial(shardkit.tokenize, tokenizer="bytes", shard_tokens=5_000, chunk_bytes=1 << 15)


@pytest.fixture(scope="module", autouse=True)
def few_are_listed() -> Iterator[None]:
    """Fewer runs of skipped rows are listed than there are here: the others are in maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "LISTED_RUNS", 50)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file in row groups, of which statistics rule some out, and the same in lines, with blank and bad ones
    among them."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    table = pa.table(
        {
            "text": [f"document {n}" for n in range(COUNT)],
            "score": np.where(np.arange(COUNT) // 400 % 5 == 1, 1.0, random.random(COUNT) * 4),
            "lang": random.choice(["en", "de"], COUNT),
        }
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=400)
    lines = [json.dumps(row) for row in table.to_pylist()]
    for at in range(70, COUNT, 500):
        lines[at] = "{bad" if at % 1000 == 70 else ""
    (folder / "b.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of both files under all that chooses rows."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.warns(ShardkitWarning, match="skipped b.jsonl, line"):
        tokenize([corpus / "a.parquet", corpus / "b.jsonl"], out, **CHOSEN, workers=1)
    return out


CHOSEN: dict[str, Any] = {"where": WHERE, "sample": 0.6, "skip_bad_rows": True, "prefix": "x"}


def test_where_gives_the_bytes_of_a_file_that_was_filtered_before(corpus: Path, tmp_path: Path) -> None:
    kept = pq.read_table(corpus / "a.parquet").filter((pc.field("score") >= 2) & (pc.field("lang") == "en"))
    pq.write_table(kept, tmp_path / "filtered.parquet")
    manifest = tokenize(corpus / "a.parquet", tmp_path / "ours", where=WHERE, prefix="x", workers=2)
    before = tokenize(tmp_path / "filtered.parquet", tmp_path / "before", prefix="x", workers=1)
    assert len(manifest.shards) > 3
    assert manifest.fingerprint == before.fingerprint
    assert manifest.source is not None
    assert manifest.source.options == {"where": WHERE}
    (file,) = manifest.source.files
    assert (file.rows, file.documents, file.skipped) == (COUNT, len(kept), COUNT - len(kept))


def test_tokens_under_all_filters_are_traced_to_their_rows(corpus: Path, whole: Path) -> None:
    manifest = Manifest.load(whole)
    assert manifest.source is not None
    assert all(file.skipped_maps and not file.unlisted_rows for file in manifest.source.files)
    assert manifest.source.options == {key: value for key, value in CHOSEN.items() if key != "prefix"}
    texts = {
        "a.parquet": pq.read_table(corpus / "a.parquet")["text"].to_pylist(),
        "b.jsonl": (corpus / "b.jsonl").read_text().split("\n"),
    }
    _, stream = open_split(whole, "train", verify=False)
    tokens = np.empty(stream.tokens, stream.dtype)
    stream.read(0, tokens)
    assert manifest.tokenizer is not None
    starts = np.flatnonzero(tokens == manifest.tokenizer.eot_id)
    for token in np.random.default_rng(0).choice(starts[:-1], 300).tolist():
        end = int(starts[np.searchsorted(starts, token) + 1])
        found = locate_token(manifest, stream, token + 1)
        assert found.source_file is not None
        assert found.source_row is not None
        row = texts[found.source_file][found.source_row]
        text = json.loads(row)["text"] if found.source_file == "b.jsonl" else row
        assert bytes(tokens[token + 1 : end].astype(np.uint8)).decode() == text
    for file in manifest.source.files:  # and each document of each file
        rows = [file.row_of(number) for number in range(file.documents)]
        assert rows == sorted(set(rows))  # type: ignore[type-var]


@pytest.mark.filterwarnings("ignore:skipped b.jsonl")
def test_workers_and_kills_change_nothing(corpus: Path, whole: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        """What ends a run in the middle."""

    def stop(at: int, progress: Any) -> None:
        if progress.shards >= at:
            raise Stopped

    sources = [corpus / "a.parquet", corpus / "b.jsonl"]
    for at in (2, 4):
        with pytest.raises(Stopped):
            tokenize(sources, tmp_path / "out", **CHOSEN, workers=2, progress=partial(stop, at))
    for other in ({"where": "score >= 2"}, {"sample": 0.5}, {"where": None}, {"sample": None}):
        with pytest.raises(OutputError, match=f"holds another run with .*{next(iter(other))}: "):
            tokenize(sources, tmp_path / "out", **CHOSEN | other, workers=1)
    tokenize(sources, tmp_path / "out", **CHOSEN, workers=3)
    assert folder_bytes(tmp_path / "out") == folder_bytes(whole)


def test_a_run_whose_filters_leave_nothing_says_which_they_are(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="where= left none of the source's 8,000 rows: nothing was written$"):
        tokenize(corpus / "a.parquet", tmp_path / "out", where="score > 9", workers=1)
    (tmp_path / "a.json").write_text('[{"text": "x", "score": 1}]')
    with pytest.raises(SourceError, match=r"1 row: nothing was written \(a field that a row .* right\? scoer, lang\)"):
        tokenize(tmp_path / "a.json", tmp_path / "out", where="scoer > 9 and lang == 'en'", workers=1)
    assert not (tmp_path / "out").exists()


def test_runs_that_read_all_rows_are_called_what_they_were(corpus: Path, tmp_path: Path) -> None:
    tokenize(corpus / "a.parquet", tmp_path / "out", max_docs=10, workers=1)
    identity = json.loads((tmp_path / "out" / ".shardkit" / "journal.jsonl").read_text().splitlines()[0])["identity"]
    assert not {"where", "sample", "include", "sources"} & identity.keys()
    assert "skipped_maps" not in (tmp_path / "out" / "manifest.json").read_text()


def test_lines_come_through_a_pipe_of_the_shell(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"document {n}", "n": n}) + "\n" for n in range(9))
    command = [sys.executable, "-m", "shardkit", "tokenize", "-", "--format", "jsonl", "--where", "n > 5"]
    command += ["--tokenizer", "bytes", "--out", str(tmp_path / "out"), "--workers", "1", "--json"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["documents"] == 3
    assert "warning: stdin is read once" in done.stderr
    again = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    assert "is finished and stays as it is: whether the Pipe gives the texts that it was made of is not known" in (
        again.stderr
    )
