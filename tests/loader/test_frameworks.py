"""The programs of docs/frameworks.md, stopped and gone on with: they are fed what the loader alone gives."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from shardkit import ShardLoader, merge_ledger, tokenize

ROOT = Path(__file__).parents[2]
_PROGRAM = re.compile(r"^## (.+?)\n.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS: dict[str, str] = dict(_PROGRAM.findall((ROOT / "docs/frameworks.md").read_text()))
STEPS = (5, 7, 17)  # in epoch 0, at its end, in epoch 2: an epoch is 7 batches of 8 windows, and 3 windows are over


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 59 windows of 16."""
    folder = tmp_path_factory.mktemp("data") / "data"
    texts = ["".join(chr(97 + (number * place) % 26) for place in range(94)) for number in range(10)]
    tokenize(texts, folder, tokenizer="bytes", shard_tokens=300, val_shards=0, workers=1)
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders in which every program was run up to each of `STEPS`, by ranks and name."""
    home = tmp_path_factory.mktemp("runs")
    (home / "programs.json").write_text(json.dumps(PROGRAMS))
    for steps in STEPS:
        processes = [launch(home, data, ranks, steps) for ranks in (1, 2)]
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-4000:]
    return home


def launch(home: Path, data: Path, ranks: int, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    arguments = [home / "programs.json", data, home / str(ranks), ",".join(map(str, free_ports())), steps]
    return subprocess.Popen(
        [*command, str(ROOT / "tests/support/framework_rank.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_ports() -> list[int]:
    """As many as there are programs."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PROGRAMS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The running sums of the ledger of a loader alone."""
    folder = tmp_path_factory.mktemp("expected")
    with ShardLoader(data, batch_size=8, seq_len=16, ledger=folder) as loader:
        assert (loader.steps_per_epoch, loader.remainder_windows) == (7, 3)
        for _ in range(STEPS[-1]):
            loader.next_batch()
    return dict(merge_ledger(folder).running)


def test_every_framework_has_a_program() -> None:
    assert list(PROGRAMS) == ["Plain PyTorch", "StatefulDataLoader", "accelerate", "transformers' Trainer", "Lightning"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_framework_feeds_what_the_loader_alone_gives_stopped_and_gone_on_with(
    name: str, ranks: int, runs: Path, expected: dict[int, str]
) -> None:
    ledger = merge_ledger(runs / str(ranks) / name / "ledger")
    assert dict(ledger.running) == expected
