"""A source that changes in a run, or between two, is never mixed into one dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tokenizers
from file_server import serving
from reference import folder_bytes, shard_bytes

from shardkit import Manifest, network, tokenize
from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.errors import OutputError, ShardkitWarning, SourceError
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.worker import Job

OPTIONS: dict[str, Any] = {
    "tokenizer": "bytes",
    "shard_tokens": 8000,
    "prefix": "p",
    "workers": 2,
    "chunk_bytes": 1 << 13,
}


def texts(word: str) -> list[str]:
    return [f"{number:05} {word} and some more words of no meaning" for number in range(3000)]


def write(path: Path, word: str) -> None:
    """The file, put in place of what is there, as a download does it; of one size for words of one length."""
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(word)))
    os.replace(new, path)


def after(shards: int, act: Callable[[], None]) -> Callable[[TokenizeProgress], None]:
    """A progress callback that acts once that many shards are done."""
    done = []

    def call(progress: TokenizeProgress) -> None:
        if progress.shards >= shards and not done:
            done.append(True)
            act()

    return call


def holds_only(out: Path, expected: dict[str, bytes]) -> bool:
    """Whether each shard in the folder is the one that is expected, and some but not all of them are there."""
    there = folder_bytes(out)
    return 0 < len(there) < len(expected) and all(expected[name] == data for name, data in there.items())


def test_a_file_that_is_replaced_in_a_run_stops_it_and_no_shard_holds_a_token_of_the_new_one(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    write(source, "older")
    with pytest.raises(SourceError, match=r"a\.jsonl has changed since the run began .*overwrite=True"):
        tokenize(source, out, progress=after(3, lambda: write(source, "newer")), **OPTIONS)
    assert holds_only(out, shard_bytes(texts("older"), 8000, "p", tokenizer="bytes"))
    assert not (out / "manifest.json").exists()
    with pytest.raises(OutputError, match=r"source file a\.jsonl: \d+ bytes, modified \d+, inode \d+ then, .* now"):
        tokenize(source, out, **OPTIONS)
    tokenize(source, out, overwrite=True, **OPTIONS)
    assert folder_bytes(out) == shard_bytes(texts("newer"), 8000, "p", tokenizer="bytes")


class Stop(Exception):
    """Ends a run from its progress callback."""


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("place", ["folder", "http"])
def test_a_stopped_run_does_not_go_on_with_another_file_of_the_same_name_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    out = tmp_path / "out"
    with serving(tmp_path) as server:
        server.states = "ETag"
        source = str(tmp_path / "a.jsonl") if place == "folder" else f"{server.url}/a.jsonl"
        write(tmp_path / "a.jsonl", "older")
        with pytest.raises(Stop):
            tokenize(source, out, progress=after(3, stop), **OPTIONS)
        before = folder_bytes(out)
        write(tmp_path / "a.jsonl", "newer")
        with pytest.raises(OutputError, match=r"source file a\.jsonl: .* then, .* now"):
            tokenize(source, out, **OPTIONS)
    assert folder_bytes(out) == before
    assert holds_only(out, shard_bytes(texts("older"), 8000, "p", tokenizer="bytes"))


def test_texts_that_are_fewer_than_before_the_stop_are_refused(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(texts("older"), tmp_path / "out", progress=after(5, stop), **OPTIONS)
    with pytest.raises(SourceError, match="the source gives other texts than when the run began: .* overwrite=True"):
        tokenize(texts("older")[:500], tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_workers_use_the_tokenizer_file_that_the_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "tokenizer.json", tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2}, "a")
    tokenizers.Tokenizer(model).save(str(path))
    job = RunSpec.job

    def late(spec: RunSpec) -> Job:  # an update of the file while the workers start
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"b": 0, "a": 1, "</s>": 2}, "a")).save(str(path))
        return job(spec)

    monkeypatch.setattr(RunSpec, "job", late)
    manifest = tokenize(["a", "b"], tmp_path / "out", tokenizer=str(path), val_shards=0, workers=1)
    assert np.load(tmp_path / "out" / manifest.shards[0].file).tolist() == [2, 0, 2, 1]


def test_when_a_source_was_written_is_not_in_the_manifest(tmp_path: Path) -> None:
    for out in ("a", "b"):
        write(tmp_path / "a.jsonl", "words")  # a new inode and time
        tokenize(tmp_path / "a.jsonl", tmp_path / out, **OPTIONS)
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()
    assert Manifest.load(tmp_path / "a") == Manifest.load(tmp_path / "b")


def test_a_list_of_paths_is_tokenized_as_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    sources = [tmp_path / "b.txt", tmp_path / "a.txt"]
    manifest = tokenize(sources, tmp_path / "out", shard_tokens=4, workers=1, prefix="p")
    assert manifest.source is not None
    assert [file.path for file in manifest.source.files] == ["b.txt", "a.txt"]
    assert folder_bytes(tmp_path / "out") == shard_bytes(["text of b", "text of a"], 4, "p")


SMALL: dict[str, Any] = {"tokenizer": "bytes", "workers": 1, "chunk_bytes": 64, "shard_tokens": 40, "progress": False}
THEN = ["one text", "and another", "", "a third", *[f"text number {number}" for number in range(20)]]
CHANGES = {
    "one letter": ["One text", *THEN[1:]],
    "an earlier end": THEN[:-1],
    "one more": [*THEN, "more"],
    "another cut between texts": ["one textand", " another", *THEN[2:]],
    "another order": [THEN[1], THEN[0], *THEN[2:]],
    "nothing": [],
}


def kinds(texts: list[str]) -> dict[str, Any]:
    """The texts as each kind of iterable that can be read again."""
    rows = {"text": texts}
    return {
        "list": texts,
        "tuple": tuple(texts),
        "pandas": pd.DataFrame(rows, dtype=object),
        "pyarrow": pa.chunked_array([pa.array(texts, pa.string())]),
        "dataset": datasets.Dataset.from_dict(rows, features=datasets.Features(text=datasets.Value("string"))),
    }


@pytest.mark.parametrize("kind", kinds(THEN))
@pytest.mark.filterwarnings("error")
def test_a_finished_dataset_is_returned_for_the_same_texts_and_refused_for_others(tmp_path: Path, kind: str) -> None:
    first = tokenize(kinds(THEN)[kind], tmp_path, **SMALL)
    before = folder_bytes(tmp_path)
    assert tokenize(kinds(THEN)[kind], tmp_path, **SMALL) == first
    for change, texts in CHANGES.items():
        with pytest.raises(OutputError, match=r"the source gives other texts than when .* overwrite=True"):
            pytest.fail(f"{change} is not seen: {tokenize(kinds(texts)[kind], tmp_path, **SMALL)}")
    assert folder_bytes(tmp_path) == before


def test_with_a_limit_the_texts_count_as_far_as_the_stream_went(tmp_path: Path) -> None:
    first = tokenize(THEN, tmp_path, max_docs=3, **SMALL)
    assert tokenize([*THEN, "more"], tmp_path, max_docs=3, **SMALL) == first
    unknown = pytest.warns(ShardkitWarning, match=r"whether the list gives the texts .* is not known; overwrite=True")
    with unknown:
        assert tokenize(["One text", *THEN[1:]], tmp_path, max_docs=3, **SMALL) == first
    with unknown:  # what has changed came with the last one that was used, and may be past the limit
        assert tokenize([*THEN[:3], "more"], tmp_path, max_docs=3, **SMALL) == first


def test_a_finished_dataset_of_a_generator_is_returned_with_a_warning_that_it_is_not_compared(tmp_path: Path) -> None:
    first = tokenize(iter(THEN), tmp_path, **SMALL)
    with pytest.warns(ShardkitWarning, match=r"whether the list_iterator gives the texts .* is not known"):
        assert tokenize(iter(["other"]), tmp_path, **SMALL) == first


@pytest.mark.parametrize("read", [list, iter])
def test_a_stopped_run_does_not_go_on_with_other_texts(tmp_path: Path, read: Callable[[list[str]], Any]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    tokenize(THEN, whole, **SMALL)
    with pytest.raises(Stop):
        tokenize(read(THEN), out, **{**SMALL, "progress": after(4, stop)})
    with pytest.raises(SourceError, match="other texts than when the run began"):
        tokenize(read(CHANGES["one letter"]), out, **SMALL)
    tokenize(read(THEN), out, **SMALL)
    assert folder_bytes(out) == folder_bytes(whole)


def test_a_dataset_of_an_earlier_build_which_has_no_hash_is_returned(tmp_path: Path) -> None:
    first = tokenize(THEN, tmp_path, **SMALL)
    path = tmp_path / JOURNAL_FILE
    check, lines = CheckedLines(), CheckedLines().unseal(path.read_bytes().splitlines(keepends=True))
    for line in lines[1:]:
        del line["next"]["digest"]
    path.write_bytes(b"".join(map(check.seal, lines)))
    assert tokenize(THEN, tmp_path, **SMALL) == first


def test_a_dataset_that_was_pushed_is_not_gone_on_with_for_other_texts(tmp_path: Path) -> None:
    options = {**SMALL, "push": str(tmp_path / "far")}
    first = tokenize(THEN, tmp_path / "out", **options)
    assert tokenize(THEN, tmp_path / "out", **options) == first
    with pytest.raises(OutputError, match="other texts .*: to make a dataset of these, push= to another place"):
        tokenize(CHANGES["one letter"], tmp_path / "out", **options)
    for out, more in (("empty", {}), ("out", {"overwrite": True})):  # the place does not know
        with pytest.warns(
            ShardkitWarning, match=r"far is finished .* is not known; to make .*, push= to another place"
        ):
            assert tokenize(CHANGES["one letter"], tmp_path / out, **options, **more) == first
    made = tokenize(CHANGES["one letter"], tmp_path / "other", **{**options, "push": str(tmp_path / "another")})
    assert made.fingerprint != first.fingerprint


def test_texts_that_changed_after_a_kill_between_the_two_of_an_only_shard_are_refused(tmp_path: Path) -> None:
    options = {**SMALL, "shard_tokens": 10**6}
    whole = tokenize(THEN, tmp_path, **options)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / whole.shards[1].file).unlink()
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(SourceError, match="other texts than when the run began"):
        tokenize(CHANGES["one letter"], tmp_path, **options)
    assert tokenize(THEN, tmp_path, **options) == whole
