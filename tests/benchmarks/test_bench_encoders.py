"""The bake-off of encoder engines, run tiny: every engine that is installed, in its own process."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bench_encoders import SETS, differences, encode_all, made_up_words, main, sampled


def test_the_fast_engine_and_the_reference_differ_in_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--megabytes", "0.05", "--words", "0.01", "--every", "2000", "--long", "200"]
    rows = main([*tiny, "--engines", "tiktoken", "fastokens"])
    assert [row["name"] for row in rows] == ["tiktoken", "fastokens"]
    assert all(row["differences"] == dict.fromkeys(SETS, 0) for row in rows)
    assert all(row["cold_mb_per_second"] > 0 and row["warm_mb_per_second"] > 0 for row in rows)
    assert all(row["words"] == 0.01 and row["peak_mb"] > 0 and row["start"] > 0 for row in rows)
    assert "fastokens" in capsys.readouterr().out


def test_what_cannot_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--megabytes", "0.05", "--words", "0.01", "--every", "20000", "--long", "20", "--encoding", "gpt2"]
    assert main([*tiny, "--most-gb", "0.05", "--engines", "tokenizers"]) == []
    assert "tokenizers   not run: " in capsys.readouterr().out


@pytest.mark.parametrize("most_seconds", [1e9, 1e-9])
def test_of_a_sample_each_document_that_an_engine_encodes_otherwise_counts(most_seconds: float) -> None:
    batches = [[str(number + 10 * batch) for number in range(10)] for batch in range(1, 4)]

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([int(digit) for text in texts for digit in text]), np.arange(0, 2 * len(texts) + 1, 2)

    def swap(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return encode([{"12": "21", "22": "00", "13": "31"}.get(text, text) for text in texts])

    expected = encode_all(encode, sampled(batches, 4))
    assert expected.ids.reshape(-1, 2).tolist() == [[1, 0], [1, 4], [1, 8], [2, 2], [2, 6], [3, 0], [3, 4], [3, 8]]
    assert differences(expected[:2], encode_all(encode, batches, every=4)[:2]) == 0
    found = encode_all(swap, batches, every=4, most_seconds=most_seconds)
    assert (differences(expected[:2], found[:2]), found.bytes) == ((1, 60) if most_seconds > 1 else (0, 20))


def test_made_up_words_are_distinct() -> None:
    words = [word for batch in made_up_words(0.6) for text in batch for word in text.split()]
    assert len(words) == len(set(words)) == 600_000
