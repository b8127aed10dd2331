"""`--skip-duplicates` keeps the first of equal documents, whatever the workers, chunks and kills, and knows its row."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import folder_bytes, stream

import shardkit
from shardkit import Manifest, open_shard
from shardkit.dataset.journal import JOURNAL_FILE, Journal
from shardkit.dataset.manifest import WORK_DIR
from shardkit.errors import OutputError
from shardkit.look.info import info
from shardkit.look.run_summary import run_summary
from shardkit.remote.download import WantedFile, download_verified
from shardkit.remote.interface import Remote
from shardkit.tokenization import earlier_shards
from shardkit.tokenization.duplicates import Duplicates

OPTIONS: dict[str, Any] = {"tokenizer": "bytes", "shard_tokens": 700, "skip_duplicates": True, "prefix": "x"}
tokenize = partial(shardkit.tokenize, **OPTIONS)


def tokens_of(folder: Path) -> np.ndarray:
    return np.concatenate([open_shard(folder / shard.file) for shard in Manifest.load(folder).shards])


class Stopped(Exception):
    """What ends a run in the middle."""


def stop(at: int, progress: Any) -> None:
    if progress.shards >= at:
        raise Stopped


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows of some 250 texts, with blank lines among them."""
    folder, random = tmp_path_factory.mktemp("lines"), np.random.default_rng(0)
    rows = [f"text {number}" * (1 + number % 3) for number in random.zipf(1.3, 2000) % 400]
    texts = [json.dumps({"text": row}) if number % 50 else "" for number, row in enumerate(rows)]
    (folder / "a.jsonl").write_text("\n".join(texts[:1200]))
    (folder / "b.jsonl").write_text("\n".join(texts[1200:]))
    return folder


def first_rows(folder: Path) -> dict[str, tuple[str, int]]:
    """Each text, and the file and line where it is first."""
    found: dict[str, tuple[str, int]] = {}
    for name in ("a.jsonl", "b.jsonl"):
        for row, line in enumerate((folder / name).read_text().split("\n")):
            if line:
                found.setdefault(json.loads(line)["text"], (name, row))
    return found


def test_the_first_of_equal_documents_stays_and_every_row_is_known(lines: Path, tmp_path: Path) -> None:
    expected = first_rows(lines)
    assert 100 < len(expected) < 300
    for workers, chunk_bytes in ((1, 8 << 20), (2, 900)):
        out = tmp_path / f"{workers}"
        manifest = tokenize(lines, out, workers=workers, chunk_bytes=chunk_bytes)
        assert tokens_of(out).tolist() == stream(expected, "bytes").tolist()
        assert manifest.source is not None
        assert manifest.source.options == {"skip_duplicates": True}
        rows = [(f.path, f.row_of(number)) for f in manifest.source.files for number in range(f.documents)]
        assert rows == list(expected.values())
        assert [file.rows for file in manifest.source.files] == [1200, 800]
        assert [file.skipped for file in manifest.source.files] == [
            file.rows - file.documents for file in manifest.source.files
        ]
        blank = 40  # lines
        assert manifest.skipped_duplicates == 2000 - blank - len(expected)
        summary = run_summary(manifest, None, 1.0)
        assert (summary["skipped_rows"], summary["skipped_duplicates"]) == (
            2000 - len(expected),
            manifest.skipped_duplicates,
        )
        assert f"skipped duplicates: {2000 - blank - len(expected):,}" in str(info(out))
    limited = tokenize(lines, tmp_path / "limited", workers=1, max_docs=40)
    assert limited.documents == 40
    assert tokens_of(tmp_path / "limited").tolist() == stream([*expected][:40], "bytes").tolist()
    name, last = [*expected.values()][39]
    assert name == "a.jsonl"
    rows_up_to_there = sum(map(bool, (lines / "a.jsonl").read_text().split("\n")[: last + 1]))
    assert limited.skipped_duplicates == rows_up_to_there - 40


def test_a_run_that_was_stopped_knows_what_is_in_its_shards(lines: Path, tmp_path: Path) -> None:
    tokenize(lines, tmp_path / "whole", workers=1, chunk_bytes=900)
    for at in (1, 2, 4):
        with pytest.raises(Stopped):
            tokenize(lines, tmp_path / "out", workers=1, chunk_bytes=900, progress=partial(stop, at))
    with pytest.raises(OutputError, match="holds another run with .*skip duplicates: true there, null now"):
        tokenize(lines, tmp_path / "out", workers=1, chunk_bytes=900, skip_duplicates=False)
    identity = json.loads((tmp_path / "out" / JOURNAL_FILE).read_text().splitlines()[0])["identity"]
    with pytest.raises(OutputError, match="skip_duplicates=True reads the finished shards to go on: .*overwrite"):
        Duplicates(tmp_path / "elsewhere", Journal.open(tmp_path / "out", identity), 256)  # pushed, say, and removed
    assert tokenize(lines, tmp_path / "out", workers=1, chunk_bytes=900) == Manifest.load(tmp_path / "whole")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_a_count_of_duplicates_is_only_where_there_was_one(lines: Path, tmp_path: Path) -> None:
    """Manifests and journals of other runs keep their bytes, and those of before there was a count are read."""
    whole = tokenize(lines, tmp_path / "all", workers=1, skip_duplicates=False)
    assert "duplicates" not in (tmp_path / "all" / "manifest.json").read_text()
    assert "duplicates" not in (tmp_path / "all" / JOURNAL_FILE).read_text().partition("\n")[2]
    assert (whole.skipped_duplicates, run_summary(whole, None, 1.0)["skipped_duplicates"]) == (None, None)
    manifest = tokenize(lines, tmp_path / "some", workers=1)
    stated = json.loads((tmp_path / "some" / "manifest.json").read_text())
    for file in stated["source"]["files"]:
        del file["duplicates"]
    before = Manifest.from_json(json.dumps(stated))
    assert (before.skipped_duplicates, before.documents) == (None, manifest.documents)  # not 0


def test_on_an_empty_machine_the_shards_are_read_from_the_remote(
    hub: Any, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small disk or without: of a run that goes on nothing but its remote need be there."""
    fetched: list[str] = []

    def fetch(remote: Remote, item: WantedFile, folder: Path, target: Path) -> None:
        assert sum(path.is_file() for path in folder.parent.rglob("*")) <= 1  # with the one that comes two
        fetched.append(item.file)
        download_verified(remote, item, folder, target)

    monkeypatch.setattr(earlier_shards, "download_verified", fetch)
    for name in ("a.jsonl", "b.jsonl"):
        rows = (lines / name).read_text().split("\n")
        long = [json.dumps({"text": json.loads(row)["text"] * 20}) for row in rows if row]
        (tmp_path / name).write_text("\n".join(long))
    source = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    go_on = partial(tokenize, source, workers=1, chunk_bytes=20_000, shard_tokens=9_000)
    whole = go_on(tmp_path / "whole")
    small = 2 * whole.shards[0].bytes + 30_000
    for number, last_disk in enumerate((small, None)):
        for at in (4, 7):
            place = tmp_path / f"{number} {at}"
            with pytest.raises(Stopped):
                go_on(place, push=f"alice/{number}", max_disk=small, progress=partial(stop, at))
        out, before = tmp_path / f"{number} end", len(fetched)
        assert go_on(out, push=f"alice/{number}", max_disk=last_disk) == whole
        assert len(fetched) >= before + 3
        assert not (out / WORK_DIR / "earlier").exists()
        assert folder_bytes(out) == ({} if last_disk else folder_bytes(tmp_path / "whole"))
        shardkit.pull(f"alice/{number}", tmp_path / f"{number} pulled")
        assert folder_bytes(tmp_path / f"{number} pulled") == folder_bytes(tmp_path / "whole")


def test_text_files_are_compared_too_but_for_those_that_come_in_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = ["short", "long " * 50, "short", "long " * 50, "other", ""]
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    manifest = tokenize(folder, tmp_path / "out", workers=1)
    assert tokens_of(tmp_path / "out").tolist() == stream(["short", "long " * 50, "other", ""], "bytes").tolist()
    assert manifest.source is not None
    assert [file.documents for file in manifest.source.files] == [1, 1, 0, 0, 1, 1]
    long = "ab " * 1_500_000
    (tmp_path / "1.txt").write_text(long)
    (tmp_path / "2.txt").write_text(long)
    (tmp_path / "3.jsonl").write_text(json.dumps({"text": long}))
    sources = [tmp_path / name for name in ("1.txt", "2.txt", "3.jsonl")]
    manifest = tokenize(sources, tmp_path / "long", workers=1, shard_tokens=1 << 22)
    assert manifest.source is not None
    assert [file.documents for file in manifest.source.files] == [1, 1, 0]
