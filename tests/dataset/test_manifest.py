"""`manifest.json`: the same bytes for the same dataset, and nothing damaged or edited is believed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit import Manifest
from shardkit.dataset.manifest import ShardInfo, SourceFile, SourceInfo, TokenizerInfo
from shardkit.errors import ManifestError, ShardError


def shard(index: int, split: str = "train", tokens: int = 10, **changes: Any) -> ShardInfo:
    fields: dict[str, Any] = {
        "file": f"x_{split}_{index:06d}.npy",
        "split": split,
        "index": index,
        "tokens": tokens,
        "documents": 2,
        "first_document": 2 * index,
        "sha256": f"{index:064x}",
        "bytes": 128 + 2 * tokens,
    }
    return ShardInfo(**{**fields, **changes})


FULL = Manifest(
    shardkit_version="0.1.0",
    dtype="uint16",
    tokens_per_shard=10,
    shards=(shard(0, "val"), shard(1), shard(2, tokens=7)),
    tokenizer=TokenizerInfo(name="gpt2", vocab_size=50257, eot_id=50256, ranks_sha256="ab" * 32),
    encoder={"engine": "fastokens", "version": "0.3.5"},
    source=SourceInfo(
        id="user/naïve",
        config="default",
        split="train",
        revision="c" * 40,
        text_field="text",
        files=(SourceFile(path="a.jsonl", bytes=99, rows=7, documents=6, tokens=27, skipped_rows=(3,)),),
        options={"max_docs": 6},
    ),
)

GOLDEN = """{
 "dtype": "uint16",
 "tokens_per_shard": 10,
 "shards": [
  {
   "file": "x_val_000000.npy",
   "split": "val",
   "index": 0,
   "tokens": 10,
   "documents": 2,
   "first_document": 0,
   "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
   "bytes": 148
  }
 ],
 "tokenizer": null,
 "source": null,
 "encoder": {},
 "shardkit_version": "",
 "format_version": 1,
 "tokens": 10,
 "documents": 2,
 "fingerprint": "0ede718cc2e62a2e41833316144fbdeb3004512278a11d6797ea439b54429ca4"
}
"""


def test_the_text_of_a_manifest_is_frozen() -> None:
    assert Manifest(dtype="uint16", tokens_per_shard=10, shards=(shard(0, "val"),)).to_json() == GOLDEN


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    FULL.save(tmp_path)
    assert Manifest.load(tmp_path) == FULL
    assert Manifest.load(tmp_path / "manifest.json") == FULL
    assert Manifest.load(tmp_path).to_json() == (tmp_path / "manifest.json").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


@given(
    st.lists(st.integers(1, 10**12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=5),
    st.text(max_size=20).filter(lambda t: t.isprintable()),
    st.lists(st.integers(0, 10**9), max_size=5),
)
def test_any_manifest_survives_its_text(shards: list[tuple[int, int]], name: str, skipped: list[int]) -> None:
    first = [0, *accumulate(documents for _, documents in shards)]
    manifest = dataclasses.replace(
        FULL,
        tokens_per_shard=10**12,
        shards=tuple(
            shard(i, tokens=tokens, documents=documents, first_document=first[i])
            for i, (tokens, documents) in enumerate(shards)
        ),
        source=SourceInfo(id=name, files=(SourceFile(path=name, bytes=1, skipped_rows=tuple(skipped)),)),
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_totals_and_splits_follow_from_the_shards() -> None:
    assert (FULL.tokens, FULL.documents) == (27, 6)
    assert {name: [s.index for s in shards] for name, shards in FULL.splits.items()} == {"val": [0], "train": [1, 2]}


def test_the_fingerprint_is_of_what_decides_batches_and_of_nothing_else() -> None:
    other_source = dataclasses.replace(FULL, source=None, encoder={}, shardkit_version="9", tokenizer=None)
    assert other_source.fingerprint == FULL.fingerprint
    renamed = dataclasses.replace(FULL, shards=tuple(dataclasses.replace(s, file="y_" + s.file) for s in FULL.shards))
    assert renamed.fingerprint == FULL.fingerprint
    changes: list[Callable[[], Manifest]] = [
        lambda: dataclasses.replace(FULL, dtype="uint32"),
        lambda: dataclasses.replace(FULL, shards=FULL.shards[::-1]),
        lambda: dataclasses.replace(FULL, shards=FULL.shards[:-1]),
        lambda: dataclasses.replace(FULL, shards=(shard(0, "train"), *FULL.shards[1:])),
        lambda: dataclasses.replace(FULL, shards=(shard(0, "val", tokens=9), *FULL.shards[1:])),
        lambda: dataclasses.replace(FULL, shards=(shard(0, "val", sha256="f" * 64), *FULL.shards[1:])),
    ]
    assert len({FULL.fingerprint, *(change().fingerprint for change in changes)}) == len(changes) + 1


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(FULL.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["shards"][0].update(tokens=11), "it was edited or damaged"),
        (lambda d: d["shards"][0].update(sha256="0" * 63 + "1"), "it was edited or damaged"),
        (lambda d: d["shards"].pop(), "it was edited or damaged"),
        (lambda d: d.update(fingerprint="0"), "it was edited or damaged"),
        (lambda d: d.update(format_version=2), "format_version 2, this shardkit reads 1"),
        (lambda d: d.update(dtype="int64"), "dtype 'int64'"),
        (lambda d: d.update(dtype=["uint16"]), "not a shardkit manifest"),
        (lambda d: d["shards"].append(d["shards"][0]), "names a shard twice"),
        (lambda d: d["shards"][0].update(file="../x_val_000000.npy"), "names a shard '../x_val"),
        (lambda d: d["shards"][0].update(file="/etc/x_val_000000.npy"), "names a shard '/etc"),
        (lambda d: d["shards"][0].update(file="x.npy"), "names a shard 'x.npy'"),
        (lambda d: d["shards"][0].update(tokens=0), "0 tokens"),
        (lambda d: d["shards"][0].update(tokens="10"), "not a shardkit manifest"),
        (lambda d: d["shards"][0].update(bytes=-1), r"shards\[0\]\.bytes is -1, expected a whole number"),
        (lambda d: d["shards"].reverse(), "not in the order of their indices: x_train_000001"),
        (lambda d: d["shards"][1].update(first_document=3), "begins with document 3, 2 begin in the shards before it"),
        (lambda d: d["shards"][0].update(first_document=1), "begins with document 1, 0 begin"),
        (lambda d: d["shards"][1].update(split="val"), "is stated as shard 1 of split 'val'"),
        (lambda d: d["shards"][1].update(index=5), "is stated as shard 5 of split 'train'"),
        (lambda d: d["shards"][0].update(documents=11), "11 documents among them"),
        (lambda d: d["shards"][0].update(bytes=20), "has 10 uint16 tokens in 20 bytes"),
        (lambda d: d["shards"][0].update(sha256="A" * 64), "expected 64 hexadecimal digits"),
        (lambda d: d["shards"][0].update(sha256=""), "expected 64 hexadecimal digits"),
        (lambda d: d["shards"][0].update(file="x\0_val_000000.npy"), r"names a shard 'x\\x00_val"),
        (lambda d: d["shards"][0].update(file="x_val_000000.npy\n"), "names a shard"),
        (lambda d: d["shards"][0].update(file="x" * 300 + "_val_000000.npy"), "names a shard"),
        (lambda d: d.update(tokens_per_shard=0), "tokens_per_shard is 0"),
        (lambda d: d.update(tokens_per_shard=-1), "tokens_per_shard is -1"),
        (lambda d: d.update(tokens_per_shard="x"), "tokens_per_shard is 'x'"),
        (lambda d: d.update(format_version=True), "format_version is True"),
        (lambda d: d.update(format_version=1.0), r"format_version is 1\.0"),
        (lambda d: d["tokenizer"].update(eot_id=50257), "eot_id 50257 of 50257 ids"),
        (lambda d: d["tokenizer"].update(vocab_size=1 << 20, eot_id=1 << 19), "its shards are uint16"),
        (lambda d: d["encoder"].update(engine=None), r"encoder\['engine'\] is None, expected text"),
        (lambda d: d["source"].update(options={"a": [[[[]]] * 2] * 2} | {"b": nested(40)}), "more than 32 deep"),
        (lambda d: d["source"]["files"][0].update(skipped_rows=[3, None]), r"skipped_rows\[1\] is None"),
        (lambda d: d["source"].update(id="\ud800"), "surrogates not allowed"),
        (lambda d: d["shards"][0].pop("split"), "not a shardkit manifest"),
        (lambda d: d["shards"][0].update(surprise=1), "not a shardkit manifest"),
        (lambda d: d.update(shards=None), "not a shardkit manifest"),
        (lambda d: d.update(shards=[1]), "not a shardkit manifest"),
        (lambda d: d.update(tokenizer={"name": "gpt2"}), "not a shardkit manifest"),
        (lambda d: d.update(source=3), "not a shardkit manifest"),
        (lambda d: d.pop("source"), "no 'source' in it"),
        (lambda d: d.pop("format_version"), "no 'format_version' in it"),
        (lambda d: d.update(tokens=1), "states tokens 1, its shards give 27"),
        (lambda d: d.update(documents=1), "states documents 1, its shards give 6"),
    ],
)
def test_an_edited_manifest_is_refused(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(ManifestError, match=words) as caught:
        Manifest.from_json(edited(change), where="here/manifest.json")
    assert str(caught.value).startswith("here/manifest.json ")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "1", "null", '"x"', "[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "NaN", "\ufeff{}"),
        GOLDEN.replace("148", "1" * 5_000),
        GOLDEN.replace("148", "NaN"),
        GOLDEN.replace("148", "1e999"),
        GOLDEN.replace('"encoder": {}', '"encoder": {}, "dtype": "uint16"'),
    ],
)
def test_a_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="is not a shardkit manifest"):
        Manifest.from_json(text)


def test_a_manifest_cut_anywhere_is_refused() -> None:
    text = FULL.to_json()
    for length in range(0, len(text) - 2, 37):
        with pytest.raises(ManifestError):
            Manifest.from_json(text[:length])


def test_a_missing_manifest_says_that_the_dataset_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"has no manifest\.json: the dataset is unfinished"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="is not a shardkit manifest"):
        Manifest.load(tmp_path)


def bare(folder: Path, names: dict[str, np.ndarray]) -> Path:
    for name, tokens in names.items():
        np.save(folder / name, tokens)
    return folder


def test_a_folder_of_bare_shards_is_read_from_names_and_headers(tmp_path: Path) -> None:
    names = {f"edufineweb_{'val' if i == 0 else 'train'}_{i:06d}.npy": np.full(5 + i, i, "<u2") for i in (2, 0, 1)}
    manifest = Manifest.from_shards(bare(tmp_path, names))
    assert [(s.index, s.split, s.tokens) for s in manifest.shards] == [(0, "val", 5), (1, "train", 6), (2, "train", 7)]
    assert manifest.tokens == 18
    assert manifest == Manifest.from_json(manifest.to_json())
    manifest.check_files(tmp_path)
    before = manifest.fingerprint
    np.save(tmp_path / "edufineweb_train_000001.npy", np.full(6, 9, "<u2"))
    assert Manifest.from_shards(tmp_path).fingerprint != before


def test_bare_shards_are_unfinished_only_where_a_journal_or_a_pull_says_so(tmp_path: Path) -> None:
    bare(tmp_path, {"x_train_000000.npy": np.zeros(3, "<u2")})
    work = tmp_path / ".shardkit"
    work.mkdir()
    assert Manifest.of_folder(tmp_path).tokens == 3
    (work / "plans").mkdir()
    for name in ("lock", "pull.lock", "summary.json", ".DS_Store"):
        (work / name).touch()
    assert Manifest.of_folder(tmp_path).tokens == 3
    (work / "incoming").mkdir()  # a pull that was killed
    with pytest.raises(ManifestError, match="the dataset is unfinished"):
        Manifest.of_folder(tmp_path)
    (work / "incoming").rmdir()
    (work / "journal.jsonl").touch()
    with pytest.raises(ManifestError, match="the dataset is unfinished"):
        Manifest.of_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({}, "no shards named PREFIX_SPLIT_000000.npy"),
        ({"tokens.npy": np.zeros(3, "<u2")}, "no shards named"),
        ({"a_train_000000.npy": np.zeros(3, "<u2"), "b_train_000001.npy": np.zeros(3, "<u2")}, r"several datasets"),
        ({"a_train_000000.npy": np.zeros(3, "<u2"), "a_train_000001.npy": np.zeros(3, "<u4")}, "mixes uint16 and"),
    ],
)
def test_folders_that_are_no_dataset_are_refused(tmp_path: Path, names: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        Manifest.from_shards(bare(tmp_path, names))


def test_a_shard_that_is_not_what_the_manifest_says_is_named(tmp_path: Path) -> None:
    bare(tmp_path, {s.file: np.zeros(s.tokens, "<u2") for s in FULL.shards})
    FULL.check_files(tmp_path)
    np.save(tmp_path / "x_train_000001.npy", np.zeros(9, "<u2"))
    FULL.check_files(tmp_path, split="val")
    with pytest.raises(ShardError, match=r"x_train_000001\.npy has 146 bytes, expected 148"):
        FULL.check_files(tmp_path)
    (tmp_path / "x_train_000001.npy").unlink()
    with pytest.raises(ShardError, match=r"x_train_000001\.npy is missing"):
        FULL.check_files(tmp_path)
