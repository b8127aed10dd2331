"""The bake-off of encoder engines, run tiny: every engine that is installed, in its own process."""

from __future__ import annotations

import pytest

from benchmarks.bench_encoders import SETS, made_up_words, main


def test_the_fast_engine_and_the_reference_differ_in_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--megabytes", "0.05", "--words", "0.01", "--every", "2000", "--long", "200"]
    rows = main([*tiny, "--engines", "tiktoken", "fastokens"])
    assert [row["name"] for row in rows] == ["tiktoken", "fastokens"]
    assert all(row["differences"] == dict.fromkeys(SETS, 0) for row in rows)
    assert all(row["cold_mb_per_second"] > 0 and row["warm_mb_per_second"] > 0 for row in rows)
    assert "fastokens" in capsys.readouterr().out


def test_made_up_words_are_distinct() -> None:
    words = [word for batch in made_up_words(0.6) for text in batch for word in text.split()]
    assert len(words) == len(set(words)) == 600_000
