"""The benchmark of fetching runs, tiny, and counts what both ways really read."""

from __future__ import annotations

import pytest

from benchmarks.bench_fetch import WAYS, main


def test_both_ways_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    rates = main(["--mb", "1", "--rounds", "1"])
    assert list(rates) == list(WAYS)
    assert min(rates.values()) > 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ratio ")
