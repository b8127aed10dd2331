"""Paths with a `~`, and whole numbers of any kind, wherever a public function or a command is given one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hub_data import make_dataset

from shardkit import (
    Manifest,
    ShardLoader,
    Tokenizer,
    info,
    merge_ledger,
    open_shard,
    peek,
    pull,
    push,
    tokenize,
    verify,
)
from shardkit.arguments import as_int, user_path, whole_numbers
from shardkit.cli import main
from shardkit.errors import HubError, ShardkitError, UsageError
from shardkit.tokenization.training import train_tokenizer

TEXTS = [f"document {number} " * 20 for number in range(60)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own; the working folder is another, and must stay empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


def test_a_tilde_is_the_home_folder_in_every_public_function(home: Path) -> None:
    made = tokenize(TEXTS, "~/out", tokenizer="bytes", shard_tokens=5_000, prefix="p", workers=1, push="~/far")
    assert Manifest.load("~/out") == Manifest.load("~/out/manifest.json") == Manifest.load(home / "out") == made
    assert Manifest.of_folder("~/out") == made
    assert Manifest.from_shards("~/out").tokens == made.tokens
    made.check_files("~/out")
    assert len(open_shard(f"~/out/{made.shards[0].file}")) == 5_000
    assert push("~/out", "~/far").sent_files == 0
    assert pull("~/far", "~/pulled") == made
    with ShardLoader("~/pulled", batch_size=2, seq_len=64, ledger="~/ledger") as loader:
        first = loader.next_batch()
    assert merge_ledger("~/ledger").running
    with ShardLoader(str(home / "far"), batch_size=2, seq_len=64) as loader:
        assert (loader.next_batch().inputs == first.inputs).all()
    assert sorted(path.name for path in home.iterdir() if not path.name.startswith(".")) == [
        "far",
        "ledger",
        "out",
        "pulled",
    ]
    assert [*Path.cwd().iterdir()] == []


def test_a_tilde_is_the_home_folder_for_a_source_and_a_tokenizer(home: Path) -> None:
    (home / "texts").mkdir()
    (home / "texts" / "a.txt").write_text("some text " * 200)
    train_tokenizer("~/texts", "~/vocabulary", vocab_size=np.int64(300))
    for name in ("~/vocabulary", "~/vocabulary/tokenizer.json"):
        assert Tokenizer(name).info.vocab_size <= 300
    made = tokenize("~/texts/*.txt", "~/out", tokenizer="~/vocabulary", workers=1, val_shards=0)
    assert made.documents == 1
    assert [*Path.cwd().iterdir()] == []


def test_a_tilde_that_the_shell_leaves_in_an_option_is_the_home_folder(home: Path) -> None:
    (home / "a.txt").write_text("some text " * 20)
    words = ["tokenize", "~/a.txt", "--out=~/out", "--tokenizer=bytes", "--workers=1", "--val-shards=0", "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert (home / "out" / "manifest.json").exists()
    assert [*Path.cwd().iterdir()] == []


def test_a_tilde_is_the_home_folder_for_whoever_looks_at_a_dataset(home: Path) -> None:
    tokenize(["some text"] * 50, "~/a", tokenizer="bytes", shard_tokens=200, workers=1)
    assert info("~/a").damage is None
    assert verify("~/a").verified
    assert peek("~/a", document=1).text
    assert Tokenizer("bytes").save("~/a")


def test_a_tilde_with_the_name_of_nobody_is_a_name() -> None:
    assert user_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


@pytest.mark.parametrize("number", [5_000, 5e3, np.int64(5_000), np.uint16(5_000), np.float64(5e3)])
def test_tokenize_takes_whole_numbers_of_any_kind_as_the_same_run(tmp_path: Path, number: Any) -> None:
    options: dict[str, Any] = {"tokenizer": "bytes", "prefix": "p"}
    limits = {"max_docs": np.int64(50), "max_tokens": 1e5, "workers": np.int32(1), "val_shards": np.int8(1)}
    made = tokenize(TEXTS, tmp_path, shard_tokens=number, **options, **limits)
    assert (made.tokens_per_shard, made.documents) == (5_000, 50)
    json.loads(made.to_json())
    again = {"max_docs": 50, "max_tokens": 100_000, "workers": 1, "val_shards": 1}
    assert tokenize(TEXTS, tmp_path, shard_tokens=5_000, **options, **again) == made


def test_a_loader_takes_numpys_integers_and_its_state_is_plain(tmp_path: Path) -> None:
    tokenize(TEXTS, tmp_path, tokenizer="bytes", shard_tokens=5_000, prefix="p", workers=1)
    options: Any = {"batch_size": np.int64(2), "seq_len": np.int32(64), "seed": np.uint8(3), "world_size": np.int64(1)}
    with ShardLoader(tmp_path, rank=np.int64(0), ignore_index=np.int64(-1), **options) as loader:
        loader.next_batch()
        state = loader.state_dict()
    json.dumps(state)
    with ShardLoader(tmp_path, batch_size=2, seq_len=64, seed=3, ignore_index=-1) as plain:
        plain.load_state_dict(state)


@pytest.mark.parametrize("value", [0, -1, 2.5, "5", True, np.float64(0.5), float("inf"), float("nan"), None])
def test_what_is_no_whole_number_of_at_least_one_is_named(value: Any) -> None:
    if value is None:
        assert whole_numbers(workers=None) == [None]
        return
    with pytest.raises(UsageError, match=r"^shard_tokens is .*: expected a whole number of at least 1"):
        whole_numbers(shard_tokens=value)


def test_a_number_that_is_none_stays_as_it_is_for_its_check() -> None:
    assert as_int(2.0) == 2.0
    assert isinstance(as_int(2.0), float)
    assert as_int(True) is True
    assert as_int(None) is None


@pytest.mark.parametrize("text", ["5000", "5k", "5K", "5e3", "5_000", "5,000", "0.005M", "+5e+3"])
def test_a_command_takes_numbers_as_people_write_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text("some text " * 2_000)
    words = ["tokenize", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--tokenizer=bytes", "--workers=1"]
    result = CliRunner().invoke(main, [*words, "--shard-tokens", text, "--max-tokens", "1e4"])
    assert result.exit_code == 0, result.output
    assert Manifest.load(tmp_path / "out").tokens_per_shard == 5_000
    assert Manifest.load(tmp_path / "out").tokens == 10_000


@pytest.mark.parametrize("text", ["", "M", "1.5", "1e-3", "five", "1MB", "1,5M", "1,00", "1e999999999", "nan", "0x10"])
def test_a_command_refuses_what_is_no_whole_number_in_one_line(tmp_path: Path, text: str) -> None:
    result = CliRunner().invoke(main, ["tokenize", "sample", "--out", str(tmp_path / "o"), "--shard-tokens", text])
    assert result.exit_code == 2
    assert f"{text!r} is not a whole number: expected for example 100M, 1e8" in result.output


def test_a_path_is_a_folder_of_this_machine_wherever_a_place_or_a_source_is_taken(home: Path) -> None:
    Path("some").mkdir()
    Path("some/texts.txt").write_text("hello " * 500)
    options: dict[str, Any] = {"shard_tokens": 1_000, "workers": 1, "progress": False}
    made = tokenize(Path("some"), Path("out"), tokenizer="bytes", push=Path("user/far"), **options)
    assert push(Path("out"), Path("user/far")).sent_files == 0
    assert pull(Path("user/far"), Path("pulled")) == made
    with ShardLoader(Path("user/far"), batch_size=2, seq_len=16) as loader:
        assert loader.manifest.fingerprint == made.fingerprint
    assert info(Path("user/far")).tokens == verify(Path("user/far")).tokens == made.tokens
    assert isinstance(peek(Path("user/far"), document=np.int64(0), tokens=5.0).document, int)  # type: ignore[arg-type]
    assert tokenize(Path("some"), "again", tokenizer=Path("out"), **options).tokens == made.tokens


def test_a_path_that_is_not_there_is_no_dataset_on_the_hub(home: Path) -> None:
    for ask in (
        lambda: pull(Path("user/name"), "out", progress=False),
        lambda: tokenize(Path("user/name"), "out", tokenizer="bytes", progress=False),
        lambda: tokenize("sample", "out", tokenizer=Path("user/name"), progress=False),
    ):
        with pytest.raises(ShardkitError, match=r"user/name") as caught:
            ask()
        assert not isinstance(caught.value, HubError) or "holds nothing" in str(caught.value)
    with pytest.raises(UsageError, match="a Path of s3:/bucket/x has lost a slash: give an address as text"):
        pull(Path("s3://bucket/x"), "out")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: push("DIR", 5), "expected a path, as text or a Path, got 5"),  # type: ignore[arg-type]
        (lambda: push(Manifest.load("DIR"), "./x"), "got <Manifest of .*; its folder is its .directory"),  # type: ignore[arg-type]
        (lambda: info(None), "expected a path, as text or a Path, got None"),  # type: ignore[arg-type]
        (lambda: peek("DIR", document="3"), "document is '3': expected a whole number of at least 0"),  # type: ignore[arg-type]
        (lambda: peek("DIR", rank=None), "rank is None: expected a whole number"),  # type: ignore[arg-type]
        (lambda: peek("DIR", tokenizer=5), "expected a path, as text or a Path, got 5"),  # type: ignore[arg-type]
        (lambda: pull("./x", shards="0:3"), r"shards is '0:3': expected two whole numbers, as in \(0, 10\)"),  # type: ignore[arg-type]
        (lambda: pull("./x", workers=0), "workers is 0: expected a whole number of at least 1"),
        (lambda: pull("./x", split=3), "split is 3: expected text"),  # type: ignore[arg-type]
        (lambda: pull("./x", progress="yes"), "progress is 'yes': expected True, False, or a function"),  # type: ignore[arg-type]
        (lambda: push("DIR", "./x", tag=1), "tag is 1: expected text"),  # type: ignore[arg-type]
        (lambda: tokenize("sample", "x", separator=5), "separator is 5: expected text"),  # type: ignore[arg-type]
        (lambda: tokenize("sample", "x", push=5), "expected a path, as text or a Path, got 5"),  # type: ignore[arg-type]
        (lambda: ShardLoader("DIR", batch_size=1, seq_len=8, device="gpu"), "device is 'gpu': expected 'cpu', 'cuda'"),
        (lambda: ShardLoader("DIR", batch_size=1, seq_len=8, split=[1]), r"split is \[1\]: expected text"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_line(home: Path, ask: Callable[[], Any], told: str) -> None:
    make_dataset(Path("DIR"))
    with pytest.raises(UsageError, match=told):
        ask()
