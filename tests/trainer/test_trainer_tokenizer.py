"""Training, evaluation and samples use the vocabulary that the dataset was made with, whatever lies around."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from texts import prose, write_parquet
from vocabulary_data import train_vocabulary

from shardkit import tokenize
from trainer.__main__ import main
from trainer.train import train

SHAPE: dict[str, Any] = {"model": "nano", "n_layer": 1, "n_head": 2, "n_embd": 32, "seq_len": 32, "batch_tokens": 64}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`data`, made with a vocabulary that is gone, `run`, and the working folder `elsewhere`, which has another one."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    source = write_parquet(tmp_path / "a.parquet", [*prose(80)])
    name = str(train_vocabulary(tmp_path / "gone" / "tokenizer.json", size=600))
    tokenize(source, tmp_path / "data", tokenizer=name, workers=1, shard_tokens=10_000)
    Path(name).unlink()
    train_vocabulary(tmp_path / "elsewhere" / "tokenizer.json", size=300)
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "device": "cpu", "steps": 2}
    train({**SHAPE, **words, "micro_batch": 2, "val_tokens": 2048, "val_every": 2})
    return tmp_path


def invoke(*words: str | Path) -> Any:
    return CliRunner().invoke(main, [*map(str, words), "--device", "cpu"])


def test_bits_a_byte_and_samples_are_those_of_the_datasets_vocabulary(folder: Path) -> None:
    entries = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    logged = next(entry["bits_per_byte"] for entry in reversed(entries) if "bits_per_byte" in entry)
    result = invoke("eval", folder / "run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["bits_per_byte"] == pytest.approx(logged)
    first = invoke("sample", folder / "run", "--tokens", "8", "--prompt", "The")
    (folder / "elsewhere" / "tokenizer.json").unlink()
    assert first.exit_code == 0, first.output
    assert invoke("sample", folder / "run", "--tokens", "8", "--prompt", "The").stdout == first.stdout


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_another_vocabulary_is_refused_by_name(folder: Path, command: str) -> None:
    result = invoke(command, folder / "run", "--tokenizer", folder / "elsewhere" / "tokenizer.json")
    assert result.exit_code == 1
    assert "here is another vocabulary than" in result.stderr
    assert result.stderr.count("\n") == 1
    words = {"data": str(folder / "data"), "out": str(folder / "new"), "tokenizer": "gpt2"}
    with pytest.raises(Exception, match="here is another vocabulary than"):
        train({**SHAPE, **words, "micro_batch": 2, "steps": 1})


@pytest.mark.parametrize("specials", [["<|endoftext|>", "<|im_end|>"], ["<|im_end|>", "<|endoftext|>"]])
def test_a_dataset_of_another_vocabulary_of_the_same_size_is_refused(folder: Path, specials: list[str]) -> None:
    name = train_vocabulary(folder / "other" / "tokenizer.json", size=600, specials=specials)
    tokenize(folder / "a.parquet", folder / "more", tokenizer=str(name), workers=1, shard_tokens=10_000)
    result = invoke("eval", folder / "run", "--data", folder / "more", "--val-tokens", "1024")
    if specials[0] == "<|im_end|>":  # the run's own
        assert result.exit_code == 0, result.output
    else:
        assert result.exit_code == 2
        assert "was made with another vocabulary" in result.stderr
        assert result.stderr.count("\n") == 1


def test_without_the_dataset_a_checkpoint_knows_its_vocabulary_by_hash(folder: Path) -> None:
    name = train_vocabulary(folder / "again" / "tokenizer.json", size=600)
    other = train_vocabulary(folder / "other" / "tokenizer.json", size=600, specials=["<|endoftext|>", "<|im_end|>"])
    shutil.rmtree(folder / "data")
    words = ("sample", folder / "run", "--tokens", "8", "--prompt", "The", "--tokenizer")
    assert invoke(*words, name).exit_code == 0
    result = invoke(*words, other)
    assert result.exit_code == 2
    assert "is another vocabulary" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_checkpoint_of_an_earlier_build_is_compared_by_its_number_of_ids(folder: Path) -> None:
    path = next((folder / "run").rglob("*.pt"))
    state = torch.load(path, weights_only=True)
    assert len(state.pop("vocabulary")) == 64
    torch.save(state, path)
    assert invoke("eval", path, "--data", folder / "data", "--val-tokens", "1024").exit_code == 0
