"""The loader's benchmark runs: every contestant, tiny, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks.bench_loader
from benchmarks.bench_loader import CONTESTANTS, MANY_SHARDS, contend, report, write_shards, write_sparse


def test_every_contestant_of_the_loader_benchmark_runs(tmp_path: Path) -> None:
    write_shards(tmp_path, 50_000, 12_000)
    found = {name: contend(name, tmp_path, 2, 64) for name in CONTESTANTS}
    assert all(value > 0 for name in CONTESTANTS for key, value in found[name].items() if not key.endswith("_mb"))
    lines = report([found, found]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(CONTESTANTS)
    assert "100.0%" in lines[1]


def test_the_benchmark_of_many_shards_times_construction_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.bench_loader, "STEPS_TO_OPEN", 100)
    write_sparse(tmp_path / "many", 30, 60_000)
    times = contend(MANY_SHARDS, tmp_path / "many", 2, 64)
    assert list(times) == ["construct_ms", "opening_step_ms", "step_ms"]
    assert all(value > 0 for value in times.values())
