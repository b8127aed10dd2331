"""`convert` as people call it: of a tokenized dataset, with a tokenizer for what others made, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shardkit import Manifest, Tokenizer, UsageError, convert, peek, tokenize, verify
from shardkit.cli import main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "a"
    texts = [f"text number {number}, which is not long" for number in range(40)]
    tokenize(texts, folder, tokenizer="bytes", shard_tokens=400, workers=1, progress=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("to", ["llmc", "megatron", "parquet"])
def test_a_tokenized_dataset_comes_back_with_manifest_and_tokenizer(dataset: Path, tmp_path: Path, to: str) -> None:
    done = CliRunner().invoke(main, ["convert", str(dataset), str(tmp_path / "b"), "--to", to, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 40
    calls: list[tuple[str, int, int]] = []
    back = convert(tmp_path / "b", tmp_path / "c", to="npy", progress=lambda *call: calls.append(call))
    assert contents(tmp_path / "c") == contents(dataset)
    assert back.manifest == Manifest.load(dataset)
    assert back.documents == 40
    assert calls[-1][1:] == (2 * back.manifest.tokens,) * 2


def test_files_of_others_become_a_whole_dataset_with_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer("bytes")
    ids = [i for text in ("one", "two") for i in (*tokenizer.encode_ordinary(text), tokenizer.eot_id)]
    (tmp_path / "n").mkdir()
    np.array(ids, "<u2").tofile(tmp_path / "n" / "train.bin")
    made = convert(tmp_path / "n", tmp_path / "a", to="npy", tokenizer="bytes", progress=False)
    assert made.manifest is not None
    assert made.manifest.directory == tmp_path / "a"
    assert verify(tmp_path / "a").verified
    assert peek(tmp_path / "a", document=1).text == "two"


def test_the_command_says_what_was_made_and_what_to_do_next(dataset: Path, tmp_path: Path) -> None:
    words = ["convert", str(dataset), str(tmp_path / "b"), "--to", "npy"]
    done = CliRunner().invoke(main, [*words, "--shard-tokens", "1k"])
    assert done.exit_code == 0, done.stderr
    assert "source format: npy" in done.stdout
    assert f"shardkit peek {tmp_path / 'b'}" in done.stdout
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1
    assert again.stderr.startswith(f"error: {tmp_path / 'b'} is not an empty folder")


def test_what_cannot_be_is_refused(dataset: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"to": "tfrecord"}, "expected one of npy, llmc"),
        ({"to": "npy", "dtype": "int32"}, "expected uint16 or uint32"),
        ({"to": "npy", "shard_tokens": 0}, "shard_tokens is 0"),
        ({"to": "npy", "tokenizer": "bytes", "eot_id": 3}, "leave one of the two out"),
    ):
        with pytest.raises(UsageError, match=message):
            convert(dataset, tmp_path / "out", progress=False, **options)
    assert not list(tmp_path.iterdir())
