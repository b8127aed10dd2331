"""Real ranks under torchrun: equal ledgers at any world size and after a SIGKILL, and no run on two datasets."""

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
from shardkit.dataset.manifest import Manifest

SUPPORT = Path(__file__).parents[1] / "support"
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts `loader_rank.py` under torchrun."""
    write_shards(tmp_path / "shards", [1000, 3000, 777, 2500], vals=1)

    def start(
        run: str, *, ranks: int, batch_size: int, steps: int, hold_at: int = 0, shards: str = "shards"
    ) -> subprocess.Popen[str]:
        (tmp_path / run).mkdir(exist_ok=True)
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
                *("--log-dir", str(tmp_path / run / "logs"), "--redirects", "1"),
                *(str(SUPPORT / "loader_rank.py"), str(tmp_path / shards), str(tmp_path / run)),
                *(str(batch_size), str(steps), str(hold_at)),
            ],
            env={**os.environ, "PYTHONPATH": str(SUPPORT.parents[1]), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run to end well."""
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def test_ledgers_are_equal_on_one_two_and_four_ranks_and_after_a_kill(launch: Launch, tmp_path: Path) -> None:
    # 392 windows an epoch: 32 batches of 16 go into the second
    finish(launch("one", ranks=1, batch_size=16, steps=32))
    finish(launch("two", ranks=2, batch_size=8, steps=32))
    killed = launch("four", ranks=4, batch_size=4, steps=32, hold_at=12)
    while not (tmp_path / "four" / "held").exists():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    for rank in range(4):  # torchrun puts its ranks into sessions of their own
        os.kill(int((tmp_path / "four" / f"pid{rank}").read_text()), signal.SIGKILL)
    killed.communicate()
    at_kill = merge_ledger(tmp_path / "four" / "ledger")
    assert max(at_kill.running) == 12 * 16
    step = json.loads((tmp_path / "four" / "state.json").read_text())["step"]
    assert step == 10
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


def said(run: Path) -> list[str]:
    """What each rank printed."""
    return [path.read_text() for path in sorted(run.glob("logs/**/stdout.log"))]


@pytest.mark.parametrize("other", ["another dataset", "none"])
def test_ranks_on_different_data_all_refuse_with_the_same_line(other: str, launch: Launch, tmp_path: Path) -> None:
    write_shards(tmp_path / "data0", [3000])
    if other == "another dataset":
        write_shards(tmp_path / "data1", [3001])
    process = launch("run", ranks=2, batch_size=4, steps=4, shards="data{rank}")
    process.communicate(timeout=240)
    assert process.returncode == 1
    lines = said(tmp_path / "run")
    if other == "none":
        assert lines == [
            f"StateError: rank 1 cannot open its data: no folder {tmp_path / 'data1'}: give a folder of shards "
            "(`shardkit pull` fetches one)\n",
            f"ManifestError: no folder {tmp_path / 'data1'}: give a folder of shards (`shardkit pull` fetches one)\n",
        ]
        return
    assert lines[0] == lines[1]
    fingerprints = [Manifest.from_shards(tmp_path / f"data{rank}").fingerprint[:16] for rank in range(2)]
    assert lines[0].startswith(
        "StateError: rank 1 would read other data than rank 0 (other fingerprint): rank 0 has name "
        f"{tmp_path / 'data0'}, fingerprint {fingerprints[0]}; rank 1 has name {tmp_path / 'data1'}, fingerprint "
        f"{fingerprints[1]}: give every rank the same dataset"
    )
    assert lines[0].count("\n") == 1


def test_ranks_on_copies_of_one_dataset_go_on(launch: Launch, tmp_path: Path) -> None:
    for rank in range(2):
        write_shards(tmp_path / f"data{rank}", [3000])
    finish(launch("run", ranks=2, batch_size=4, steps=4, shards="data{rank}"))
    assert list(merge_ledger(tmp_path / "run" / "ledger").running) == [8, 16, 24, 32]
