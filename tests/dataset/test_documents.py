"""The scan for documents' starts, and when it is spared."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_data import EOT, document_stream, streams, write_stream
from loader_data import write_documents

import shardkit.dataset.documents
from shardkit.dataset.documents import document_starts
from shardkit.dataset.token_stream import Tokens, open_split


@settings(max_examples=60, deadline=None)
@given(tokens=streams(), cuts=st.lists(st.integers(1, 400), max_size=5), block=st.integers(1, 500))
def test_every_start_is_found_whatever_the_shards_and_blocks(
    tokens: Tokens, cuts: list[int], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = write_stream(tmp_path_factory.mktemp("s"), tokens, cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardkit.dataset.documents, "_BLOCK_TOKENS", block)
        found = document_starts(stream, EOT, None)
    assert found.dtype == np.int64
    assert found.tolist() == np.flatnonzero(tokens == EOT).tolist()


def test_starts_are_kept_and_of_another_dataset_or_eot_found_anew(tmp_path: Path) -> None:
    cache = tmp_path / "kept"
    stream = write_stream(tmp_path / "a", document_stream([3, 5, 0]), [4])
    first = document_starts(stream, EOT, cache).tolist()
    (kept,) = [path for path in cache.iterdir() if path.is_dir()]
    written = (kept / "starts.npy").stat().st_mtime_ns
    assert document_starts(stream, EOT, cache).tolist() == first == [0, 4, 10]
    assert (kept / "starts.npy").stat().st_mtime_ns == written
    assert document_starts(stream, 5, cache).tolist() == [5]
    other = write_stream(tmp_path / "b", document_stream([2, 5, 1]), [4])
    assert document_starts(other, EOT, cache).tolist() == [0, 3, 9]
    assert sum(path.is_dir() for path in cache.iterdir()) == 3


def test_a_bare_shard_that_was_written_again_is_scanned_again(tmp_path: Path) -> None:
    tokens = np.tile(document_stream([98]), 200)  # its edges, all that a bare shard is known by, stay as they are
    stream = write_stream(tmp_path / "a", tokens, [])
    assert len(document_starts(stream, EOT, tmp_path / "kept")) == 200
    tokens[9_900] = 0
    path = tmp_path / "a" / "x_train_000000.npy"
    before = path.stat().st_mtime_ns
    np.save(path, tokens)
    os.utime(path, ns=(before + 1, before + 1))
    stream = open_split(tmp_path / "a", "train", verify=False)[1]
    assert len(document_starts(stream, EOT, tmp_path / "kept")) == 199


def test_shards_that_were_written_anew_are_looked_through_anew(tmp_path: Path) -> None:
    """What was found in a damaged shard must not be used for the one that replaced it."""
    write_documents(tmp_path, [("f", [1, 2, 3])] * 10, tokens_per_shard=20)
    for written_at, folders in ((1, 1), (1, 1), (2, 2)):
        for shard in tmp_path.glob("*.npy"):
            os.utime(shard, (written_at, written_at))
        stream = open_split(tmp_path, "train", verify=False)[1]
        assert document_starts(stream, 50256, tmp_path / "kept").tolist() == [0, 4, 8, 12, 16]
        assert sum(path.is_dir() for path in (tmp_path / "kept").iterdir()) == folders
