"""Where a token came from, against a slow and obvious count."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_data import write_documents, write_shards

import shardkit.dataset.documents
from shardkit.dataset.documents import Location, locate_token
from shardkit.dataset.token_stream import open_split


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), min_size=4, max_size=20),
    tokens_per_shard=st.integers(2, 12),
    skipped=st.integers(0, 5),
    block=st.sampled_from([1, 3, 1 << 20]),
)
def test_every_token_is_traced_to_its_document_file_and_row(
    sizes: list[tuple[str, int]],
    tokens_per_shard: int,
    skipped: int,
    block: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows = [
        ("first", [1] * 5),
        ("first", [2] * tokens_per_shard),
        *((name, [3] * size) for name, size in sorted(sizes)),
    ]
    manifest = write_documents(folder, rows, tokens_per_shard=tokens_per_shard, skipped=skipped)
    expected = []  # of every token of the dataset
    seen: dict[str, int] = {}
    for document, (name, tokens) in enumerate(rows):
        row = seen.setdefault(name, 0)
        seen[name] += 1
        if name == "first" and row >= skipped:
            row += 1
        expected += [(document, name, row)] * (len(tokens) + 1)
    _, stream = open_split(folder, "train", verify=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardkit.dataset.documents, "_BLOCK_TOKENS", block)
        for token in range(stream.tokens):
            found = locate_token(manifest, stream, token)
            assert (found.document, found.source_file, found.source_row) == expected[tokens_per_shard + token]
            assert found.shard == f"x_train_{1 + token // tokens_per_shard:06d}.npy"
            assert found.offset == token % tokens_per_shard


def test_a_bare_folder_tells_shard_and_offset_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, [10, 10])
    manifest, stream = open_split(tmp_path, "train", verify=False)
    assert locate_token(manifest, stream, 13) == Location(
        shard="x_train_000001.npy", offset=3, document=None, source_file=None, source_row=None
    )
