"""A model's name as `--tokenizer`: its files at one commit, by the real client from a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from vocabulary_data import train_vocabulary

from shardkit import Manifest, Tokenizer, network, tokenize
from shardkit.cli import main
from shardkit.errors import AuthError, OutputError, TokenizerError
from shardkit.tokenization.vocabulary import load_vocabulary

MODEL = "alice/model"


@pytest.fixture
def model(hub: HubServer, tmp_path: Path) -> Path:
    """A model with a tokenizer; the folder that was uploaded."""
    folder = train_vocabulary(tmp_path / "model" / "tokenizer.json").parent
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    upload(folder)
    return folder


def upload(folder: Path) -> str:
    api = HfApi()
    api.create_repo(MODEL, exist_ok=True)
    return str(api.upload_folder(repo_id=MODEL, folder_path=folder).oid)


def test_the_vocabulary_is_that_of_one_commit_and_its_name_says_which(hub: HubServer, model: Path) -> None:
    first = str(HfApi().model_info(MODEL).sha)
    found = load_vocabulary(MODEL)
    assert found.name == found.info.name == f"{MODEL}@{first}"
    assert found.info.ranks_sha256 == load_vocabulary(str(model)).info.ranks_sha256
    assert found.end_of_text == "<|endoftext|>"  # not what ends a turn
    train_vocabulary(model / "tokenizer.json", size=300)
    second = upload(model)
    assert load_vocabulary(MODEL).name == f"{MODEL}@{second}"
    assert load_vocabulary(MODEL).info.vocab_size == 300
    assert load_vocabulary(f"{MODEL}@{first}").info == found.info
    hub.reset_log()
    load_vocabulary(f"{MODEL}@{first}")
    assert hub.bytes_sent("/resolve/") == 0  # it is in the client's cache


def test_a_run_with_a_models_name_gives_the_bytes_of_its_file_and_a_dataset_that_needs_no_hub(
    model: Path, tmp_path: Path, hub: HubServer
) -> None:
    texts = ["some text", "and more of it"] * 50
    for out, name in (("hub", MODEL), ("file", str(model / "tokenizer.json"))):
        tokenize(texts, tmp_path / out, tokenizer=name, workers=1, shard_tokens=200, prefix="p")
    shards = [{p.name: p.read_bytes() for p in (tmp_path / out).glob("*.npy")} for out in ("hub", "file")]
    assert shards[0] == shards[1]
    assert (tmp_path / "hub" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    hub.reset_log()
    manifest = Manifest.load(tmp_path / "hub")
    assert Tokenizer.of_dataset(manifest).decode([1]) == "<|endoftext|>"
    assert not hub.log
    (tmp_path / "hub" / "tokenizer.json").unlink()
    assert manifest.tokenizer is not None
    with pytest.raises(
        TokenizerError, match=rf"not beside its manifest \({manifest.tokenizer.name}\): give tokenizer="
    ):
        Tokenizer.of_dataset(manifest)  # a stranger's manifest does not decide what is fetched
    assert not hub.log
    assert Tokenizer.of_dataset(manifest, name=manifest.tokenizer.name).info == manifest.tokenizer


def test_a_run_goes_on_after_a_commit_that_changed_another_file_of_the_model(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": MODEL, "workers": 1, "shard_tokens": 200, "prefix": "p"}
    texts = ["some text", "and more of it"] * 50
    made = tokenize(texts, tmp_path / "out", **options)
    (model / "notes.txt").write_text("now with notes")
    upload(model)
    assert tokenize(texts, tmp_path / "out", **options) == made
    train_vocabulary(model / "tokenizer.json", size=300)
    upload(model)
    with pytest.raises(OutputError, match="holds another run .*vocabulary"):
        tokenize(texts, tmp_path / "out", **options)


def test_a_model_that_cannot_be_had_is_one_line(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AuthError, match="cannot fetch the tokenizer: hf://alice/none does not exist"):
        load_vocabulary("alice/none")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")
    upload(tmp_path / "plain")
    with pytest.raises(TokenizerError, match=r"the model alice/model has no tokenizer\.json"):
        load_vocabulary(MODEL)
    hub.repos["models", MODEL].gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(AuthError, match="hf://alice/model is gated: accept its conditions on its page"):
        load_vocabulary(MODEL)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    with pytest.raises(TokenizerError, match="hf://alice/model@gone has no such revision"):
        load_vocabulary(f"{MODEL}@gone")


def test_a_busy_hub_is_asked_again(hub: HubServer, model: Path) -> None:
    hub.fault("status", "HEAD", "/resolve/", code=503, times=2)
    hub.fault("status", "GET", "/api/models/", code=503, times=2)
    assert load_vocabulary(MODEL).info.vocab_size == 400


def test_without_a_network_it_is_one_line_after_few_tries_and_a_commit_in_the_cache_is_enough(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = load_vocabulary(MODEL)
    hub.reset_log()
    hub.fault("drop", "GET", "/api/models/", times=100)
    hub.fault("drop", "HEAD", "/resolve/", times=100)
    with pytest.raises(TokenizerError, match="cannot fetch the tokenizer: hf://alice/model does not answer"):
        load_vocabulary(MODEL)
    assert len(hub.log) <= network.PATIENT_TRIES
    assert capfd.readouterr().err == ""  # the client's own words on each try
    hub.reset_log()
    assert load_vocabulary(known.name).info == known.info
    assert not hub.log
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_vocabulary(known.name).info == known.info
    with pytest.raises(TokenizerError, match="the tokenizer of alice/other is not in the cache, and HF_HUB_OFFLINE"):
        load_vocabulary("alice/other")


def test_a_folder_is_no_model_even_if_it_looks_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train_vocabulary(tmp_path / "alice" / "tokenizer.json")
    (tmp_path / "alice" / "model").mkdir()
    with pytest.raises(TokenizerError, match="unknown tokenizer 'alice/model': expected one of .* a model on the Hub"):
        load_vocabulary("alice/model")
    result = CliRunner().invoke(main, ["tokenize", "sample", "--out", "out", "--tokenizer", "alice/model"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
