"""What grows with the shards grows with them alone: a hundredth of 1.4T tokens, and a fiftieth, by made-up counts.

Counted are the operations of Python (the lines that are executed), the bytes of files and the memory; never a clock.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks.simulate_scale import STEPS, Scale, sequence, span_order, write_journal
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import Manifest

SHARDS = 140
TWICE = 2.3  # and no more than that much for twice the shards
Counts = dict[str, dict[str, int]]


def scale(shards: int) -> Scale:
    """As many chunks and files a shard as shards of 100M tokens have."""
    return Scale(tokens=shards * 10_000, tokens_per_shard=10_000, chunk_tokens=470)


def operations(action: Callable[[], Any]) -> int:
    """How many lines of Python `action` takes: each turn of a loop counts, whatever is called in it."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def measure(shards: int, folder: Path) -> Counts:
    """What each step takes, one after the other in `folder`."""
    found = {}
    for step in STEPS:
        counted: dict[str, int] = {}
        tracemalloc.start()
        counted["operations"] = operations(lambda: counted.update(step(scale(shards), folder)))  # noqa: B023
        counted["memory"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found[step.__name__] = counted
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")]


@pytest.fixture(scope="module")
def counts(folders: list[Path]) -> list[Counts]:
    measure(10, folders[0])  # what is imported and compiled at first counts for none
    for path in sorted(folders[0].rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return [measure(SHARDS * (number + 1), folder) for number, folder in enumerate(folders)]


@pytest.mark.parametrize("step", [step.__name__ for step in STEPS])
def test_twice_the_shards_take_twice_the_operations_memory_and_bytes(step: str, counts: list[Counts]) -> None:
    one, two = (found[step] for found in counts)
    assert {name: two[name] / one[name] for name in one if two[name] > TWICE * one[name]} == {}


def test_all_that_was_sequenced_is_in_the_journal_and_the_manifest(folders: list[Path], counts: list[Counts]) -> None:
    manifest = Manifest.load(folders[0])
    assert manifest.tokens == scale(SHARDS).tokens
    assert [shard.tokens for shard in manifest.shards] == [10_000] * SHARDS
    assert manifest.source is not None
    assert manifest.tokens == sum(file.tokens for file in manifest.source.files)
    assert manifest.documents == sum(file.documents for file in manifest.source.files)
    assert counts[0]["push_journal"]["shards"] == SHARDS


def test_a_run_that_is_resumed_at_90_percent_ends_with_the_journal_of_one_that_was_not(
    folders: list[Path], counts: list[Counts]
) -> None:
    killed = folders[0] / "killed"
    assert counts[0]["resume_at_90_percent"]["shards"] == SHARDS * 9 // 10
    for shard in Manifest.load(folders[0]).shards[: SHARDS * 9 // 10]:
        (killed / shard.file).hardlink_to(folders[0] / shard.file)
    assert sequence(scale(SHARDS), killed) == Manifest.load(folders[0])
    assert (killed / JOURNAL_FILE).read_bytes() == (folders[0] / JOURNAL_FILE).read_bytes()


def test_what_a_visit_to_a_span_costs_does_not_depend_on_the_shards() -> None:
    costs = []
    for shards in (SHARDS, 4 * SHARDS):
        order, _ = span_order(scale(shards))
        order.shards(0)
        costs.append(operations(lambda: order.seams(order.n_spans // 2)))  # noqa: B023
    assert costs[1] <= 2 * costs[0]


def test_a_cost_that_grows_with_the_square_is_seen(tmp_path: Path) -> None:
    def quadratic(shards: int) -> int:
        return operations(lambda: [1 for _ in range(shards) for _ in range(shards)])

    assert quadratic(200) > TWICE * quadratic(100)
    one, two = (operations(lambda: write_journal(scale(n), tmp_path / str(n))) for n in (20, 40))  # noqa: B023
    assert 1.5 * one < two < TWICE * one
