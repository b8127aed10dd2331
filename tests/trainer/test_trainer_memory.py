"""Out of memory is one line with a micro-batch that fits: what it advises is done, under the same limit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_data import LONG_SECONDS, ROOT, environment, losses, without_notes, write_dataset

from trainer.config import Config
from trainer.memory import _halving, is_out_of_memory

# What the process may have beyond what it holds when it has imported all.
LIMITED = """
import resource, sys
from trainer.__main__ import main
import trainer.train
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = used + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
main(sys.argv[2:])
"""


def run_within(megabytes: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(megabytes), *map(str, words)],
        env={**environment(), "MALLOC_ARENA_MAX": "1"},  # else a thread that comes or not takes 128 MB of addresses
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit to the address space")
def test_out_of_memory_names_a_micro_batch_and_that_one_fits(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=140_000)
    words = ("train", "--data", tmp_path / "data", "--out", tmp_path / "run", "--model", "nano", "--device", "cpu")
    words = (*words, "--batch-tokens", "65536", "--val-tokens", "1024", "--val-every", "2", "--steps", "2")
    done = run_within(450, *words, "--micro-batch", "1024")
    assert done.returncode == 1, done.stdout + done.stderr
    line = r"error: out of memory with --micro-batch 1024 and --seq-len 64: --micro-batch (\d+) would fit, .*\n"
    said = re.fullmatch(line, without_notes(done.stderr))
    assert said is not None, done.stderr
    assert 1024 % int(said[1]) == 0
    done = run_within(450, *words, "--micro-batch", said[1])
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit to the address space")
def test_a_model_that_does_not_fit_at_all_is_said(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    words = ("--data", tmp_path / "data", "--out", tmp_path / "run", "--model", "124m", "--device", "cpu")
    done = run_within(100, "train", *words, "--seq-len", "64", "--batch-tokens", "64", "--micro-batch", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("the model and its optimizer do not fit, use a smaller --model")


def test_only_an_allocation_that_failed_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_few_of_the_micro_batches_that_divide_a_step_are_tried_and_the_least_always() -> None:
    config = Config(batch_tokens=524_288, seq_len=1024, micro_batch=64)
    assert config.micro_batches(1) == [1, 2, 4, 8, 16, 32, 64]
    assert config.micro_batches(8) == [1, 2, 4, 8, 16, 32, 64]
    assert _halving([1, 2, 3, 4, 6, 8, 12, 24, 36, 72]) == [36, 12, 6, 3, 1]
    assert _halving([1]) == []
