"""The loader's benchmark runs: every contestant, tiny, in this process."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_loader import CONTESTANTS, contend, report, write_shards


def test_every_contestant_of_the_loader_benchmark_runs(tmp_path: Path) -> None:
    write_shards(tmp_path, 50_000, 12_000)
    found = {name: contend(name, tmp_path, 2, 64) for name in CONTESTANTS}
    assert all(value > 0 for name in CONTESTANTS for key, value in found[name].items() if not key.endswith("_mb"))
    lines = report([found, found]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(CONTESTANTS)
    assert "100.0%" in lines[1]
