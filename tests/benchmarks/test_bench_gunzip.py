"""The benchmark of gzip runs, tiny, and its ways read the same text."""

from __future__ import annotations

import pytest

from benchmarks.bench_gunzip import WAYS, main


def test_all_ways_are_measured_on_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    rates = main(["--mb", "0.5", "--rounds", "1"])
    assert list(rates) == list(WAYS)
    assert min(rates.values()) > 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ratio ")
