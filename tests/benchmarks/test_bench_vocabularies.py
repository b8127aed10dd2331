"""The benchmark of vocabularies, run tiny."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_vocabularies


def test_a_vocabulary_with_a_guard_differs_in_nothing_and_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(bench_vocabularies, "PROSE_BYTES", 100_000)
    monkeypatch.setattr(bench_vocabularies, "_GUARD_MB", 1.0)
    monkeypatch.setattr(bench_vocabularies, "_REFERENCE_MB", 0.5)
    rows = bench_vocabularies.main(["--encodings", "o200k_base", "--megabytes", "1", "--strings", "500"])
    assert [(row.name, row.differences) for row in rows] == [("gpt2", 0), ("o200k_base", 0)]
    assert all(row.rate > 0 and row.reference_rate > 0 for row in rows)
    assert "strings, guard 17F, 0 s" in capsys.readouterr().out
