"""The engine in use gives what tiktoken gives, for strings of all kinds, one by one and in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attacks import times
from fuzz_strings import strings

from shardkit.tokenization.guard import TokenBatch
from shardkit.tokenization.tokenizer import Tokenizer


@pytest.mark.parametrize("encoding", ["gpt2", "p50k_base", "cl100k_base", "o200k_base"])
def test_the_engine_in_use_gives_what_tiktoken_gives(encoding: str, tally: Any) -> None:
    fast, reference = Tokenizer(encoding, encoder="auto"), Tokenizer(encoding, encoder="tiktoken")
    assert fast.is_fast
    assert not reference.is_fast
    batch = 5000
    count = times(5_000, 1_000_000)
    for seed in range(count // batch):
        texts = list(strings(batch, seed))
        got, wanted = fast.encode_batch(texts), reference.encode_batch(texts)
        for text, ours, theirs in zip(texts, _split(got), _split(wanted), strict=True):
            assert ours == theirs, repr(text)
    tally(f"strings: the engine in use for {encoding} against tiktoken", count)


def _split(batch: TokenBatch) -> list[list[int]]:
    ids, offsets = batch
    return [part.tolist() for part in np.split(ids, offsets[1:-1])]
