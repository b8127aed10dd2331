"""Several ranks are one process with a larger batch: same gradient, same numbers, one end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_data import LONG_SECONDS, ROOT, environment, launch_worker, write_dataset
from trainer_worker import measure

from shardkit import UsageError
from trainer.distributed import choose_precision, find_world, once_a_node

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launch(mode: str, data: Path, out: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    out.mkdir(parents=True)
    return launch_worker(mode, data, out, ranks=ranks)


def test_gradient_and_evaluation_are_the_same_for_any_world_size_and_micro_batch(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", val=990, document_tokens=12)
    (tmp_path / "w1").mkdir()
    with pytest.raises(SystemExit, match="0"):
        measure(tmp_path / "data", tmp_path / "w1")
    results: list[dict[str, Any]] = torch.load(tmp_path / "w1" / "results.pt", weights_only=True)
    for ranks in (2, 4):
        done = launch("measure", tmp_path / "data", tmp_path / f"w{ranks}", ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        results += torch.load(tmp_path / f"w{ranks}" / "results.pt", weights_only=True)
    assert len(results) == 18
    ones = {result["layout"]: result for result in results[4:6]}  # of one process, the largest micro-batch
    assert float((ones["contiguous"]["gradient"] - ones["packed"]["gradient"]).norm()) > 0.01
    assert ones["contiguous"]["val_loss"] != ones["packed"]["val_loss"]
    for other in results:
        one = ones[other["layout"]]
        difference = float((other["gradient"] - one["gradient"]).norm() / one["gradient"].norm())
        assert difference < 1e-6, other["micro"]
        assert other["val_loss"] == one["val_loss"]
        assert other["hellaswag"] == one["hellaswag"]


def test_a_failing_rank_shows_its_traceback_and_ends_all(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    done = launch("fail", tmp_path / "data", tmp_path / "run", 2)
    assert done.returncode != 0
    assert "ZeroDivisionError: a bug on rank 1" in done.stderr
    assert "step     1/500" in done.stdout
    assert "step     2/500" not in done.stdout  # rank 0 was not left to wait for a rank that is gone, nor went on


def test_a_process_that_nobody_launched_is_alone() -> None:
    world = find_world("cpu")
    assert (world.rank, world.size, world.is_main, world.device.type) == (0, 1, True, "cpu")


def test_half_set_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK, WORLD_SIZE set, but not LOCAL_RANK"):
        find_world("cpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="expected cuda, mps or cpu"):
        find_world("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch sees 0 GPUs"):
            find_world("cuda")


def test_precision_is_what_the_device_has() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == torch.float32
    assert choose_precision("bf16", cpu) == torch.bfloat16
    with pytest.raises(UsageError, match="needs a cuda device"):
        choose_precision("fp16", cpu)


@pytest.mark.parametrize(("major", "expected"), [(9, torch.bfloat16), (7, torch.float16), (6, torch.float32)])
def test_a_gpu_without_bf16_gets_fp16_or_fp32(
    major: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert choose_precision("auto", torch.device("cuda:0")) == expected


def test_work_that_is_done_once_a_node_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three processes of one launcher, forked when torch is imported: that takes longer than all else.
    script = (
        "import os, sys, time; from pathlib import Path; from trainer.distributed import find_world, once_a_node\n"
        "out, ranks = Path(sys.argv[1]), range(3)\n"
        "def rank_is(rank):\n"
        "    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '3'}; world = find_world('cpu')\n"
        "    def work(): time.sleep(1); (out / f'by{rank}').write_text('')\n"
        "    once_a_node(world, 'test', work)\n"
        "    (out / f'after{rank}').write_text(str(len(list(out.glob('by*')))))\n"
        "def start(rank):\n"
        "    if child := os.fork(): return child\n"
        "    try: rank_is(rank)\n"
        "    except BaseException as error: print(error, file=sys.stderr); os._exit(1)\n"
        "    os._exit(0)\n"
        "sys.exit(any(os.waitpid(child, 0)[1] for child in [start(rank) for rank in ranks]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, env=environment(), timeout=LONG_SECONDS, check=False).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after0", "after1", "after2", "by0"]
    assert all((tmp_path / f"after{rank}").read_text() == "1" for rank in range(3))
    once_a_node(find_world("cpu"), "test", lambda: (tmp_path / "alone").touch())
    assert (tmp_path / "alone").exists()
