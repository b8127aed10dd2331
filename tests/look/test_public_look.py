"""`info`, `verify` and `peek` in Python: the command line's options, plain results, and numbers in its JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shardkit import Manifest, ShardkitError, UsageError, info, peek, tokenize, verify
from shardkit.cli import main
from shardkit.look.peek import PeekedDocument, PeekedRow

TEXTS = [f"Document number {number} says {'more and ' * (number % 7)}nothing." for number in range(60)]
ROW = {"step": 1, "row": 1, "batch_size": 2, "seq_len": 16}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    tokenize(str(folder / "a.jsonl"), folder / "out", shard_tokens=300, workers=1)
    return folder / "out"


def said(*words: object) -> Any:
    """What a command prints with `--json`."""
    done = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_info_gives_numbers_in_python_and_in_json(dataset: Path) -> None:
    found, manifest = info(str(dataset)), Manifest.load(dataset)
    sizes = {split: sum(shard.bytes for shard in shards) for split, shards in manifest.splits.items()}
    assert {split.split: split.bytes for split in found.splits} == sizes
    assert found.tokenizer == manifest.tokenizer
    as_json = said("info", dataset)
    assert as_json["tokens"] == found.tokens == manifest.tokens
    assert as_json["tokenizer"]["vocab_size"] == 50257
    for split in as_json["splits"]:
        assert [type(split[name]) for name in ("shards", "tokens", "documents", "bytes")] == [int] * 4


def test_info_says_the_same_to_people_in_words(dataset: Path) -> None:
    lines = CliRunner().invoke(main, ["info", str(dataset)]).stdout.splitlines()
    assert "tokenizer: gpt2 (50,257 ids, EOT 50256)" in lines
    assert [line for line in lines if line.startswith("  val  1 shard  300 tokens  ")]


def test_verify_gives_what_was_checked(dataset: Path) -> None:
    assert verify(dataset).verified
    assert verify(dataset, hashes=False).shards_without_hash == len(Manifest.load(dataset).shards)
    assert said("verify", dataset)["verified"] is True


def test_peek_gives_a_document_or_a_row(dataset: Path) -> None:
    document, row = peek(dataset, document=5), peek(dataset, **ROW)  # type: ignore[arg-type]
    assert isinstance(document, PeekedDocument)
    assert isinstance(row, PeekedRow)
    assert (document.text, document.source_row) == (TEXTS[5], 5)
    assert peek(dataset, document=5, tokens=2).text == "Document number"
    assert sum(part.tokens for part in row.documents) == row.tokens == 16
    found = said("peek", dataset, "--step", 1, "--row", 1, "--batch-size", 2, "--seq-len", 16)
    assert found["text"] == row.text
    assert {type(part[name]) for part in found["documents"] for name in ("tokens", "offset", "document")} == {int}


def test_a_row_is_told_to_people_with_its_documents_and_their_source(dataset: Path) -> None:
    words = ["peek", str(dataset), "--step", "1", "--batch-size", "2", "--seq-len", "16"]
    lines = CliRunner().invoke(main, words).stdout.splitlines()
    assert [line for line in lines if line.startswith("  document ") and " a.jsonl row " in line]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give a dataset's DIR, or run=RUN with step=S"),
        ({"run": "x"}, "run= needs step=S"),
        ({"directory": "DIR", "step": 1}, "step= needs the loader's batch_size= and seq_len=, and no document="),
        ({"directory": "DIR", "document": 60}, "no document 60"),
        ({"directory": "DIR", "tokens": 0}, "tokens is 0: expected a whole number of at least 1"),
        ({"directory": "DIR", "seq_len": 0, "step": 0, "batch_size": 1}, "seq_len is 0"),
        ({"directory": [("DIR", 1.0)]}, "a document is one of a dataset's folder"),
    ],
)
def test_peek_says_what_it_needs_in_words_of_python(options: dict[str, Any], words: str, dataset: Path) -> None:
    given = {name: str(dataset) if value == "DIR" else value for name, value in options.items()}
    with pytest.raises(UsageError, match=words):
        peek(**given)


def test_a_folder_that_holds_no_dataset_is_one_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for look in (info, verify, peek):
        for place in (tmp_path, tmp_path / "none", tmp_path / "file"):
            with pytest.raises(ShardkitError):
                look(place)


def test_of_bare_shards_nobody_knows_the_documents_and_none_is_not_nought(dataset: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for shard in dataset.glob("*.npy"):
        shutil.copy(shard, bare)
    found = info(bare)
    assert (found.documents, found.splits[0].documents, verify(bare, progress=False).documents) == (None, None, None)
    shown = (
        f"{found} {verify(bare, progress=False)} {Manifest.of_folder(bare)!r} {Manifest.of_folder(bare)._repr_html_()}"
    )
    assert "document" not in shown
    assert found.tokens == info(dataset).tokens
    assert info(dataset).documents == 60


def test_info_says_which_rows_were_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "t {n}", "n": {n}}}\n' for n in range(40)))
    chosen: dict[str, Any] = {"where": "n >= 3", "skip_duplicates": True}
    for name, options in (("some", chosen), ("all", {})):
        tokenize(str(tmp_path / "a.jsonl"), tmp_path / name, tokenizer="bytes", progress=False, workers=1, **options)
    assert info(tmp_path / "some").made_with == "where n >= 3, skip-duplicates"
    assert "made with: where n >= 3, skip-duplicates" in str(info(tmp_path / "some"))
    assert info(tmp_path / "all").made_with is None
