"""README's and the documentation's blocks, as steps to run, and a process that runs them.

A line of an `sh` block is a step, a `python` block is one. Two kinds are not run, but looked at by `faults_of`: lines
that set a machine up or need what this one lacks (`ELSEWHERE`), and `bash` blocks, which are for other machines.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```([a-z-]*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SHOWN = {"text", "json", "toml", "ini", "diff", ""}  # what is read and not typed
# A clone's own commands, other people's machines, eight GPUs, a cluster.
ELSEWHERE = re.compile(r"(make|pip|git|cd|hf|export|sbatch|[a-z]+=\$|torchrun) ?|.*--runner ray")
NOT_OURS = {"git", "cd", "hf", "export", "sbatch", "python"}
TINY = "--model nano --n-layer 1 --n-head 2 --n-embd 32 --steps 2 --batch-tokens 128 --micro-batch 2 --seq-len 32"

_NOTEBOOK = """
import json, os, shlex, sys, traceback
from forked_workers import forked_workers
ANSWERS = os.dup(1)
os.dup2(2, 1)
def command(words):
    from glob import glob
    sys.argv = [word for shown in words for word in (sorted(glob(shown)) if "*" in shown else ()) or [shown]]
    if sys.argv[0] == "shardkit":
        from shardkit.cli import main
        return main()
    from trainer.__main__ import main
    sys.argv = sys.argv[2:]
    return main()
workers = forked_workers()
workers.__enter__()  # until the process ends
for line in sys.stdin:
    step = json.loads(line)
    os.chdir(step["folder"])
    code = 0
    try:
        if step["language"] == "python":
            exec(compile(step["text"], step["page"], "exec"), {"__name__": "__main__"})
        else:
            command(shlex.split(step["text"], comments=True))
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(ANSWERS, json.dumps(code).encode() + b"\\n")
"""


class Step(NamedTuple):
    """A line for a shell, or a block for an interpreter, and the page that has it."""

    page: str
    language: str
    text: str


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The language and the text of each fenced block of a page (its path in the repository)."""
    found = []
    for indent, language, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")):
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        found.append((language, "\n".join(lines) + "\n"))
    return found


def _commands(block: str) -> list[str]:
    """The lines of a block for a shell, those that a backslash continues as one, without what is only a remark."""
    lines = re.sub(r"\\\n *", "", block).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def steps_of(page: str) -> tuple[list[Step], list[Step]]:
    """The steps of a page that are run here, from the top to the bottom, and those that are only looked at."""
    here, there = [], []
    for language, block in blocks_of(page):
        assert language in {"sh", "bash", "python"} | SHOWN, (page, language)
        if language == "python":
            here.append(Step(page, language, block))
        elif language == "bash":
            there += [Step(page, language, line) for line in _commands(block)]
        elif language == "sh":
            for line in _commands(block):
                (there if ELSEWHERE.match(line) else here).append(Step(page, language, line))
    return here, there


def for_this_machine(text: str, commit: str = "") -> str:
    """The step for the user `alice` of the local Hub, at a commit that there is, and a model for a CPU."""
    text = text.replace("you/", "alice/").replace("--revision SHA", f"--revision {commit}")
    text = re.sub(r"--model (gpt2-124m|nano)( --steps [0-9]+)?", TINY, text)
    text = re.sub(r"(python -m trainer train --data (?!.*--model).*)", rf"\1 {TINY}", text)
    return text.replace("--run run --step 1200", "--run run --step 2")


def faults_of(line: str) -> Iterator[str]:
    """What is wrong with a line that cannot be run here: an option, extra or target that does not exist."""
    for part in re.split(r" *(?:;|&&|\|) *", re.sub(r" +#.*", "", line)):
        words = shlex.split(re.sub(r"^(?:[a-z]+=|eval \")\$\((.*)\)\"?$", r"\1", part))
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield from _faults_of_command(words)


def _faults_of_command(words: list[str]) -> Iterator[str]:
    from shardkit.cli import main as shardkit
    from trainer.__main__ import main as trainer

    name, *rest = words
    if name == "shardkit":
        yield from _parsed(shardkit, rest)
    elif words[:3] == ["python", "-m", "trainer"] or name == "shardkit-train":
        yield from _parsed(trainer, words[3:] if name == "python" else rest)
    elif name == "torchrun":
        yield from _parsed_by_torchrun(rest)
    elif name == "make":
        yield from (f"no target {word}" for word in rest if f"\n{word}:" not in (ROOT / "Makefile").read_text())
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [extra for text in rest for group in re.findall(r"\[(.*?)\]", text) for extra in group.split(",")]
        yield from (f"no extra {extra}" for extra in named if extra not in extras)
    elif name not in NOT_OURS:
        yield f"nobody knows how to look at {words}"


def parsed(group: click.Group, words: list[str]) -> click.Context:
    """The context of a command whose words were parsed, and which was not called. Below that of its group: click asks
    once how a command calls its help, and remembers it in this process."""
    above = click.Context(group, **group.context_settings)
    return group.commands[words[0]].make_context(words[0], list(words[1:]), parent=above)


def _parsed(group: click.Group, words: list[str]) -> Iterator[str]:
    """What click has against them. Nothing is called."""
    if not words:
        return
    if words[0] not in group.commands:
        yield f"no command {words[0]}"
        return
    try:
        parsed(group, words)
    except click.ClickException as error:
        yield error.format_message()


def _parsed_by_torchrun(words: list[str]) -> Iterator[str]:
    from torch.distributed.run import get_args_parser

    try:
        options = get_args_parser().parse_args(words)
    except SystemExit:
        yield f"torchrun does not know {words}"
        return
    program = [options.training_script, *options.training_script_args]
    if options.module or options.no_python:
        yield from _faults_of_command(["python", "-m", *program] if options.module else program)
    elif not program[0].endswith(".py"):
        yield f"torchrun would not run {program[0]}"


class Notebook:
    """One process that runs steps: a `python` block with names of its own, a line of ours (`shardkit`, `python -m
    trainer`) by the functions that its console script calls. To start and import takes longer than most steps do."""

    def __init__(self, **options: Any) -> None:
        self._said = TemporaryFile("a+")  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r}){_NOTEBOOK}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            **options,
        )

    def run(self, step: Step, folder: Path) -> tuple[int | None, str]:
        """Its exit code (None: the process is gone) and what it said, run in `folder`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        begin = self._said.seek(0, 2)
        self._process.stdin.write(json.dumps({**step._asdict(), "folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        self._said.seek(begin)
        return (json.loads(answer) if answer else None), self._said.read()

    def end(self) -> int:
        """Its exit code."""
        self._process.communicate()
        self._said.close()
        return self._process.returncode
