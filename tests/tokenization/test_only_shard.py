"""A dataset that would fill one shard only has a train split: its first 1 % is val. On any number of workers, after any
kill, at a remote; and nothing else changes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import LONG
from click.testing import CliRunner
from hub_server import HubServer
from reference import folder_bytes, shard_bytes, stream
from texts import documents, write_parquet
from victim import Victims

from shardkit import Manifest, ShardLoader, info, open_shard, peek, pull, tokenize, verify
from shardkit.cli import main
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.errors import DiskFull, HubError, ManifestError, OutputError, ShardError, ShardkitWarning, SourceError
from shardkit.files import LongFile
from shardkit.look.run_summary import run_summary

TEXTS = documents(80)
REPO = "alice/tokens"


@pytest.fixture(scope="module")
def tokens() -> int:
    """The length of the whole stream."""
    return len(stream(TEXTS, "bytes"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("only") / "a.parquet", TEXTS, rows=10)


def make(corpus: Path, out: Path, shard_tokens: int, **options: Any) -> Manifest:
    """A run in many chunks, with a tokenizer that is made at once."""
    shape = {"shard_tokens": shard_tokens, "prefix": "p", "chunk_bytes": 1 << 13, "tokenizer": "bytes"}
    return tokenize(corpus, out, **{**shape, **options})


def expected_of(shard_tokens: int) -> dict[str, bytes]:
    """What the reference writes."""
    return shard_bytes(TEXTS, shard_tokens, "p", tokenizer="bytes")


@pytest.mark.parametrize("more", [10**8, 1, 0, -1])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_hundredth_of_an_only_shard_is_val_and_of_more_shards_the_first_one(
    corpus: Path, tokens: int, tmp_path: Path, workers: int, more: int
) -> None:
    manifest = make(corpus, tmp_path / "out", tokens + more, workers=workers)
    lengths = {split: [shard.tokens for shard in shards] for split, shards in manifest.splits.items()}
    if more < 0:
        assert lengths == {"val": [tokens - 1], "train": [1]}
    else:
        assert lengths == {"val": [tokens // 100], "train": [tokens - tokens // 100]}
    assert folder_bytes(tmp_path / "out") == expected_of(tokens + more)
    assert verify(tmp_path / "out").verified  # the number of documents of each shard too
    assert manifest.documents == len(TEXTS)


def test_a_limit_that_is_just_a_shard_makes_an_only_shard(corpus: Path, tmp_path: Path) -> None:
    for limit in (4_999, 5_000):
        manifest = make(corpus, tmp_path / str(limit), 5_000, max_tokens=limit)
        assert [shard.tokens for shard in manifest.shards] == [limit // 100, limit - limit // 100]
        cut = np.concatenate([open_shard(tmp_path / str(limit) / shard.file) for shard in manifest.shards])
        assert cut.tolist() == stream(TEXTS, "bytes")[:limit].tolist()


def test_a_few_tokens_are_one_for_val_and_the_rest(tmp_path: Path) -> None:
    manifest = tokenize(["abc"], tmp_path / "three", tokenizer="bytes", workers=1)
    assert [shard.tokens for shard in manifest.shards] == [1, 3]
    with pytest.warns(ShardkitWarning, match="no train split"):
        alone = tokenize([""], tmp_path / "one", tokenizer="bytes", workers=1)
    assert [(shard.split, shard.tokens) for shard in alone.shards] == [("val", 1)]


def test_it_can_be_trained_on_and_the_summary_says_what_was_cut(corpus: Path, tokens: int, tmp_path: Path) -> None:
    manifest = make(corpus, tmp_path / "out", 10**8)
    with ShardLoader(tmp_path / "out", batch_size=2, seq_len=16) as loader:
        assert loader.next_batch()[0].shape == (2, 16)
    words = run_summary(manifest, None, 1.0)["only_shard_cut"]
    train = tokens - tokens // 100
    assert words == (
        f"no more than a shard of 100,000,000: the first {tokens // 100:,} tokens val, the other {train:,} train"
    )
    assert run_summary(make(corpus, tmp_path / "more", 5_000), None, 1.0)["only_shard_cut"] is None


@pytest.mark.parametrize("val_shards", [0, 1, 2])
def test_a_number_of_val_shards_that_was_given_wins(corpus: Path, tokens: int, tmp_path: Path, val_shards: int) -> None:
    def run(**options: Any) -> Manifest:
        return make(corpus, tmp_path / "out", tokens, val_shards=val_shards, **options)

    if val_shards:
        with pytest.warns(ShardkitWarning, match="no train split"):
            manifest = run()
    else:
        manifest = run()
    assert [shard.tokens for shard in manifest.shards] == [tokens]
    assert manifest.shards[0].split == ("val" if val_shards else "train")
    assert run() == manifest  # which is finished
    with pytest.raises(OutputError, match="holds another run .*val shards"):
        make(corpus, tmp_path / "out", tokens)


def test_a_finished_run_called_again_is_finished(corpus: Path, tmp_path: Path) -> None:
    first = make(corpus, tmp_path / "out", 10**8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npy")}
    assert make(corpus, tmp_path / "out", 10**8) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("more", [10**8, 0])
def test_a_run_that_was_killed_between_the_two_goes_on_to_the_same_bytes(
    corpus: Path, tokens: int, tmp_path: Path, more: int
) -> None:
    out = tmp_path / "out"
    whole = make(corpus, out, tokens + more)
    expected, manifest = folder_bytes(out), (out / "manifest.json").read_bytes()
    lines = (out / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    for kept in (1, 2, 3):
        (out / "manifest.json").unlink()
        (out / JOURNAL_FILE).write_bytes(b"".join(lines[:kept]))
        for shard in whole.shards[kept - 1 :]:
            (out / shard.file).unlink()
        assert make(corpus, out, tokens + more, workers=2) == whole
        assert folder_bytes(out) == expected
        assert (out / "manifest.json").read_bytes() == manifest


def test_a_run_that_is_killed_at_any_change_to_a_file_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Every sixth change; `make torture` tries each."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(300)))
    words = ["tokenize", tmp_path / "a.jsonl", "--tokenizer", "bytes", "--workers", "1", "--out"]
    with Victims() as victims:
        whole = tmp_path / "whole"
        changes = victims.run([*words, whole], watched=[whole]).changes
        assert changes > 5
        for number in range(1, changes + 1, 1 if LONG else 6):
            out = tmp_path / str(number)
            victims.run([*words, out], watched=[out], at=number, what="kill")
            victims.run([*words, out], watched=[out]).assert_clean()
            assert folder_bytes(out) == folder_bytes(whole), number
            assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
            assert not list((out / ".shardkit").glob("*.tmp"))


def test_where_there_is_no_room_for_the_second_shard_the_stream_that_is_cut_is_not_left_behind(
    corpus: Path, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(LongFile):
        def sync(self) -> int:
            if self._path.name.startswith("000001."):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().sync()

    with monkeypatch.context() as full:
        full.setattr("shardkit.dataset.shards.LongFile", Full)
        with pytest.raises(DiskFull):
            make(corpus, tmp_path / "out", 10**8)
    assert not list((tmp_path / "out" / ".shardkit").glob("*.tmp"))
    make(corpus, tmp_path / "out", 10**8)
    assert folder_bytes(tmp_path / "out") == expected_of(10**8)


@pytest.mark.parametrize("shard", ["000000.", "000001."])
def test_a_ctrl_c_while_the_stream_is_cut_leaves_no_unfinished_file(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str
) -> None:
    class Stopped(LongFile):
        def sync(self) -> int:
            if self._path.name.startswith(shard):
                raise KeyboardInterrupt
            return super().sync()

    monkeypatch.setattr("shardkit.dataset.shards.LongFile", Stopped)
    with pytest.raises(KeyboardInterrupt):
        make(corpus, tmp_path / "out", 10**8, workers=1)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_stream_that_is_cut_is_read_and_not_mapped_since_its_disk_may_fail(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a map of a file")

    monkeypatch.setattr(np, "memmap", refuse)
    make(corpus, tmp_path / "out", 10**8, workers=1)
    assert folder_bytes(tmp_path / "out") == expected_of(10**8)


@pytest.mark.parametrize("more", [0, 4_000])
def test_it_goes_through_a_small_disk_to_a_remote_and_on_from_there_on_an_empty_machine(
    hub: HubServer, corpus: Path, tokens: int, tmp_path: Path, more: int
) -> None:
    options = {"push": REPO, "max_disk": 4 * (tokens + more) + 20_000}
    hub.fault("status", "PUT", "_lfs", nth=2, times=None, code=400)  # the train shard does not arrive
    with pytest.raises(HubError):
        make(corpus, tmp_path / "a", tokens + more, **options)
    hub.faults.clear()
    shutil.rmtree(tmp_path / "a")
    manifest = make(corpus, tmp_path / "b", tokens + more, **options)
    there = {name: hub.file_bytes(REPO, name) for name in hub.files(REPO) if name.endswith(".npy")}
    assert there == expected_of(tokens + more)
    assert pull(REPO, tmp_path / "c") == manifest
    assert make(corpus, tmp_path / "d", tokens + more, push=REPO) == manifest  # another machine again


def test_a_folder_that_an_earlier_version_put_into_val_alone_is_refused_with_a_way_out(
    corpus: Path, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("shardkit.tokenization.ordered_writer.OrderedWriter._is_cut", lambda *_: False)
        with pytest.warns(ShardkitWarning, match="no train split"):
            make(corpus, tmp_path / "out", tokens + 1)
    with pytest.raises(OutputError, match="of another dataset than this run makes; .* start again with overwrite=True"):
        make(corpus, tmp_path / "out", tokens + 1)
    assert len(make(corpus, tmp_path / "out", tokens + 1, overwrite=True).splits) == 2


@pytest.mark.parametrize("texts", [[""], ["", "", ""]])
def test_of_empty_text_nothing_is_advised_that_would_not_help(tmp_path: Path, texts: list[str]) -> None:
    with pytest.warns(ShardkitWarning, match=r"1 shard, so there is no train split: every document is empty$"):
        tokenize(texts, tmp_path, tokenizer="bytes", workers=1, val_shards=1)


@pytest.mark.parametrize("val_shards", [1, 3, 99])
def test_each_advice_on_a_train_split_gives_one(tmp_path: Path, val_shards: int) -> None:
    options: dict[str, Any] = {"tokenizer": "bytes", "workers": 1, "val_shards": val_shards, "progress": False}
    with pytest.warns(ShardkitWarning, match=r"4 tokens filled 1 shard, .* overwrite=True") as caught:
        tokenize(["abc"], tmp_path, **options)
    advised = {
        name: int(value) for name, value in re.findall(r"(shard_tokens|val_shards)=(\d+)", str(caught[0].message))
    }
    assert "val_shards" in advised
    for name, value in advised.items():
        assert "train" in tokenize(["abc"], tmp_path, overwrite=True, **{**options, name: value}).splits


def test_what_transform_and_filter_leave_out_is_said_where_nothing_is_left(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": "bytes", "workers": 1, "progress": False}
    with pytest.raises(SourceError, match="transform left none of the source's 2 documents"):
        tokenize(["a", "b"], tmp_path, transform=lambda _: None, **options)
    with pytest.raises(SourceError, match="filter left none of the source's 2 documents"):
        tokenize(["a", "b"], tmp_path, filter=lambda _: False, **options)
    with pytest.raises(SourceError, match="the source holds no documents"):
        tokenize([], tmp_path, filter=lambda _: False, **options)


def test_a_folder_that_kept_no_shard_says_where_its_dataset_lies(tmp_path: Path) -> None:
    out, far = tmp_path / "out", tmp_path / "far"
    options: dict[str, Any] = {
        "tokenizer": "bytes",
        "workers": 1,
        "push": str(far),
        "max_disk": 10**6,
        "shard_tokens": 3,
    }
    made = tokenize(["abc", "def"], out, **options)
    for look in (info, verify, peek):
        with pytest.raises(ManifestError, match=f"the dataset lies at {far}: `shardkit pull {far}`"):
            look(out)
    assert pull(str(far), out) == made
    assert verify(out).verified


def test_the_summary_says_where_it_was_pushed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    line = ["tokenize", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--tokenizer", "bytes", "--workers=1"]
    done = CliRunner().invoke(main, [*line, "--push", str(tmp_path / "far")], catch_exceptions=False)
    assert f"pushed to: {tmp_path / 'far'}\n" in done.stdout


def test_each_way_that_is_named_for_a_damaged_shard_mends_it(tmp_path: Path) -> None:
    out, far = tmp_path / "out", str(tmp_path / "far")
    options: dict[str, Any] = {"tokenizer": "bytes", "workers": 1, "progress": False}
    made = tokenize(["abc"], out, push=far, **options)
    for mend in (lambda: pull(far, out), lambda: tokenize(["abc"], out, overwrite=True, **options)):
        with open(out / made.shards[1].file, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
        with pytest.raises(ShardError, match=r"damaged, .*\(`shardkit pull`, or tokenize with overwrite=True\)"):
            verify(out)
        mend()
        assert verify(out).verified


@pytest.mark.parametrize("name", ["bytes", "chars"])
def test_an_encoder_that_cannot_be_chosen_is_named(tmp_path: Path, name: str) -> None:
    with pytest.warns(ShardkitWarning, match=f"encoder='fast' changes nothing: {name} has one encoder"):
        tokenize(["abc"], tmp_path, tokenizer=name, encoder="fast", workers=1)
