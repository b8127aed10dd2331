"""What is shown of a run while it goes on: in Python as on the command line, on a terminal, in a notebook, in a log."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from hub_data import make_dataset
from hub_link import Link
from hub_server import HubServer

import shardkit
from shardkit import bars, pull, push
from shardkit.bars import TransferBar, end_bar
from shardkit.cli import main
from shardkit.errors import ShardkitWarning
from shardkit.rate_limits import PAUSES
from shardkit.remote import download
from shardkit.remote import pull as remote_pull

TEXTS = ["A short text."] * 50
tokenize = partial(shardkit.tokenize, tokenizer="bytes", shard_tokens=150, workers=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the first line, or for the next second."""
    monkeypatch.setattr(bars, "_FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(bars, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(bars, "_TICK_SECONDS", 0.01)


class Unread(Terminal):
    """A pipe whose reader has died."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def closed() -> Terminal:
    stream = Terminal()
    stream.close()
    return stream


class UnreadLog(Unread):
    def isatty(self) -> bool:
        return False


UNREAD = pytest.mark.parametrize(
    "stderr", [None, closed(), Unread(), UnreadLog()], ids=["none", "closed", "tty", "log"]
)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.01)


def test_tokenize_push_and_pull_say_in_python_how_far_they_are(
    at_once: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tokenize(TEXTS, tmp_path / "a")
    assert f"tokenize: {made.tokens:,} tokens, " in capsys.readouterr().err
    push(tmp_path / "a", str(tmp_path / "b"))
    size = f"{sum(shard.bytes for shard in made.shards) / 1000:.1f} kB"
    assert f"push: {size} of {size}" in capsys.readouterr().err
    pull(str(tmp_path / "b"), tmp_path / "c")
    assert f"pull: {size} of {size}" in capsys.readouterr().err


@UNREAD
def test_tokenize_push_and_pull_end_well_where_nobody_reads_stderr(
    at_once: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stderr: Any
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    made = tokenize(TEXTS, tmp_path / "a")
    push(tmp_path / "a", str(tmp_path / "b"))
    assert pull(str(tmp_path / "b"), tmp_path / "c") == made
    assert capsys.readouterr().out == ""


@UNREAD
def test_the_clock_and_pauses_go_on_where_nobody_reads_stderr(
    at_once: None, monkeypatch: pytest.MonkeyPatch, stderr: Any
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    drawn = threading.Semaphore(0)

    class Drawn(TransferBar):
        def draw(self) -> None:
            super().draw()
            drawn.release()

    with Drawn("pull") as bar:
        PAUSES.go_on(bar, 1e9, "the Hub")
        PAUSES.end(bar)
        for _ in range(3):
            assert drawn.acquire(timeout=200)


def test_progress_false_is_silence_and_a_function_is_called_instead(
    at_once: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []
    for number, progress in enumerate((False, None, lambda *step: seen.append(step))):
        place = tmp_path / str(number)
        tokenize(TEXTS, place / "a", progress=progress)  # type: ignore[arg-type]
        push(place / "a", str(place / "b"), progress=progress)  # type: ignore[arg-type]
        pull(str(place / "b"), place / "c", progress=progress)  # type: ignore[arg-type]
        assert bool(seen) == (number == 2)
    assert capsys.readouterr().err == ""


def test_quiet_commands_show_no_progress(at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("A short text, and another one. " * 90)
    said = {}
    for words in (
        "tokenize a.txt --out a --shard-tokens 500 --tokenizer bytes",
        "tokenize a.txt --out b --shard-tokens 500 --tokenizer bytes --part 0/1",
        "merge b",
        "push a ./far",
        "pull ./far in",
        "verify a",
        "diff a far",
        "convert a c --to llmc",
        "train-tokenizer a.txt --out vocabulary --vocab-size 260",
        "report a",
        "plan a.txt --tokenizer bytes",
    ):
        done = CliRunner().invoke(main, [*words.split(), "-q"], catch_exceptions=False)
        assert (done.exit_code, done.stderr) == (0, ""), words
        said[words.split()[0]] = done.stdout
    assert "tokens per second: " in said["tokenize"]
    assert CliRunner().invoke(main, ["push", "a", "./farther"]).stderr.startswith("push: ")
    quiet = {name for name, command in main.commands.items() if "quiet" in [one.name for one in command.params]}
    assert quiet == {*said}


class WatchedBar(TransferBar):
    """A bar of a pull that remembers how many other bars were at work when it began."""

    beside: ClassVar[list[int]] = []

    def __enter__(self) -> WatchedBar:
        self.beside.append(sum(thread.name == "shardkit-clock" for thread in threading.enumerate()))
        return super().__enter__()


def test_a_run_that_fetches_shards_at_its_end_has_one_bar_at_a_time_and_none_beside_a_users_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_pull, "TransferBar", WatchedBar)
    monkeypatch.setattr(WatchedBar, "beside", [])
    source, far = tmp_path / "texts.jsonl", str(tmp_path / "far")
    source.write_text('{"text": "A short text."}\n' * 50)
    made = tokenize(source, tmp_path / "a", push=far, progress=False)
    for number, progress in enumerate((False, None, lambda now: None)):
        out = tmp_path / str(number)
        assert tokenize(source, out, push=far, progress=progress) == made
    assert WatchedBar.beside == []
    assert tokenize(source, tmp_path / "b", push=far) == made
    assert WatchedBar.beside == [0]
    options = ["--tokenizer", "bytes", "--shard-tokens", "150", "--workers", "1", "--push", far, "--json"]
    result = CliRunner().invoke(main, ["tokenize", str(source), "--out", str(tmp_path / "c"), *options])
    assert result.exit_code == 0, result.output
    assert WatchedBar.beside == [0, 0]


def test_a_bar_that_has_ended_draws_no_more(at_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    with TransferBar("push") as bar:
        bar("x.npy", 1, 2)
        assert end_bar(bar)
        lines = capsys.readouterr().err
        assert "push: 1 B of 2 B" in lines
        bar("x.npy", 2, 2)
        assert end_bar(bar)
    assert capsys.readouterr().err == ""
    assert not end_bar(print)
    assert not end_bar(None)


def test_a_bar_moves_before_anything_has_come(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with TransferBar("pull"):
        wait_for(lambda: terminal.getvalue().count("starting") > 2)


def test_a_log_has_a_line_before_anything_has_come(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with TransferBar("pull"):
        wait_for(lambda: "pull: starting\n" in log.getvalue())


def test_a_bar_on_which_nothing_came_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with TransferBar("pull"):
        pass
    assert terminal.getvalue().rsplit("\r", 1)[-1].strip() == ""


def cut_off(bar: TransferBar) -> None:
    bar("x.npy", 1, 2)
    raise ShardkitWarning


def test_a_bar_ends_full_where_all_went_well_and_as_it_was_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "_SECONDS_BETWEEN_DRAWINGS", math.inf)  # of what comes between, nothing is drawn
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "A short text."}\n' * 50)
    for act in (
        lambda: tokenize(source, tmp_path / "a", max_docs=7),
        lambda: push(tmp_path / "a", str(tmp_path / "far")),
        lambda: pull(str(tmp_path / "far"), tmp_path / "b"),
    ):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        act()
        assert "100%" in terminal.getvalue().rsplit("\r", 1)[-1]
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(ShardkitWarning), TransferBar("pull") as bar:
        cut_off(bar)
    assert "50%" in terminal.getvalue().rsplit("\r", 1)[-1]


def test_a_warning_stands_on_a_line_of_its_own_above_the_bar() -> None:
    script = """
import io, sys, warnings
from shardkit.bars import TransferBar
from shardkit.cli.options import warnings_as_lines
from shardkit.errors import ShardkitWarning
sys.stderr.isatty = lambda: True
with warnings_as_lines(), TransferBar("pull") as bar:
    bar("x.npy", 1, 2)
    warnings.warn("beware", ShardkitWarning)
"""
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=True)
    before, after = done.stderr.decode().split("warning: beware\n")
    assert before.endswith("\r")  # where the bar was wiped
    assert "x.npy" in after


def test_a_notebook_without_widgets_has_a_bar_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tqdm.auto")]:
        monkeypatch.delitem(sys.modules, name)
    ipython = types.ModuleType("IPython")
    monkeypatch.setattr(
        ipython, "get_ipython", lambda: types.SimpleNamespace(config={"IPKernelApp": {}}), raising=False
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(sys, "stderr", cell := io.StringIO())
    with TransferBar("pull") as bar:
        bar("x.npy", 1, 2)
    assert "100%" in cell.getvalue()


def test_a_notebook_has_a_bar_though_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "50%" in drawn_in_a_notebook(monkeypatch)


def drawn_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> str:
    ipython = types.ModuleType("IPython")
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setattr(ipython, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys, "stderr", cell := io.StringIO())
    with pytest.raises(ShardkitWarning), TransferBar("pull") as bar:
        cut_off(bar)
    return cell.getvalue()


def test_a_pull_counts_the_bytes_of_files_that_are_not_whole_yet(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_WATCH_SECONDS", 0.01)
    made = make_dataset(tmp_path / "a", shards=2, tokens=400_000)
    hub.seed_repo("alice/texts", {path.name: path for path in (tmp_path / "a").iterdir()})
    hub.link = Link(total_rate=1_000_000)
    seen: list[tuple[str, int, int]] = []
    pull("alice/texts", tmp_path / "b", workers=1, progress=lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert [count for count in done if 0 < count < made.shards[0].bytes]
    assert done == sorted(done)
    assert done[-1] == seen[-1][2] == sum(shard.bytes for shard in made.shards)
