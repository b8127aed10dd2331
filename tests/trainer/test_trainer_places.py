"""A stranger's checkpoint decides the model, and never what is read here, or where anything is sent or reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from trainer_data import write_dataset

from shardkit import UsageError
from trainer.__main__ import main
from trainer.checkpoint import list_checkpoints, load_checkpoint
from trainer.config import names_of
from trainer.places import read_own
from trainer.train import train

SHAPE = {"model": "nano", "n_layer": 1, "n_embd": 32, "seq_len": 32, "micro_batch": 2, "batch_tokens": 64}


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A checkpoint whose every place is the stranger's; data of the same content lie in `mine`."""
    write_dataset(tmp_path / "theirs")
    shutil.copytree(tmp_path / "theirs", tmp_path / "mine")
    words = {"data": str(tmp_path / "theirs"), "device": "cpu", "val_every": 0, "keep": 7}
    train({**words, **SHAPE, "out": str(tmp_path / "run"), "steps": 2})
    state = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    loot = (tmp_path / "loot").as_uri()
    theirs = {
        "push_checkpoints": loot,
        "hellaswag": f"{loot}/\x1b[2Jhellaswag.jsonl",
        "wandb": "https://spy/loot?token=abc",
        "tensorboard": True,
        "data_dir": str(tmp_path / "loot"),
        "tokenizer": str(tmp_path / "loot.json"),
        "out": str(tmp_path / "loot"),
        "resume": "auto",
    }
    state["config"] = json.dumps({**json.loads(state["config"]), **theirs})
    state["tokenizer"] = theirs["tokenizer"]
    torch.save(state, tmp_path / "stranger.pt")
    assert {*theirs, "data"} == {*names_of("place")}
    return tmp_path / "stranger.pt"


def test_places_in_a_strangers_checkpoint_are_not_used_and_are_printed(
    stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    with pytest.raises(UsageError, match="--data is missing"):
        train({"resume": str(stranger), "out": str(tmp_path / "out")})
    train(
        {"resume": str(stranger), "out": str(tmp_path / "out"), "data": str(tmp_path / "mine"), "steps": 3, "keep": 1}
    )
    said = capsys.readouterr().out
    assert "resumed   after step 2" in said
    note = next(line for line in said.splitlines() if line.startswith("note: not taken from the checkpoint: "))
    for flag in (
        "--data ",
        "--push-checkpoints ",
        "--hellaswag ",
        "--wandb ",
        "--tensorboard ",
        "--data-dir ",
        "--tokenizer ",
    ):
        assert flag in note
    assert "token=abc" not in said
    assert "\x1b" not in said
    assert "note: other than in the checkpoint: --steps 3 (was 2), --keep 1 (was 7)" in said
    assert not list(tmp_path.glob("loot*"))
    config = (tmp_path / "out" / "config.toml").read_text()
    assert "loot" not in config
    assert "theirs" not in config
    kept = json.loads(load_checkpoint(list_checkpoints(tmp_path / "out" / "checkpoints")[-1])["config"])
    assert "loot" not in json.dumps(kept)


def test_a_run_goes_on_with_the_places_of_its_own_config_toml(
    stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = (tmp_path / "remote").as_uri()
    words = {"data": str(tmp_path / "mine"), "device": "cpu", "val_every": 0, "push_checkpoints": remote}
    train({**words, **SHAPE, "out": str(tmp_path / "out"), "steps": 2})
    shutil.rmtree(tmp_path / "remote")
    shutil.copy(stranger, tmp_path / "out" / "checkpoints" / "step_00000002.pt")
    train({"resume": "auto", "out": str(tmp_path / "out"), "steps": 3})
    assert [path.name for path in (tmp_path / "remote" / "checkpoints").iterdir()] == ["step_00000003.pt"]
    assert not list(tmp_path.glob("loot*"))
    assert f"note: from the run's config.toml: --data '{tmp_path}/mine', " in capsys.readouterr().out


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew_by_its_config_toml(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    words = {"data": str(tmp_path / "data"), "device": "cpu", "val_every": 0, "seed": 7, **SHAPE}
    train({**words, "out": str(tmp_path / "run"), "steps": 2})
    losses = (tmp_path / "run" / "log.jsonl").read_text().count('"loss"')
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UsageError, match=r"another config: --seed 8 \(was 7\); leave that out"):
        train({"out": str(tmp_path / "run"), "resume": "auto", "seed": 8})
    train({"out": str(tmp_path / "run"), "resume": "auto", "steps": 3})
    assert (tmp_path / "run" / "log.jsonl").read_text().count('"loss"') == losses + 1
    config = read_own(tmp_path / "run")
    assert (config["seed"], config["steps"], config["n_embd"]) == (7, 3, 32)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train({**words, "out": str(tmp_path / "run"), "resume": "auto", "seed": 8, "steps": 1})  # says all: another run
    assert read_own(tmp_path / "run")["seed"] == 8


def test_eval_and_sample_read_nothing_that_a_strangers_checkpoint_names(stranger: Path, tmp_path: Path) -> None:
    (tmp_path / "loot.json").mkdir()  # whoever opens it says so

    def say(*words: Any) -> tuple[int, str]:
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert not isinstance(result.exception, Exception), result.exception
        return result.exit_code, result.output

    for command in (("eval", "--hellaswag", tmp_path / "none.jsonl"), ("sample",)):
        code, said = say(*command, stranger, "--device", "cpu")
        assert code == 2
        assert "the checkpoint's tokenizer is a file" in said
    code, said = say("eval", stranger, "--device", "cpu", "--tokenizer", "bytes")
    assert code == 2
    assert "give --data or --hellaswag" in said
    code, said = say("eval", stranger, "--device", "cpu", "--tokenizer", "bytes", "--data", tmp_path / "mine")
    assert code == 0
    assert json.loads(said)["val_loss"] > 0
    assert say("eval", tmp_path / "run", "--device", "cpu")[0] == 0  # a run of one's own says where its data are


def test_a_dataset_that_was_moved_is_said_with_where_it_was(
    stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    words = {**SHAPE, "device": "cpu", "val_every": 0, "out": str(tmp_path / "out")}
    for place in ("here", "data/here", str(tmp_path / "work" / "here")):  # a name, what might be a repo, a path
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "mine", place)
        train({**words, "data": place, "steps": 1})
        full = (tmp_path / "work" / place).resolve()
        shutil.move(place, tmp_path / "work" / "renamed")
        with pytest.raises(
            UsageError, match=f"^the folder {full}, which this run was trained on, is not there any more"
        ):
            train({"resume": "auto", "out": words["out"], "steps": 2})
        train({"resume": "auto", "out": words["out"], "steps": 2, "data": "renamed"})
        shutil.rmtree("renamed")
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(tmp_path / "mine", "here")
    train({**words, "data": "here", "steps": 1})
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"is still there: give --data {tmp_path}/work/here$"):
        train({"resume": "auto", "out": words["out"], "steps": 2})


def test_no_pull_is_announced_of_what_is_no_remote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="^'nothere' is neither a Hub repo nor a folder: write user/name"):
        train({**SHAPE, "device": "cpu", "out": str(tmp_path / "out"), "data": "nothere"})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", ["/nowhere/shards", "./shards", "../shards", "~/shards"])
def test_a_folder_that_was_never_there_is_no_remote(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match=r"^there is no folder /?\S*shards: give --data"):
        train({**SHAPE, "device": "cpu", "out": str(tmp_path / "out"), "data": place})


def test_the_home_folder_is_meant_by_a_tilde_that_no_shell_expanded(
    stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    train({**SHAPE, "device": "cpu", "val_every": 0, "steps": 1, "data": "~/mine", "out": "~/out"})
    assert (tmp_path / "out" / "log.jsonl").exists()
