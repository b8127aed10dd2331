"""The benchmark of the main process, by its commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_scale


def test_a_corpus_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_scale"])
    with pytest.raises(SystemExit) as ended:
        bench_scale.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: give --corpus FOLDER or --small")


def test_each_kind_of_small_things_has_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run(corpus: Path, *how: Any) -> dict[str, float]:
        asked.append(how)
        return real(corpus, *how) if len(asked) == 8 else {"main": 1.0}  # one of them is a run

    real = bench_scale.run
    monkeypatch.setattr(bench_scale, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench_scale", "--small", "0.001", "--workers", "1"])
    bench_scale.main()
    lines = capsys.readouterr().out.splitlines()
    counts = [re.findall(r"([0-9,]+): [0-9.]+", line) for line in lines]
    assert counts == [["5", "20"], ["5", "20"], ["1,000", "4,000"], ["2", "20"]]
    assert asked[-1] == (1, "local", "bytes", 1_000)


def test_small_things_are_as_small_as_they_are_called(tmp_path: Path) -> None:
    sizes = []
    for write in (bench_scale.write_texts, bench_scale.write_parquet, bench_scale.write_lines, bench_scale.write_text):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder, 3)
        sizes.append([path.stat().st_size for path in folder.iterdir()])
    assert sizes[0] == [1_000] * 3
    assert len(sizes[1]) == 3
    assert all(9_500 < size < 10_500 for size in sizes[1])
    assert sizes[2] == [3 * 25]
    assert sum(sizes[3]) + len(sizes[3]) == 3 * 1_000  # an end of text each
