"""The first things that people type: a command with nothing, with `--help`, with a wrong thing, in a wrong place.
None ends in a traceback, and each says in one line what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hub_server import HubServer

from shardkit.cli import main

COMMANDS = sorted(main.commands)
READERS = ("info", "verify", "peek")  # of a dataset's folder


@pytest.fixture
def place(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what a newcomer has lying about; the Hub has nothing."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "readme.pdf").write_text("%PDF")
    (tmp_path / "notes.txt").write_text("Some notes.")
    (tmp_path / "nothing.txt").touch()
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more than that")
    (tmp_path / "broken.jsonl").write_text('{"text": "good"}\n{"text": \n')
    (tmp_path / "other.jsonl").write_text('{"body": "x"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use(*words: str) -> Result:
    """What comes of a command; a bug is raised."""
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def assert_one_line(done: Result) -> None:
    """It failed, and said why in one line of its own."""
    assert done.exit_code in (1, 2), done.output
    said = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert len(said[0]) > len("error: ") + 10
    assert "Traceback" not in done.output


def test_without_a_command_the_help_is_shown() -> None:
    done = use()
    assert "Usage: " in done.output
    assert all(name in done.output for name in COMMANDS)


@pytest.mark.parametrize("help_word", ["--help", "-h"])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_there_for_every_command(command: str | None, help_word: str) -> None:
    done = use(*([command] if command else []), help_word)
    assert done.exit_code == 0
    assert "Usage: " in done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_its_arguments_says_what_it_needs(command: str, place: Path) -> None:
    assert_one_line(use(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_does_not_exist_is_named(command: str, place: Path) -> None:
    done = use(command, "--tokeniser", "gpt2")
    assert_one_line(done)
    assert "--tokeniser" in done.stderr


@pytest.mark.parametrize("folder", ["nowhere", "empty", "docs", "notes.txt", "table.csv", ".", "/", "", "user/name"])
@pytest.mark.parametrize("command", READERS)
def test_a_place_that_is_no_dataset_is_refused(command: str, folder: str, place: Path) -> None:
    assert_one_line(use(command, folder))


@pytest.mark.parametrize("folder", ["nowhere", "empty", "docs", "notes.txt", ".", ""])
@pytest.mark.parametrize("repo", ["user/name", "./far", "", "https://huggingface.co/datasets/user/name"])
def test_a_push_of_no_dataset_is_refused_and_makes_nothing(folder: str, repo: str, place: Path) -> None:
    assert_one_line(use("push", folder, repo))
    assert not (place / "far").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["user/name"],
        ["user/name", "notes.txt"],
        ["nowhere"],
        ["./nowhere", "in"],
        ["empty", "in"],
        ["docs", "in"],
        ["notes.txt", "in"],
        ["", "in"],
        [".", "."],
        ["user/name", "--shards", "3"],
        ["user/name", "--shards", "5:2"],
    ],
)
def test_a_pull_of_no_dataset_is_refused(words: list[str], place: Path) -> None:
    assert_one_line(use("pull", *words))


@pytest.mark.parametrize(
    "words",
    [
        ["notes.txt"],  # no --out
        ["sample", "--out", "notes.txt"],
        ["sample", "--out", "docs"],
        ["sample", "--out", ""],
        ["nowhere.txt", "--out", "out"],
        ["nothing.txt", "--out", "out", "--separator", ""],
        ["empty", "--out", "out"],
        ["docs", "--out", "out"],
        ["table.csv", "--out", "out"],
        ["broken.parquet", "--out", "out"],
        ["broken.jsonl", "--out", "out"],
        ["other.jsonl", "--out", "out"],
        ["*.parque", "--out", "out"],
        ["user/name", "--out", "out"],
        ["", "--out", "out"],
        ["sample", "--out", "out", "--tokenizer", "gpt5"],
        ["sample", "--out", "out", "--tokenizer", "notes.txt"],
        ["sample", "--out", "out", "--tokenizer", "empty"],
        ["sample", "--out", "out", "--tokenizer", "user/model"],
        ["sample", "--out", "out", "--workers", "0"],
        ["sample", "--out", "out", "--workers", "many"],
        ["sample", "--out", "out", "--max-docs", "-1"],
        ["sample", "--out", "out", "--private"],
        ["sample", "--out", "out", "--push", "out"],
    ],
)
@pytest.mark.parametrize("command", ["tokenize"])
def test_a_first_tokenize_with_a_slip_says_what_is_wrong(command: str, words: list[str], place: Path) -> None:
    assert_one_line(use(command, *words))
    assert not list(place.rglob("manifest.json"))


@pytest.mark.parametrize("source", ["nowhere.txt", "empty", "docs", "table.csv", "broken.jsonl", "user/name", ""])
def test_a_first_vocabulary_of_no_text_says_what_is_wrong(source: str, place: Path) -> None:
    assert_one_line(use("train-tokenizer", source, "--out", "vocabulary"))
