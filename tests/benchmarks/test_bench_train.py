"""The training benchmark runs, tiny, and both contestants train the same model."""

from __future__ import annotations

from pathlib import Path

import torch
from trainer_data import write_dataset

from benchmarks.bench_train import measure


def test_the_benchmark_gives_both_rates_and_their_ratio(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    given = {"model": "nano", "n_layer": 1, "n_embd": 32, "seq_len": 32, "micro_batch": 2, "batch_tokens": 128}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = measure(tmp_path, {**given, "device": "cpu"}, steps=2, rounds=1)
    torch.set_num_threads(before)
    assert result["ratio"] == result["trainer_tokens_per_second"] / result["plain_tokens_per_second"]
    assert result["plain_tokens_per_second"] > 0
    assert result["device"] == "cpu"
