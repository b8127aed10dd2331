"""What a batch is made of: the rows of a position, and options that cannot make inputs and targets of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from loader_data import EOT, write_documents

from shardkit.batches.order import Cut
from shardkit.batches.reader import BatchForm, BatchReader
from shardkit.batches.row_sequence import RowSequence
from shardkit.batches.rows import RowOptions
from shardkit.errors import ShardError, UsageError

CUT = Cut(batch_size=1, world_size=1)


@pytest.fixture
def sequence(tmp_path: Path) -> RowSequence:
    """Windows of 5 tokens, of GPT-2's vocabulary: ids go up to 50256, which is EOT."""
    write_documents(tmp_path, [("a", list(range(50)))] * 4, tokens_per_shard=60)
    return RowSequence(tmp_path, RowOptions(split="train", seq_len=5, shuffle=True, seed=0))


@pytest.mark.parametrize("value", [1.5, True, "a", 1 << 63, 0, EOT - 1])
def test_an_ignore_index_that_is_no_number_or_hides_a_token_is_refused(value: object, sequence: RowSequence) -> None:
    with pytest.raises(UsageError, match=r"ignore_index is .*(as|give) -100"):
        BatchReader(sequence, CUT, form=BatchForm(ignore_index=value))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, -100, -1, EOT, EOT + 1])
def test_an_ignore_index_that_is_no_target_is_accepted(value: int | None, sequence: RowSequence) -> None:
    reader = BatchReader(sequence, CUT, form=BatchForm(ignore_index=value))
    assert reader.form.ignore_index == value


def read_all(reader: BatchReader, n_rows: int) -> None:
    out = np.empty((2, 8), "<u2")
    for position in range(0, n_rows, 2):
        reader.run_at(position)
        reader.read_rows(position, out)


@pytest.mark.parametrize("layout", ["contiguous", "document", "packed"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_id_beyond_the_vocabulary_is_one_line_with_its_shard_and_place(
    tmp_path: Path, layout: str, shuffle: bool
) -> None:
    write_documents(tmp_path, [("a", [*range(1, 30)])] * 8, tokens_per_shard=60)
    path = tmp_path / "x_train_000002.npy"
    for place in (3, 33) if layout == "document" else (0, 17, 59):  # that layout leaves out what its rows do not reach
        tokens = np.load(path)
        whole = tokens.copy()
        tokens[place] = 50257
        np.save(path, tokens)
        with RowSequence(
            tmp_path, RowOptions(split="train", seq_len=7, shuffle=shuffle, seed=0, layout=layout)
        ) as rows:
            reader = BatchReader(rows, Cut(batch_size=2, world_size=1), form=BatchForm(packed=layout == "packed"))
            with pytest.raises(ShardError, match=rf"train_000002\.npy holds id 50257 at token {place}, .* 50,257 ids"):
                read_all(reader, rows.n_rows)
        np.save(path, whole)


def test_an_id_is_not_looked_for_where_no_vocabulary_is_known_or_it_fills_the_dtype(tmp_path: Path) -> None:
    manifest = write_documents(tmp_path, [("a", [65535] * 50)] * 4, tokens_per_shard=60)
    assert manifest.tokenizer is not None
    for tokenizer in (None, dataclasses.replace(manifest.tokenizer, vocab_size=1 << 16)):
        dataclasses.replace(manifest, tokenizer=tokenizer).save(tmp_path)
        with RowSequence(tmp_path, RowOptions(split="train", seq_len=5, shuffle=True, seed=0)) as rows:
            BatchReader(rows, CUT).read_rows(0, np.empty((1, 6), "<u2"))
