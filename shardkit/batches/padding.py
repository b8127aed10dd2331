"""Whether packing pads much, and at which length of row it would pad less. Arithmetic on the documents' lengths."""

from __future__ import annotations

import warnings

import numpy as np

from shardkit.batches.packing import Ints, pack_block
from shardkit.errors import ShardkitWarning

MOST_PAD = 0.10  # of all slots, in whole rows; below it nothing is said
_GOOD_PAD = 0.05
_SAMPLE_DOCUMENTS = 4096
_STEPS = 32  # lengths are tried in steps of so small a part of a row


def warn_of_padding(name: str, starts: Ints, tokens: int, seq_len: int, rows: int) -> None:
    """Warn (`ShardkitWarning`) that documents of `tokens` tokens, which begin at `starts`, are packed into `rows` rows
    of `seq_len` with more padding than `MOST_PAD`: with a length near by that pads less."""
    begins = np.asarray(starts[: _SAMPLE_DOCUMENTS + 1], np.int64)
    lengths = np.diff(begins, append=tokens)[:_SAMPLE_DOCUMENTS]
    length, pad = better_length(begins[: len(lengths)], lengths, seq_len)
    warnings.warn(
        f"{name}: packed into rows of {seq_len:,}, {1 - tokens / (rows * seq_len):.0%} of all slots are padding, since "
        f"few of its documents (half of them have up to {int(np.median(lengths)):,} tokens) go together into a row: "
        f"--seq-len {length} would pad {pad:.0%}, --layout=contiguous pads nothing",
        ShardkitWarning,
        stacklevel=2,
    )


def pads_much(tokens: int, seq_len: int, rows: int) -> bool:
    """Whether `rows` rows of `seq_len` for `tokens` tokens are more than a tenth padding."""
    return _pad_of(rows, tokens, seq_len) > MOST_PAD


def better_length(begins: Ints, lengths: Ints, seq_len: int) -> tuple[int, float]:
    """The length nearest to `seq_len`, from half to twice of it, at which these documents pad little, and how much that
    is; where none pads little, the one that pads least."""
    step, tokens = max(1, seq_len // _STEPS), int(lengths.sum())
    tried = range(max(step, seq_len // 2 // step * step), 2 * seq_len + 1, step)
    found = [(n, _pad_of(len(pack_block(begins, lengths, n)[2]), tokens, n)) for n in tried if n != seq_len]
    good = [(length, pad) for length, pad in found if pad <= _GOOD_PAD]
    if good:
        return min(good, key=lambda each: abs(np.log(each[0] / seq_len)))
    return min(found, key=lambda each: each[1])


def _pad_of(rows: int, tokens: int, seq_len: int) -> float:
    """The share of rows that packing takes beyond the fewest that could hold the tokens."""
    return (rows - -(-tokens // seq_len)) / max(1, rows)
