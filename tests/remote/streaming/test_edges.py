"""Edges are kept whole or not at all, and go with their dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardkit.errors import OutputError
from shardkit.remote.streaming.edges import EdgeFolder, edge_bytes

TOKENS = np.arange(9, dtype="<u2")


def test_an_edge_is_read_back_whole_and_no_damaged_one_is(tmp_path: Path) -> None:
    folder = EdgeFolder(tmp_path / "edges" / "a", np.dtype("<u2"))
    assert folder.read("x", 9) is None
    folder.write("x", TOKENS)
    found = folder.read("x", 9)
    assert found is not None
    assert found.tolist() == TOKENS.tolist()
    assert folder.read("x", 8) is None
    path = tmp_path / "edges" / "a" / "x"
    data = path.read_bytes()
    assert len(data) <= edge_bytes(9, 2)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert folder.read("x", 9) is None
        path.write_bytes(data[:place])
        assert folder.read("x", 9) is None
    folder.write("x", TOKENS)
    assert folder.read("x", 9) is not None
    assert [path.name for path in (tmp_path / "edges" / "a").iterdir()] == ["x"]


def test_edges_of_another_dataset_go_when_the_first_of_this_one_comes(tmp_path: Path) -> None:
    old, new = (EdgeFolder(tmp_path / "edges" / name, np.dtype("<u2")) for name in "ab")
    old.write("x", TOKENS)
    new.write("x", TOKENS)
    new.write("y", TOKENS)
    assert old.read("x", 9) is None
    assert new.read("x", 9) is not None


def test_an_edge_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "edges").write_text("in the way")
    with pytest.raises(OutputError, match="edges"):
        EdgeFolder(tmp_path / "edges" / "a", np.dtype("<u2")).write("x", TOKENS)
