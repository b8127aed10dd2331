"""`to_datasets`: windows and documents of a split, in the memory of the mapped shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loader_data import EOT, write_documents, write_shards

from shardkit import UsageError, to_datasets
from shardkit.dataset.token_stream import open_split

DOCUMENTS = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9, 10, 11, 12, 13], [14], [15, 16]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val `E 1 2 3`, train `E 4 E E | 5 6 7 8 | ...`: the long document lies in four shards."""
    folder = tmp_path_factory.mktemp("view")
    write_documents(folder, [("a", tokens) for tokens in DOCUMENTS], tokens_per_shard=4)
    return folder


def tokens_of(folder: Path) -> list[int]:
    _, stream = open_split(folder, "train", verify=False)
    tokens = np.empty(stream.tokens, stream.dtype)
    stream.read(0, tokens)
    return tokens.tolist()


@pytest.mark.parametrize("seq_len", [1, 2, 3, 4, 5, 9])
def test_windows_are_the_stream_in_rows(dataset: Path, seq_len: int) -> None:
    train = tokens_of(dataset)
    rows = to_datasets(dataset, seq_len=seq_len)["input_ids"][:]
    assert rows == [train[i : i + seq_len] for i in range(0, len(train) - seq_len + 1, seq_len)]


def test_rows_are_documents_with_their_eot_also_across_shards(dataset: Path) -> None:
    assert to_datasets(dataset)["input_ids"][:] == [[EOT, *tokens] for tokens in DOCUMENTS[1:]]
    assert to_datasets(dataset, split="val")["input_ids"][:] == [[EOT, 1, 2, 3]]


def test_the_rest_of_a_document_of_the_split_before_is_no_row(tmp_path: Path) -> None:
    write_documents(tmp_path, [("a", [1, 2, 3, 4]), ("a", [5])], tokens_per_shard=3)
    assert to_datasets(tmp_path)["input_ids"][:] == [[EOT, 5]]


def test_tokens_stay_where_they_are(tmp_path: Path) -> None:
    write_shards(tmp_path, [4096, 4096])
    column = to_datasets(tmp_path, seq_len=64).data.column("input_ids")
    mapped = [np.load(path, mmap_mode="r") for path in sorted(tmp_path.glob("*.npy"))]
    assert [len(chunk) for chunk in column.chunks] == [64, 64]
    for chunk, tokens in zip(column.chunks, mapped, strict=True):
        values = chunk.flatten().to_numpy(zero_copy_only=True)
        assert not values.flags.owndata
        assert np.array_equal(values, tokens)


def test_two_views_of_one_dataset_have_one_fingerprint_and_other_rows_another(dataset: Path) -> None:
    assert to_datasets(dataset)._fingerprint == to_datasets(dataset)._fingerprint
    assert to_datasets(dataset)._fingerprint != to_datasets(dataset, seq_len=2)._fingerprint


def test_documents_of_bare_shards_need_an_eot(tmp_path: Path) -> None:
    write_shards(tmp_path, [10])
    with pytest.raises(UsageError, match="nothing says which token begins a document"):
        to_datasets(tmp_path)
    assert to_datasets(tmp_path, eot_id=7)["input_ids"][:] == [[7, 8, 9]]
