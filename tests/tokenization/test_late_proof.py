"""A source of which nobody knows how long it is: the fast engine's proof is made once much has gone by, and not before.

Chunks are of 300 characters, of which at most eight are under way for two workers: what is decided after each piece
does not depend on who is faster.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reference import folder_bytes
from texts import prose
from vocabulary_data import train_vocabulary

from shardkit import Manifest, tokenize
from shardkit.errors import ShardkitWarning
from shardkit.tokenization import proving
from shardkit.tokenization.engines import Engine, make_reference, reference_engine
from shardkit.tokenization.proofs import find_proof

TEXTS = [text[:30] for text in prose(400)]
WORTH = 1_000
MANY = 12_000  # characters of all


@pytest.fixture(autouse=True)
def _quick_proofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(proving, "battery", lambda *_: [["a b", "it's", "\u1e07 \u00e9"]])
    monkeypatch.setattr(proving, "WORTH_BYTES", WORTH)


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    return train_vocabulary(tmp_path / "tokenizer.json", size=500)


def run(source: Any, out: Path, tokenizer: Path, **options: Any) -> tuple[Manifest, int, list[str]]:
    """The manifest, how many documents were audited, and what was said."""
    options = {"workers": 2, "shard_tokens": 5_000, "val_shards": 0, "prefix": "p", "chunk_bytes": 300, **options}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        manifest = tokenize(source, out, tokenizer=str(tokenizer), **options)
    audited = json.loads((out / ".shardkit" / "summary.json").read_text())["audited"]
    return manifest, audited, [str(warning.message) for warning in said if warning.category is ShardkitWarning]


def an_iterator(folder: Path) -> tuple[Iterator[str], dict[str, Any]]:
    return iter(TEXTS), {}


def a_pipe(folder: Path) -> tuple[Path, dict[str, Any]]:
    os.mkfifo(folder / "pipe")
    data = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    threading.Thread(target=(folder / "pipe").write_text, args=(data,), daemon=True).start()
    return folder / "pipe", {"format": "jsonl"}


@pytest.mark.parametrize("source_of", [an_iterator, a_pipe])
def test_when_much_has_gone_by_the_run_goes_on_with_the_fast_engine_and_the_same_bytes(
    source_of: Callable[[Path], tuple[Any, dict[str, Any]]], tmp_path: Path, vocabulary_file: Path
) -> None:
    assert sum(map(len, TEXTS)) == MANY
    source, options = source_of(tmp_path)
    made, audited, said = run(source, tmp_path / "late", vocabulary_file, **options)
    assert sum(line.startswith("comparing the fast engine") for line in said) == 1
    assert (made.encoder["engine"], made.documents) == ("fastokens", len(TEXTS))
    assert find_proof(made.encoder["proof"]) is not None
    assert audited > 0  # by workers that have the fast engine: the reference's are not
    expected, audited, _ = run(iter(TEXTS), tmp_path / "reference", vocabulary_file, encoder="tiktoken")
    assert (expected.encoder["engine"], audited) == ("tokenizers", 0)
    assert folder_bytes(tmp_path / "late") == folder_bytes(tmp_path / "reference")


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (TEXTS[:30], {}),  # less than is worth it
        (TEXTS[:40], {"chunk_bytes": 2_000}),  # all of it is under way before much has gone by
        (TEXTS, {"max_tokens": 2 * WORTH // 4 - 1}),  # not much is left
        (TEXTS, {"encoder": "tiktoken"}),
    ],
)
def test_a_short_source_pays_for_no_proof(
    texts: list[str], options: dict[str, Any], tmp_path: Path, vocabulary_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "prove", None)  # would fail
    made, _, said = run(iter(texts), tmp_path / "out", vocabulary_file, **options)
    assert made.encoder["engine"] == "tokenizers"
    assert not [line for line in said if line.startswith("comparing")]


def test_a_run_whose_engine_is_found_to_be_wrong_goes_on_with_the_reference(
    tmp_path: Path, vocabulary_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(vocabulary: Any) -> Engine:
        right = reference_engine(make_reference(vocabulary)).encode_batch
        return Engine("fastokens", "0", lambda texts: (right(texts)[0] + 1, right(texts)[1]))

    monkeypatch.setattr(proving, "fast_engine", wrong)
    made, audited, said = run(iter(TEXTS), tmp_path / "out", vocabulary_file)
    assert (made.encoder["engine"], audited) == ("tokenizers", 0)
    assert sum("is encoded by the reference, tokenizers " in line for line in said) == 1
