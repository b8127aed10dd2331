"""The layouts' benchmark runs: every measurement, tiny, in this process."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_layouts import CONTESTANTS, measure, plan_line, rate_lines, use_lines, write_documents


def test_every_measurement_of_the_layouts_benchmark_runs(tmp_path: Path) -> None:
    folder, cache = tmp_path / "data", tmp_path / "kept"
    write_documents(folder, 200_000, 60_000)
    for what in ("plan", "plan cold", "plan again"):
        found = measure(what, folder, 2, 64, cache)
        assert found["use"] > 0.9
        assert found["seconds"] > 0
        assert what in plan_line(what, found)
    rates = {name: measure(name, folder, 2, 64, cache) for name in CONTESTANTS}
    lines = list(rate_lines([rates, rates]))
    assert len(lines) == len(CONTESTANTS)
    assert "100.0% of contiguous" in lines[0]
    words = [line.split()[0].rstrip(":") for line in use_lines(folder, 64)]
    assert words == ["contiguous", "document", *["packed"] * 5]
