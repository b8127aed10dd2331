"""The floors hold, imports stay light, and the public names are what the documentation promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

import shardkit
from shardkit.cli import main

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "click", "datasets", "pyarrow", "ray", "huggingface_hub", "tiktoken", "matplotlib", "pandas"}


def test_a_module_imports_only_from_lower_floors() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_shardkit_loads_nothing_heavy() -> None:
    code = "import sys, shardkit; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_the_command_line_loads_nothing_heavy_for_its_help() -> None:
    code = (
        "import sys; from shardkit.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not (HEAVY | {"numpy"}) - {"click"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("word", "homes"),
    [("import torch", ("loader", "trainer/")), ("import click", ("cli.py", "trainer/")), ("pickle", ("runners/",))],
)
def test_a_heavy_or_dangerous_import_stays_where_it_belongs(word: str, homes: tuple[str, ...]) -> None:
    sources = [*ROOT.glob("shardkit/**/*.py"), *ROOT.glob("trainer/**/*.py")]
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sources
        if any(line.strip().startswith((word, f"from {word.split()[-1]}")) for line in path.read_text().splitlines())
    ]
    assert all(any(home in path for home in homes) for path in found), found


def test_the_public_names_are_pinned() -> None:
    names = (
        "Manifest ShardLoader ShardkitError Tokenizer UsageError __version__ merge_ledger open_shard pull push tokenize"
    )
    assert shardkit.__all__ == names.split()
    assert all(getattr(shardkit, name) is not None for name in shardkit.__all__)


OPTIONS = {
    "tokenize": "source --out --name --split --revision --text-field --separator --skip-bad-rows --tokenizer --encoder "
    "--shard-tokens --val-shards --prefix --workers --max-docs --max-tokens --push --private --max-disk --runner "
    "--overwrite --json",
    "push": "directory repo --private --revision --tag --overwrite --json",
    "pull": "repo directory --revision --split --shards --json",
    "info": "directory --json",
    "verify": "directory --hashes --json",
    "peek": "directory --document --run --step --micro-step --rank --row --batch-size --seq-len --world-size --seed "
    "--split --shuffle --layout --span --eot-id --tokens --tokenizer --json",
}


def test_the_commands_and_their_options_are_pinned() -> None:
    assert set(main.commands) == set(OPTIONS)
    for name, expected in OPTIONS.items():
        found = {option for parameter in main.commands[name].params for option in _names(parameter)}
        assert found == set(expected.split()), name


def _names(parameter: click.Parameter) -> list[str]:
    return [str(parameter.name)] if isinstance(parameter, click.Argument) else list(parameter.opts)


def test_every_command_and_option_has_help_and_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, command in main.commands.items():
        assert command.help, name
        assert f"shardkit {name}" in readme, name
