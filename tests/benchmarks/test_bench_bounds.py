"""The inputs that are made to take much: each is made and measured, and what a few of them take is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_bounds import INPUTS, line, measure


@pytest.mark.parametrize("name", ["blank lines", "dictionary", "one text"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, name: str) -> None:
    found = measure(name, tmp_path, 120_000_000, workers=1, tokenizer="bytes")
    assert found["rc"] == 0, found["said"]
    assert found["bytes"] < 650_000_000  # before there were pieces: 752 MB for the text, 918 for the dictionary
    assert found["kept"] < 10_000
    assert name in line(name, 120_000_000, found)


def test_every_input_can_be_made(tmp_path: Path) -> None:
    for name, make in INPUTS.items():
        (tmp_path / name).mkdir()
        assert make(tmp_path / name, 100_000).stat().st_size > 0
