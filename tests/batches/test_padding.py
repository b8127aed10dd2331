"""Packing that pads much is said, with a length of row that pads little; packing that pads little says nothing."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from layout_data import EOT, document_stream, write_stream

from shardkit.batches import rows
from shardkit.batches.padding import warn_of_padding
from shardkit.batches.row_sequence import RowSequence
from shardkit.batches.rows import RowOptions
from shardkit.errors import ShardkitWarning


def pack(folder: Path, seq_len: int, layout: str = "packed") -> float:
    """The share of padding that a loader would have."""
    options = RowOptions(split="train", seq_len=seq_len, shuffle=False, seed=0, layout=layout, eot_id=EOT)
    with RowSequence(str(folder), options) as sequence:
        return sequence.stats().pad


def documents(folder: Path, lengths: list[int]) -> Path:
    write_stream(folder, document_stream([length - 1 for length in lengths]), [1 << 40])
    return folder


@pytest.mark.parametrize(
    "lengths",
    [
        np.random.default_rng(0).integers(130, 140, 400).tolist(),  # slightly more than half a row
        [150] * 300,
        np.random.default_rng(0).integers(88, 98, 400).tolist(),  # slightly more than a third
        np.random.default_rng(0).integers(130, 250, 400).tolist(),
    ],
)
def test_the_advised_length_pads_as_little_as_is_said_and_the_other_layout_nothing(
    tmp_path: Path, lengths: list[int]
) -> None:
    folder = documents(tmp_path, lengths)
    with pytest.warns(ShardkitWarning) as caught:
        pad = pack(folder, 256)
    said = str(caught[0].message)
    assert len(caught) == 1
    assert said.startswith(f"{folder}: packed into rows of 256, {pad:.0%} of all slots are padding")
    advised = re.search(r"seq_len=(\d+) would pad (\d+)%, layout='contiguous' pads nothing", said)
    assert advised is not None, said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pack(folder, int(advised[1])) == pytest.approx(int(advised[2]) / 100, abs=0.02)
        assert pack(folder, 256, "contiguous") == 0


@pytest.mark.parametrize("lengths", [[127] * 7, [257] * 60, [5] * 900, [200, 9], [7]])
def test_little_padding_and_the_rest_of_a_last_row_say_nothing(tmp_path: Path, lengths: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(documents(tmp_path, lengths), 256)


def test_of_millions_of_documents_a_sample_is_looked_at() -> None:
    starts = np.arange(0, 3_000_000 * 530, 530)
    with pytest.warns(ShardkitWarning, match=r"48% of all slots.*up to 530 tokens.*seq_len=1088 would pad 3%"):
        warn_of_padding("d", starts, 3_000_000 * 530, 1024, 3_000_000)


def test_a_plan_that_pads_little_is_opened_without_a_look_for_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = documents(tmp_path, [128] * 400)
    pack(folder, 256)  # the plan is there now
    looks: list[int] = []
    monkeypatch.setattr(rows, "document_starts", lambda *arguments: looks.append(1))
    pack(folder, 256)
    assert looks == []
