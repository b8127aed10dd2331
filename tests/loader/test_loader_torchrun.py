"""Real ranks under torchrun: equal ledgers at any world size, and after a SIGKILL and a resume at another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loader_data import write_shards

from shardkit.batches.ledger import Ledger, merge_ledger

SUPPORT = Path(__file__).parents[1] / "support"
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts `loader_rank.py` under torchrun."""
    write_shards(tmp_path / "shards", [1000, 3000, 777, 2500], vals=1)

    def start(run: str, *, ranks: int, batch_size: int, steps: int, pause: float = 0) -> subprocess.Popen[str]:
        (tmp_path / run).mkdir(exist_ok=True)
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
                *(str(SUPPORT / "loader_rank.py"), str(tmp_path / "shards"), str(tmp_path / run)),
                *(str(batch_size), str(steps), str(pause)),
            ],
            env={**os.environ, "PYTHONPATH": str(SUPPORT.parents[1]), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run to end well."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_ledgers_are_equal_on_one_two_and_four_ranks_and_after_a_kill(launch: Launch, tmp_path: Path) -> None:
    # 392 windows an epoch: 32 batches of 16 go into the second
    finish(launch("one", ranks=1, batch_size=16, steps=32))
    finish(launch("two", ranks=2, batch_size=8, steps=32))
    killed = launch("four", ranks=4, batch_size=4, steps=32, pause=0.1)
    saved = tmp_path / "four" / "state.json"
    deadline = time.monotonic() + 60
    while not (saved.exists() and json.loads(saved.read_text())["step"] >= 10):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    for rank in range(4):  # torchrun puts its ranks into sessions of their own
        os.kill(int((tmp_path / "four" / f"pid{rank}").read_text()), signal.SIGKILL)
    killed.communicate()
    at_kill = merge_ledger(tmp_path / "four" / "ledger")
    assert 160 <= max(at_kill.running) < 512
    step = json.loads(saved.read_text())["step"]
    finish(launch("four", ranks=2, batch_size=4, steps=step + (512 - 16 * step) // 8))  # half the global batch

    def ledger(run: str) -> Ledger:
        return merge_ledger(tmp_path / run / "ledger")

    one, two, four = ledger("one"), ledger("two"), ledger("four")
    assert list(one.running) == list(range(16, 513, 16))
    assert one.running == two.running
    assert one.first_difference(four) is None
    assert set(at_kill.running.items()) <= set(four.running.items())
    assert four.running[512] == one.running[512]
    assert len(list((tmp_path / "four" / "ledger").iterdir())) == 6
