"""A run outlives its terminal: what a dropped connection, nohup and a dead pipe leave is a checkpoint, or a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from trainer_data import LONG_SECONDS, ROOT, TINY, command, environment, losses, without_notes, write_dataset

from trainer.checkpoint import list_checkpoints

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and terminals of Unix")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def started(data: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts a run that would go on for very long; gives its process, which is ended at the end."""
    processes = []

    def start(*, steps: int = 500_000, **options: Any) -> subprocess.Popen[str]:
        words = ("--data", data, "--out", tmp_path / "run", *TINY, "--steps", steps, "--save-every", "0")
        process = subprocess.Popen(command("train", *words), env=environment(), cwd=ROOT, text=True, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    while not (run / "log.jsonl").exists() or len(losses(run)) < steps:
        assert process.poll() is None
        time.sleep(0.05)


def assert_saved_at_its_last_step(run: Path) -> None:
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"step_{losses(run)[-1][0]:08d}.pt"]


OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_terminal_that_goes_away_leaves_a_checkpoint_and_no_traceback(data: Path, tmp_path: Path) -> None:
    run, (ours, theirs) = tmp_path / "run", os.openpty()
    words = command("train", "--data", data, "--out", run, *TINY, "--steps", "500000", "--save-every", "0")
    with open(tmp_path / "err", "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *words[1:]],
            env=environment(),
            cwd=ROOT,
            text=True,
            stdin=theirs,
            stdout=theirs,
            stderr=errors,
            start_new_session=True,  # which has that terminal: when we close it, the kernel sends SIGHUP
        )
    os.close(theirs)
    try:
        while not (run / "log.jsonl").exists() or len(losses(run)) < 3:
            assert process.poll() is None
            os.read(ours, 65536)
        os.close(ours)
        assert process.wait(LONG_SECONDS) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
    assert without_notes((tmp_path / "err").read_text()) == ""
    assert_saved_at_its_last_step(run)


def test_a_hangup_is_said_where_somebody_can_read_it(started: Any, tmp_path: Path) -> None:
    process = started(stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("step     3/"):
            process.send_signal(signal.SIGHUP)
            break
    assert "stopped by SIGHUP after step" in process.stdout.read()
    assert process.wait(LONG_SECONDS) == 128 + signal.SIGHUP
    assert_saved_at_its_last_step(tmp_path / "run")


def test_under_nohup_a_hangup_is_nothing(started: Any, tmp_path: Path) -> None:
    process = started(
        steps=40, stdout=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_for_steps(process, tmp_path / "run", 1)
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGHUP)
    assert process.wait(LONG_SECONDS) == 0
    assert losses(tmp_path / "run")[-1][0] == 40


def test_a_pipe_that_nobody_reads_any_more_does_not_end_the_run(started: Any, tmp_path: Path) -> None:
    process = started(steps=40, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert without_notes(process.stderr.read()) == ""
    assert process.wait(LONG_SECONDS) == 0
    assert_saved_at_its_last_step(tmp_path / "run")
