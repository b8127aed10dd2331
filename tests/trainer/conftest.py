"""The trainer is a command line: its messages name flags. Its pictures are drawn where a test looks at them, and what
a busy machine takes long for is no part of what a run says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shardkit import ShardkitError
from trainer import console, log, plot


@pytest.fixture(autouse=True)
def command_line() -> Iterator[None]:
    with ShardkitError.naming_flags():
        yield


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """What is computed twice is the same bits, and threads that wait for each other take no other test's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _draw_nothing(_entries: object, path: Path, *_: object) -> None:
    path.write_bytes(b"no picture")


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    """matplotlib takes longer than all else that a tiny run does, at each save and each validation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "draw_losses", _draw_nothing)
        yield


@pytest.fixture(autouse=True)
def _nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SLOW_SECONDS", 3600.0)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of this test, in this process, draw what they draw elsewhere."""
    monkeypatch.setattr(log, "draw_losses", plot.draw_losses)
