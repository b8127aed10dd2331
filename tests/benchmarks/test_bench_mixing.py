"""The mixing benchmark runs, tiny, and tells good mixing from bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.bench_mixing import measure, mixing


def test_the_mixing_of_a_sorted_source_is_measured(tmp_path: Path) -> None:
    sizes = {"shards": 24, "shard_rows": 24, "topics": 4, "batch_size": 8, "epochs": 3}
    found = dict(measure(tmp_path, spans=[4], **sizes))
    assert [*found] == ["copy", "neighbours 4", "copy 4", "stream 4"]
    assert found["copy 4"] == found["stream 4"]
    assert abs(found["copy"].lag_1) < 0.2
    assert found["neighbours 4"].lag_1 > 0.7
    assert found["neighbours 4"].lag_epoch > 0.7
    assert abs(found["stream 4"].lag_epoch) < 0.5
    assert 1.2 < found["stream 4"].variance < 0.6 * found["neighbours 4"].variance


def test_a_random_draw_has_no_correlation_and_the_variance_of_one() -> None:
    found = mixing(np.random.default_rng(0).integers(0, 8, (4000, 16)), count=8, epoch=1000)
    assert abs(found.lag_1) < 0.05
    assert abs(found.lag_epoch) < 0.05
    assert 0.95 < found.variance < 1.05
