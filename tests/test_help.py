"""What a newcomer reads before anything else: `--help`, its examples, `--version`, and what a shell completes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pages import parsed
from trainer_data import ROOT

from shardkit import __version__
from shardkit.cli import main
from trainer.__main__ import main as trainer_main

GROUPS = {"shardkit": main, "python -m trainer": trainer_main}
COMMANDS = [(program, name) for program, group in GROUPS.items() for name in group.commands]


def examples_in(program: str, text: str | None) -> Iterator[list[str]]:
    """The words of each command of `program` in a help text, without what the text says beside it."""
    for line in (text or "").splitlines():
        if line.strip().startswith(f"{program} "):
            yield shlex.split(line.strip().partition("   ")[0])[len(program.split()) :]


def parse(group: click.Group, words: list[str]) -> None:
    """Parse a command line to its end, without calling anything. A bad one raises."""
    parsed(group, words)


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_has_examples_that_it_takes(
    program: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    found = [*examples_in(program, GROUPS[program].commands[name].epilog)]
    assert found
    for words in found:
        assert words[0] == name
        parse(GROUPS[program], words)


def test_the_examples_of_the_whole_are_taken_too() -> None:
    for program, group in GROUPS.items():
        found = [*examples_in(program, group.help)]
        assert found
        for words in found:
            parse(group, words)


def test_an_example_with_a_slip_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(main, ["info", "out", "--jsno"])


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_no_line_of_the_list_of_commands_is_cut(group: click.Group) -> None:
    shown = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    assert shown.count("\n  ") > len(group.commands)
    assert "..." not in shown.replace("[ARGS]...", "")


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_version_is_that_of_the_package(group: click.Group) -> None:
    assert CliRunner().invoke(group, ["--version"]).output.endswith(f", version {__version__}\n")


SCRIPT = """
import atexit, json, pathlib, sys
before = set(sys.modules)
atexit.register(lambda: pathlib.Path(sys.argv[0] + ".json").write_text(json.dumps(sorted(set(sys.modules) - before))))
from {module} import {function}
sys.exit({function}())
"""
SHARDKIT, TRAINER = ("shardkit", "shardkit.cli", "run"), ("shardkit-train", "trainer.__main__", "main")


@pytest.mark.parametrize(
    ("script", "typed", "expected"),
    [
        (SHARDKIT, "shardkit ", set(main.commands)),
        (SHARDKIT, "shardkit to", {"tokenize"}),
        (SHARDKIT, "shardkit pull --sp", {"--split"}),
        (SHARDKIT, "shardkit convert a b --to ll", {"llmc"}),
        (TRAINER, "shardkit-train ", set(trainer_main.commands)),
        (TRAINER, "shardkit-train train --push", {"--push-checkpoints"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices_and_loads_nothing_heavy_for_it(
    tmp_path: Path, script: tuple[str, str, str], typed: str, expected: set[str]
) -> None:
    name, module, function = script
    (tmp_path / name).write_text(SCRIPT.format(module=module, function=function))
    words = typed.split(" ")
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1), "PYTHONPATH": str(ROOT)}
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    done = subprocess.run(
        [sys.executable, tmp_path / name],
        env={**os.environ, **asked, variable: "bash_complete"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected
    loaded = {name.partition(".")[0] for name in json.loads((tmp_path / f"{name}.json").read_text())}
    assert loaded - set(sys.stdlib_module_names) <= {"shardkit", "trainer", "click"}


@pytest.mark.parametrize("typed", ["verify ", "plan ", "peek ", "push a ", "pull ", "tokenize a ", "diff a "])
def test_a_shell_completes_paths_where_one_may_stand(typed: str) -> None:
    asked = {"COMP_WORDS": f"shardkit {typed}ou", "COMP_CWORD": str(len(typed.split()) + 1)}
    done = CliRunner(env={**asked, "_SHARDKIT_COMPLETE": "bash_complete"}).invoke(main, prog_name="shardkit")
    assert done.output == "file,ou\n"
