"""Errors of the machine are told from bugs."""

from __future__ import annotations

import ast
import errno
import inspect
import os
import re
from pathlib import Path

import pytest
from click import Option
from click.testing import CliRunner
from hub_data import make_dataset

from shardkit import ShardLoader, convert, diff, errors, peek, plan, pull, push, report, tokenize, verify
from shardkit.cli import main
from shardkit.errors import ShardkitError, ShardkitWarning, SourceError, machine_fault
from shardkit.tokenization.training import train_tokenizer


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_an_error_of_the_machine_is_one_line_that_names_the_file_and_what_to_do(code: int) -> None:
    line = str(machine_fault(OSError(code, os.strerror(code), "/data/x.npy")))
    assert line.startswith(f"{os.strerror(code)} (/data/x.npy): ")
    assert line.endswith(", and run the same command again")


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), OSError(errno.EBADF, "Bad file"), KeyError(1)])
def test_any_other_exception_is_a_bug(error: Exception) -> None:
    assert machine_fault(error) is None


def test_a_command_ends_with_the_line_for_the_machine_and_with_a_traceback_for_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path)
    error: Exception = OSError(errno.EMFILE, "Too many open files", "x")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("shardkit.look.verify.check_all", fail)
    result = CliRunner().invoke(main, ["verify", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: Too many open files (x): allow more open files")
    error = MemoryError()
    assert "error: out of memory" in CliRunner().invoke(main, ["verify", str(tmp_path)]).stderr
    error = RuntimeError("can't start new thread")
    assert "error: no room for another thread" in CliRunner().invoke(main, ["verify", str(tmp_path)]).stderr
    error = OSError(errno.EBADF, "Bad file descriptor")
    assert CliRunner().invoke(main, ["verify", str(tmp_path)]).exception is error


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("no output folder: give --out DIR", "no output folder: give out=DIR"),
        ("--workers is 0: expected 1", "workers is 0: expected 1"),
        ("run again with --shard-tokens 5000 --overwrite", "run again with shard_tokens=5000 overwrite=True"),
        ("name another with --text-field", "name another with text_field="),
        ("or give --encoder=tiktoken", "or give encoder='tiktoken'"),
        ("push without --private, or", "push without private=True, or"),
        ("--prefix 'train': expected", "prefix='train': expected"),
        ("or `shardkit push --overwrite` to replace", "or `shardkit push --overwrite` to replace"),
        ("https://host/a--out x--y -- z", "https://host/a--out x--y -- z"),
    ],
)
def test_a_message_names_arguments_in_python_and_flags_on_a_command_line(flags: str, arguments: str) -> None:
    for kind in (ShardkitError, ShardkitWarning):
        assert str(kind(flags)) == arguments
        with ShardkitError.naming_flags():
            assert str(kind(flags)) == flags
        assert str(kind(flags)) == arguments


def test_a_worker_leaves_it_to_who_asked_how_an_option_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(SourceError, match=r"no field 'text' among 'body' \(text_field=\); .* with skip_bad_rows=True"):
        tokenize(str(tmp_path / "a.jsonl"), tmp_path / "out", tokenizer="bytes", workers=1)
    words = ["tokenize", str(tmp_path / "a.jsonl"), "--tokenizer", "bytes", "--workers", "1"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert "no field 'text' among 'body' (--text-field)" in result.stderr
    (tmp_path / "long.txt").write_text("x" * 12_600_000)
    with pytest.raises(SourceError, match="or give separator="):
        tokenize(str(tmp_path / "long.txt"), tmp_path / "b", workers=1)
    result = CliRunner().invoke(main, ["tokenize", str(tmp_path / "long.txt"), "--out", str(tmp_path / "b")])
    assert "or give --separator" in result.stderr


SPEAKERS = (ShardLoader, convert, diff, peek, plan, pull, push, report, tokenize, train_tokenizer, verify)


def test_every_option_that_a_message_of_ours_names_is_an_argument_too() -> None:
    named = set()
    for path in sorted((Path(__file__).parents[1] / "shardkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                text = ast.unparse(node)
                commands_left_out = re.sub(r"`[^`]*`", "", text)
                named |= {
                    flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", commands_left_out)
                }
    public = {name for thing in SPEAKERS for name in inspect.signature(thing).parameters}
    assert named - public == set()


def test_a_path_and_the_flag_of_another_program_are_no_options_of_ours() -> None:
    for text in ("/data/--val/x.txt is missing", "x.--val", "install it again, with pip's `--force-reinstall`"):
        assert str(ShardkitError(text)) == text


def test_an_error_of_the_input_or_the_machine_is_its_line_and_not_what_lies_below() -> None:
    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ShardkitError)}
    ours |= {"write_error", "unreadable", "missing_package"}
    chained = set()  # of what may be a bug: whatever an engine, a file's content or a user's function raised
    for path in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None and isinstance(node.cause, ast.Name):
                made = {name.id for name in ast.walk(node.exc) if isinstance(name, ast.Name)}
                chained |= {f"{path.name} {name}" for name in made & ours}
    assert chained == {
        "engines.py UsageError",
        "tokenizer_json.py TokenizerError",
        "user_functions.py SourceError",
        "user_functions.py UsageError",
    }


def test_the_options_without_a_value_are_known_as_such() -> None:
    options = [option for command in main.commands.values() for option in command.params if isinstance(option, Option)]
    switches = {word[2:] for option in options if option.is_flag and not option.secondary_opts for word in option.opts}
    assert switches - {"", "json", "help", "quiet"} == errors._SWITCHES  # of the command line alone
