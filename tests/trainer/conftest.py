"""The trainer is a command line: its messages name flags."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardkit import ShardkitError


@pytest.fixture(autouse=True)
def command_line() -> Iterator[None]:
    with ShardkitError.naming_flags():
        yield
