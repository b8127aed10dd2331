"""The measurement of one main process runs: it plays workers, who say what the runner understands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_workers_that_are_played_answer_for_all_pieces() -> None:
    words = [sys.executable, "-m", "benchmarks.bench_main_process", "--workers", "3", "--pieces", "90"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.split(" ms a piece")[0].replace(".", "").isdigit()
    assert done.stdout.endswith(" cores\n")
