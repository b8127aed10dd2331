"""What is shown of a run while it goes on: in Python as on the command line, on a terminal, in a notebook, in a log."""

from __future__ import annotations

import io
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_data import make_dataset
from hub_link import Link
from hub_server import HubServer

from shardkit import bars, pull, push, tokenize
from shardkit.bars import TransferBar
from shardkit.remote import download

TEXTS = ["A short text."] * 50


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the first line, or for the next second."""
    monkeypatch.setattr(bars, "_FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(bars, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(bars, "_TICK_SECONDS", 0.01)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.01)


def test_tokenize_push_and_pull_say_in_python_how_far_they_are(
    at_once: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tokenize(TEXTS, tmp_path / "a", shard_tokens=50, workers=1)
    assert f"tokenize: {made.tokens:,} tokens, " in capsys.readouterr().err
    push(tmp_path / "a", str(tmp_path / "b"))
    size = f"{sum(shard.bytes for shard in made.shards) / 1000:.1f} kB"
    assert f"push: {size} of {size}" in capsys.readouterr().err
    pull(str(tmp_path / "b"), tmp_path / "c")
    assert f"pull: {size} of {size}" in capsys.readouterr().err


def test_progress_false_is_silence_and_a_function_is_called_instead(
    at_once: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []
    for number, progress in enumerate((False, None, lambda *step: seen.append(step))):
        place = tmp_path / str(number)
        tokenize(TEXTS, place / "a", shard_tokens=50, workers=1, progress=progress)  # type: ignore[arg-type]
        push(place / "a", str(place / "b"), progress=progress)  # type: ignore[arg-type]
        pull(str(place / "b"), place / "c", progress=progress)  # type: ignore[arg-type]
        assert bool(seen) == (number == 2)
    assert capsys.readouterr().err == ""


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


def test_a_notebook_has_a_bar_though_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython = types.ModuleType("IPython")
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setattr(ipython, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys, "stderr", cell := io.StringIO())
    with TransferBar("pull") as bar:
        bar("x.npy", 1, 2)
    assert "50%" in cell.getvalue()


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
