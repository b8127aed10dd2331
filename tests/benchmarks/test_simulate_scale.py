"""The simulation of scale, by its command: a step in a process of its own says what it took."""

from __future__ import annotations

from pathlib import Path

from benchmarks.simulate_scale import Scale, _child

TOKENS = 2 * 10**9


def test_a_step_says_its_seconds_memory_and_bytes(tmp_path: Path) -> None:
    found = _child("write_journal", TOKENS, tmp_path)
    assert found["bytes"] == (tmp_path / ".shardkit" / "journal.jsonl").stat().st_size
    assert found["seconds"] > 0
    assert found["memory"] >= 0


def test_the_source_is_long_enough_for_the_stream() -> None:
    for tokens in (10**9, TOKENS, 14 * 10**11):
        scale = Scale(tokens=tokens)
        assert scale.chunks * scale.chunk_tokens >= tokens
        assert scale.files * 64 >= scale.chunks
