"""What a batch is made of: the rows of a position, and options that cannot make inputs and targets of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from loader_data import EOT, write_documents

from shardkit.batches.order import Cut
from shardkit.batches.reader import BatchForm, BatchReader
from shardkit.batches.row_sequence import RowSequence
from shardkit.batches.rows import RowOptions
from shardkit.errors import UsageError

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
def test_an_ignore_index_that_is_no_target_is_taken(value: int | None, sequence: RowSequence) -> None:
    reader = BatchReader(sequence, CUT, form=BatchForm(ignore_index=value))
    assert reader.form.ignore_index == value
