"""The soak of remote reading runs, and tells a run that is right from one that is not."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hub_wire import Fault

from benchmarks.hasty_runs import Ended
from benchmarks.soak_network import KINDS, draw_faults, fetched_again, what_is_wrong

ROOT = Path(__file__).parents[2]


def test_a_run_among_faults_ends_as_the_local_one() -> None:
    command = [sys.executable, "-m", "benchmarks.soak_network", "--runs", "1", "--only", "hub-parquet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("1 runs, 0 failed\n")


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        (Ended(0, ""), None),
        (Ended(1, "some warning\nerror: cannot read a.parquet\n"), None),
        (Ended(None, ""), "did not end"),
        (Ended(-9, ""), "ended with"),
        (Ended(2, "Traceback"), "ended with"),
        (Ended(1, "error: one\nerror: two"), "one line"),
        (Ended(1, ""), "one line"),
        (Ended(1, "error: cannot read http://localhost/x?Expires=1&Signature=2"), "secret"),
    ],
)
def test_a_wrong_end_is_told(ended: Ended, wrong: str | None) -> None:
    found = what_is_wrong(ended)
    assert found is None if wrong is None else wrong in str(found)


def test_bytes_that_a_later_run_fetched_again_are_counted_by_file() -> None:
    parts = [("/_cdn/a?Expires=1", 0, 100), ("/_cdn/a?Expires=2", 50, 100), ("/_cdn/b", 0, 10), ("/_cdn/a", 60, 10)]
    log = [{"target": name, "first": first, "bytes_out": size, "status": 206} for name, first, size in parts]
    assert fetched_again([log]) == 0
    assert fetched_again([log[:1], log[1:]]) == 50
    assert fetched_again([log, log, log[2:]]) == 160 + 20


def test_a_seed_draws_the_same_faults_and_the_server_knows_them_all() -> None:
    drawn = {kind: [draw_faults(random.Random(f"{seed} {kind}"), kind, seed) for seed in range(40)] for kind in KINDS}
    assert drawn == {kind: [draw_faults(random.Random(f"{n} {kind}"), kind, n) for n in range(40)] for kind in KINDS}
    rules = [Fault(**fields) for runs in drawn.values() for faults in runs for fields in faults]
    actions = {"stall", "drop", "drop_midway", "truncate", "status", "expire", "corrupt"}
    assert {rule.action for rule in rules} == actions
    assert "corrupt" not in {fault["action"] for faults in drawn["http-jsonl"] for fault in faults}  # none could tell
