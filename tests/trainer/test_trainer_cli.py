"""The command line: its flags are pinned, and bad input is one clear line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from trainer_data import LONG_SECONDS, ROOT, TINY, command, environment, write_dataset

from shardkit import ShardkitError
from trainer import __main__ as main_module
from trainer import console
from trainer import run as run_module
from trainer import train as train_module
from trainer.__main__ import main
from trainer.train import train

TRAIN_FLAGS = """
--batch-tokens --beta1 --beta2 --compile --config --data --data-dir --deterministic --device --document-mask --epochs
--grad-clip --hellaswag --help --keep --layout --ledger --log-every --lr --micro-batch --min-lr --model --n-embd
--n-head --n-layer --optimizer --out --precision --prompt --push-checkpoints --resume --sample-every --save-every --seed
--seq-len --steps --tensorboard --tokenizer --val-every --val-tokens --wandb --warmup-steps --weight-decay
"""


@pytest.fixture(autouse=True)
def _unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(*words: str | Path, code: int) -> str:
    result = invoke(*words)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_the_flags_of_train_are_these() -> None:
    options = {o for p in main.commands["train"].params for o in p.opts} | {"--help"}
    assert options == set(TRAIN_FLAGS.split())


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("eval", "--checkpoint --data --device --hellaswag --precision --tokenizer --val-tokens"),
        ("sample", "--checkpoint --count --device --prompt --seed --temperature --tokenizer --tokens --top-k"),
        ("export", "--checkpoint --push"),
    ],
)
def test_the_flags_of_the_others_are_these(name: str, flags: str) -> None:
    assert {o for p in main.commands[name].params for o in p.opts if o.startswith("-")} == set(flags.split())
    assert invoke(name, "--help").exit_code == 0


def test_bad_input_is_one_line_and_tells_usage_from_the_rest(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    write_dataset(tmp_path / "noval", val=0)
    data, out = ("--data", tmp_path / "data"), ("--out", tmp_path / "run")
    assert "unknown model 'gpt9'" in refused("train", *data, *out, "--model", "gpt9", code=2)
    assert "--out is missing" in refused("train", *data, code=2)
    assert "--micro-batch 2 x --seq-len 32 x 1 ranks = 64" in refused(
        "train", *data, *out, *TINY, "--batch-tokens", "1000", code=2
    )
    assert "split 'val'" in refused("train", "--data", tmp_path / "noval", *out, *TINY, "--val-every", "5", code=2)
    assert "neither a Hub repo nor a folder" in refused("train", "--data", "nowhere", *out, *TINY, code=2)
    assert "no checkpoint" in refused("train", *data, *out, *TINY, "--resume", tmp_path / "x.pt", code=1)
    assert "holds no last checkpoint" in refused("sample", tmp_path / "data", code=1)
    for words in (("eval",), ("sample",), ("export", tmp_path / "hf")):
        assert f"there is no {tmp_path}/none: give a run" in refused(words[0], tmp_path / "none", *words[1:], code=2)
    assert not (tmp_path / "run").exists()


def test_wrong_arguments_are_said_before_torch_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("train", "sample"):
        monkeypatch.setitem(sys.modules, f"trainer.{module}", None)  # to import it is an error
    data, out = ("--data", tmp_path / "data"), ("--out", tmp_path / "run")
    assert "--out is missing" in refused("train", *data, code=2)
    assert "--out is missing" in refused("train", "--resume", "auto", code=2)
    assert "--data is missing" in refused("train", *out, code=2)
    assert "unknown model 'gpt9'" in refused("train", *data, *out, "--model", "gpt9", code=2)
    assert "is not a multiple of" in refused("train", *data, *out, *TINY, "--batch-tokens", "1000", code=2)
    assert "there is no" in refused("sample", tmp_path / "run", code=2)


def test_what_takes_long_is_said_on_stderr_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(what: str | None) -> str:
        with console.told(what):
            for thread in threading.enumerate():
                if isinstance(thread, threading.Timer):
                    thread.join(LONG_SECONDS)
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    monkeypatch.setattr(console, "SLOW_SECONDS", 0.0)
    assert said("loading torch") == "loading torch ...\n"
    assert said(None) == ""
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    assert said("loading torch") == ""
    monkeypatch.undo()
    monkeypatch.setattr(console, "SLOW_SECONDS", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert said("loading torch") == ""
    with console.told("not this"):
        pass  # over before its time
    monkeypatch.setattr(console, "SLOW_SECONDS", 3600.0)
    monkeypatch.setenv("RANK", "0")
    with console.told("nor this"):
        assert capsys.readouterr().err == ""


def test_each_long_part_of_a_command_has_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    @contextmanager
    def told(what: str | None) -> Iterator[None]:
        heard.extend([what] if what else [])
        yield

    for module in (main_module, train_module, run_module):
        monkeypatch.setattr(module, "told", told)
    write_dataset(tmp_path / "data")
    run, tiny = tmp_path / "run", (*TINY, "--val-every", "1", "--steps", "2")
    assert invoke("train", "--data", tmp_path / "data", "--out", run, *tiny).exit_code == 0
    assert heard == [
        "loading torch",
        "looking for a checkpoint",
        "opening the data and making the model (nano)",
        "the first validation",
        "the first step",
    ]
    for name, words in (("eval", "evaluating"), ("sample", "sampling from"), ("export", "exporting")):
        heard.clear()
        invoke(name, run, *([tmp_path / "hf"] if name == "export" else []))
        assert heard == ["loading torch", f"{words} {run}"]


def test_an_id_beyond_the_vocabulary_ends_training_with_its_shard_and_place(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    shard = tmp_path / "data" / "tiny_train_000001.npy"
    tokens = np.load(shard)
    tokens[1000:] = 300
    np.save(shard, tokens)
    error = refused("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY, code=1)
    assert re.search(r"tiny_train_000001\.npy holds id 300 at token \d,\d\d\d, the vocabulary has 257 ids", error)


@pytest.mark.usefixtures("pictures")
def test_train_eval_sample_and_export_follow_each_other(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    run = tmp_path / "run"
    words = (
        "--data",
        tmp_path / "data",
        "--out",
        run,
        *TINY,
        "--val-every",
        "4",
        "--steps",
        "4",
        "--sample-every",
        "2",
    )
    result = invoke("train", *words)
    assert result.exit_code == 0, result.output + str(result.exception)
    for part in ("epoch     23.38 steps; the run has 4", "unigram entropy", "wait", "ETA", "val loss", "sample  "):
        assert part in result.output
    assert {path.name for path in run.iterdir()} == {"config.toml", "log.jsonl", "loss.png", "checkpoints"}
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = json.loads(invoke("eval", run).output)
    assert told["val_loss"] == entries[-1]["val_loss"]
    assert told["bits_per_byte"] == entries[-1]["bits_per_byte"]
    one, two = (
        invoke("sample", run, "--seed", "1", "--tokens", "20"),
        invoke("sample", run, "--seed", "1", "--tokens", "20"),
    )
    assert one.output == two.output
    assert one.output.startswith("Hello, I'm a language model,")
    assert "holds the model and its tokenizer" in invoke("export", run, tmp_path / "hf").output
    assert told["val_loss"] == pytest.approx(
        json.loads(
            invoke(
                "eval", tmp_path / "hf", "--data", tmp_path / "data", "--val-tokens", "1024", "--tokenizer", "bytes"
            ).output
        )["val_loss"]
    )
    assert (
        invoke("sample", tmp_path / "hf", "--tokenizer", "bytes", "--temperature", "0", "--tokens", "5").exit_code == 0
    )


def test_a_toml_file_does_for_flags(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    first, second = tmp_path / "one", tmp_path / "two"
    assert invoke("train", "--data", tmp_path / "data", "--out", first, *TINY, "--steps", "2").exit_code == 0
    assert invoke("train", "--config", first / "config.toml", "--out", second).exit_code == 0
    assert (
        json.loads((first / "log.jsonl").read_text().splitlines()[1])["loss"]
        == (json.loads((second / "log.jsonl").read_text().splitlines()[1])["loss"])
    )


@pytest.mark.parametrize("name", ["config.toml", "log.jsonl", "checkpoints", ""])
def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path / "data")
    if name in ("config.toml", "log.jsonl"):
        (tmp_path / "run" / name).mkdir(parents=True)
    elif name:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).write_text("a file in the way")
    else:
        (tmp_path / "run").write_text("a file in the way")
    words = ("--data", tmp_path / "data", "--out", tmp_path / "run", *TINY, "--steps", "1")
    assert f"cannot write {tmp_path}/run" in refused("train", *words, code=1)
    with pytest.raises(ShardkitError, match="cannot write"):
        train({"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "model": "bigram", "device": "cpu"})


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    words = command("train", "--data", tmp_path, "--out", tmp_path)
    words[1:3] = ["-c", "import trainer.train as t, trainer.__main__ as m\nt.find_state = lambda *a: 1 / 0\nm.main()"]
    done = subprocess.run(
        words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=LONG_SECONDS, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
