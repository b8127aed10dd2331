"""Training on real text, as the tutorials begin: a small file, bytes, a bigram table, a nano GPT."""

from __future__ import annotations

import json
import math
import pydoc
import re
import sys
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainer_data import losses, write_dataset

from shardkit import ShardkitError, ShardLoader, UsageError, tokenize
from trainer.config import Config, make_config
from trainer.distributed import find_world
from trainer.evaluate import evaluate_run
from trainer.log import RunLog, read_log
from trainer.model import IGNORED
from trainer.optim import learning_rate
from trainer.run import Run, TrainingError
from trainer.train import open_data, train


@pytest.fixture(scope="module")
def text_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The standard library's own help texts, tokenized as bytes."""
    folder = tmp_path_factory.mktemp("text")
    topics = [
        pydoc.render_doc(name, renderer=pydoc.plaintext) for name in ("str", "int", "list", "dict", "bytes", "json")
    ]
    (folder / "input.txt").write_text("\n".join(topics), encoding="utf-8")
    tokenize(str(folder / "input.txt"), out=folder / "shards", tokenizer="bytes", shard_tokens=8000, workers=1)
    return folder / "shards"


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("bigram", {"lr": 1e-1}),
        ("nano", {"n_layer": 1, "n_embd": 32, "batch_tokens": 512, "micro_batch": 8, "seq_len": 64}),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_the_loss_falls_from_ln_vocabulary_to_below_the_unigram_entropy(
    text_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    more: dict[str, object],
) -> None:
    given = {
        "data": str(text_shards),
        "out": str(tmp_path),
        "model": model,
        "device": "cpu",
        "val_tokens": 2048,
        "steps": 90,
        **more,
    }
    train({**given, "val_every": 30, "sample_every": 90, "prompt": "def "})
    said = capsys.readouterr().out
    entropy = float(said.split("unigram entropy ")[1].split()[0])
    val = losses(tmp_path, "val_loss")
    assert [step for step, _ in val] == [0, 30, 60, 90]
    assert abs(val[0][1] - math.log(257)) < 0.2
    assert val[-1][1] < entropy
    assert losses(tmp_path)[-1][1] < entropy
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "sample    'def " in said


def test_every_line_of_the_log_has_all_its_figures(text_shards: Path, tmp_path: Path) -> None:
    train(
        {"data": str(text_shards), "out": str(tmp_path), "model": "bigram", "steps": 3, "device": "cpu", "val_every": 3}
    )
    entries = read_log(tmp_path / "log.jsonl")
    lines = [entry for entry in entries if "loss" in entry]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for key in ("loss", "lr", "grad_norm", "ms", "tokens_per_second", "mfu", "data_wait", "epoch"):
        assert all(key in line for line in lines)
    assert all(0 <= line["data_wait"] <= 1 for line in lines)
    assert {"step", "val_loss", "bits_per_byte"} == set(entries[-1])
    text = (tmp_path / "log.jsonl").read_text()
    assert repr(lines[0]["loss"]) in text  # full precision: what is read is what was written
    assert json.loads(text.splitlines()[2]) == lines[0]


def test_a_packed_run_with_a_document_mask_says_so_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", val=3000, document_tokens=24)
    given = {
        "data": str(tmp_path / "data"),
        "out": str(tmp_path / "run"),
        "model": "nano",
        "n_layer": 1,
        "n_embd": 32,
        "device": "cpu",
        "val_tokens": 2048,
        "layout": "packed",
        "document_mask": True,
    }
    train({**given, "steps": 60, "val_every": 30})
    said = capsys.readouterr().out.replace("\n" + " " * 10, " ")  # a long line is folded
    assert re.search(
        r"^layout    packed: .*: use 9\d[.\d]*%, pad [.\d]+%, crop 0.00%, document mask \(dense\)$", said, re.M
    )
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1] - 1
    options = {"device": "cpu", "data": None, "val_tokens": None, "hellaswag": None, "tokenizer": None}
    found = evaluate_run(tmp_path / "run", which="last", precision="auto", **options)
    assert found["val_tokens"] == 2048
    for key in ("val_loss", "bits_per_byte"):
        assert math.isclose(found[key], losses(tmp_path / "run", key)[-1][1], rel_tol=1e-6)


def test_with_the_mask_a_steps_gradient_is_that_of_its_documents_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", document_tokens=12)
    given = {
        "data": str(tmp_path / "data"),
        "out": str(tmp_path / "run"),
        "model": "nano",
        "n_layer": 1,
        "n_embd": 32,
        "seq_len": 32,
        "micro_batch": 2,
        "batch_tokens": 256,
        "device": "cpu",
        "val_every": 0,
        "layout": "packed",
        "document_mask": True,
    }
    world = find_world("cpu")
    config = make_config(given)
    manifest = open_data(config, world)
    run = Run(config, world, manifest, None)
    twin, (_, counted) = deepcopy(run.learner.model), run.learner.accumulate(run.loader.next_batch, run.micro_steps)
    run.close()
    sizes = {"batch_size": 2, "seq_len": 32, "seed": 1337}
    with ShardLoader(tmp_path / "data", **sizes, layout="packed", documents=True) as loader:
        for _ in range(4):
            inputs, targets, documents = loader.next_batch()
            counted -= (targets != IGNORED).sum()
            for begin, end in pairwise(documents.cu_seqlens.tolist()):
                if begin < end:
                    part = [tensor.flatten()[None, begin:end] for tensor in (inputs, targets)]
                    (twin(*part) * (end - begin) / 256).backward()
    assert int(counted) == 0
    for ours, theirs in zip(run.learner.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_the_targets_that_count(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", document_tokens=2)  # half of the targets begin a document
    given = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "model": "nano", "n_embd": 32}
    train({**given, "steps": 1, "device": "cpu", "val_every": 0, "layout": "packed", "document_mask": True})
    assert abs(losses(tmp_path / "run")[0][1] - math.log(257)) < 0.2


def test_the_log_says_where_the_data_of_each_step_lay(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data")
    run = {"out": str(tmp_path / "run"), "device": "cpu", "val_every": 0, "save_every": 2}
    train({**run, "data": str(tmp_path / "data"), "model": "nano", "n_embd": 32, "steps": 4})
    (tmp_path / "run" / "checkpoints" / "step_00000004.pt").unlink()
    train({**run, "resume": "auto", "micro_batch": 2, "steps": 5})
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry.get("step") for entry in entries] == [None, 1, 2, None, 3, 4, 5]
    assert [entry["step"] for entry in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4, 5]
    for entry, after, micro_batch in ((entries[0], 0, 8), (entries[3], 2, 2)):
        assert (entry["after_step"], entry["micro_batch"], entry["world_size"]) == (after, micro_batch, 1)
        assert entry["micro_steps"] * micro_batch * 64 == 512
        state = entry["loader"]
        assert (state["fingerprint"], state["split"], state["seed"]) == (manifest.fingerprint, "train", 1337)
        with ShardLoader(entry["folder"], batch_size=micro_batch, seq_len=state["seq_len"], seed=1337) as loader:
            loader.load_state_dict(state)
            assert state["epoch"] * loader.windows_per_epoch + state["window"] == after * 8


def test_epochs_are_counted_exactly_and_passing_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data", train=8 * 32 * 5 + 1)  # five batches of 8 windows of 32
    given = {
        "data": str(tmp_path / "data"),
        "model": "bigram",
        "seq_len": 32,
        "micro_batch": 4,
        "batch_tokens": 256,
        "device": "cpu",
        "val_every": 0,
        "save_every": 0,
    }
    train({**given, "out": str(tmp_path / "one")})
    said = capsys.readouterr().out
    assert "epoch     5.00 steps; the run has 5: 1.00 epochs" in said
    assert "warning" not in said
    train({**given, "out": str(tmp_path / "two"), "epochs": 2.5})
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("warning")] == [
        "warning: epoch 1 is over at step 5: data repeats from here",
        "warning: epoch 2 is over at step 10: data repeats from here",
    ]
    assert losses(tmp_path / "two")[-1][0] == 12


def test_a_run_that_blows_up_says_so_and_saves_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    given = {
        "data": str(tmp_path / "data"),
        "out": str(tmp_path / "run"),
        "model": "nano",
        "n_embd": 32,
        "device": "cpu",
        "lr": 1e30,
        "steps": 20,
        "val_every": 0,
        "save_every": 1,
        "grad_clip": 0.0,
        "warmup_steps": 0,
    }
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf), nothing of it was saved"):
        train(given)


@pytest.mark.parametrize(("more", "name"), [({"tensorboard": True}, "tensorboard"), ({"wandb": "project"}, "wandb")])
def test_what_was_asked_for_and_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], name: str
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ShardkitError, match=f"{name}, needed by --{name}, is not installed: pip install {name}"):
        RunLog(Config(data="d", out=str(tmp_path), **more), step=-1, reference={})


def test_a_board_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise RuntimeError("api_key not configured\nand more")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UsageError, match="^--wandb project: api_key not configured$"):
        RunLog(Config(data="d", out=str(tmp_path), wandb="project"), step=-1, reference={})


def test_a_board_that_fails_is_a_warning_and_gets_later_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    got: list[tuple[dict[str, float], int]] = []

    class Board:
        def log(self, numbers: dict[str, float], step: int) -> None:
            if step in (2, 3):
                raise ConnectionError("down, with hf_abcdefgh12345678")
            got.append((numbers, step))

        def finish(self) -> None:
            raise RuntimeError("nobody there")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: Board()))
    log = RunLog(Config(data="d", out=str(tmp_path), wandb="project"), step=-1, reference={})
    for step in range(1, 5):
        log.write({"step": step, "loss": 1.0, "text": "x"})
    log.close()
    assert got == [({"step": 1, "loss": 1.0}, 1), ({"step": 4, "loss": 1.0}, 4)]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "warning: W&B did not get an entry: down, with hf_[hidden]",
        "warning: W&B did not get an entry: nobody there",
    ]
    assert len(read_log(tmp_path / "log.jsonl")) == 4


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    config = Config(lr=1.0, min_lr=0.1, warmup_steps=10, steps=110)
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1.0
    assert math.isclose(rates[60], 0.55)
    assert math.isclose(rates[110], 0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_remote_data_is_pulled_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardkit import push

    write_dataset(tmp_path / "data")
    push(tmp_path / "data", (tmp_path / "remote").as_uri())
    monkeypatch.chdir(tmp_path)
    given = {"model": "bigram", "seq_len": 32, "steps": 2, "device": "cpu", "val_tokens": 512, "val_every": 0}
    train({**given, "data": (tmp_path / "remote").as_uri(), "data_dir": "here", "out": "run"})
    assert (tmp_path / "here" / "manifest.json").exists()
    assert len(losses(tmp_path / "run")) == 2


def test_bare_shards_are_taken_for_gpt2s_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data")
    (tmp_path / "data" / "manifest.json").unlink()
    given = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "model": "nano", "n_layer": 1, "n_embd": 16}
    train({**given, "steps": 1, "device": "cpu", "val_every": 0, "batch_tokens": 256, "micro_batch": 4})
    said = capsys.readouterr().out
    assert "note:" in said
    assert "vocabulary 50,257" in said
