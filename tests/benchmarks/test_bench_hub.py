"""The benchmark runs, tiny, and reports what it says."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_hub import run


def test_the_benchmark_runs() -> None:
    result = run(
        Path(__file__).parents[1] / "support" / "hub_server.py",
        "hf_write",
        "alice",
        shards=2,
        shard_bytes=200_000,
        rounds=1,
    )
    assert result["bytes"] > 400_000
    assert set(result["MB/s"]) == {"push", "upload_folder", "pull", "snapshot_download"}
    assert result["push / upload_folder"] > 0
