"""The benchmark of parts that are pushed at once runs, tiny."""

from __future__ import annotations

import pytest

from benchmarks.bench_parts_at_once import main


def test_parts_that_are_pushed_at_once_all_end(capsys: pytest.CaptureFixture[str]) -> None:
    found = main(["--parts", "3", "--commit-seconds", "0.05"])
    assert (found["ended"], found["gave up"]) == (3, [])
    assert found["commits"] >= 6  # a claim, and an end
    assert capsys.readouterr().out.startswith("3 of 3 parts ended in ")
