"""A tiktoken vocabulary as the `tokenizer.json` that the fast engine reads.

Its merges are not in tiktoken's files: which two tokens each token is made of follows from the ranks, in seconds of
Python. For the encodings that tiktoken brings, `splits.npz` has the answer: for each token of two bytes or more, in the
order of ranks, the length of the left one. `python -m shardkit.tokenization.fast_json` writes the file anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from shardkit.errors import TokenizerError
from shardkit.tokenization.tiktoken_files import byte_to_unicode, load_encoding, ranks_sha256
from shardkit.tokenization.tokenizer_json import bpe_tokenizer_json, special_tokens

# cl100k_base's pattern in tiktoken, and as published tokenizer.json files have it (Llama 3's): the engine knows the
# latter, and is four times as fast with it. They cut a text alike but for blanks at its end, where no token of the
# vocabulary reaches from one piece into the next.
_IN_TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
_AS_PUBLISHED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPLITS = Path(__file__).with_name("splits.npz")
_WITH_SPLITS = ("r50k_base", "p50k_base", "cl100k_base", "o200k_base")


def fast_tokenizer_json(ranks: dict[bytes, int], pattern: str, sha256: str = "") -> str:
    """A `tokenizer.json` with tiktoken's ranks and pattern and no special tokens, for the fast engine; `sha256` is the
    ranks' `ranks_sha256`, if it is known already.

    Raises `TokenizerError` for ranks that no byte-pair training can have given.
    """
    table = str.maketrans(byte_to_unicode())
    by_rank = sorted(ranks, key=ranks.__getitem__)
    vocab = {token.decode("latin-1").translate(table): ranks[token] for token in by_rank}
    made = [token for token in by_rank if len(token) > 1]
    splits = known_splits(sha256 or ranks_sha256(ranks)) or find_splits(ranks, made)
    spelled = [token for token in vocab if len(token) > 1]  # a character a byte
    merges = [(token[:length], token[length:]) for token, length in zip(spelled, splits, strict=True)]
    gpt2 = "'(?:[sdmt]|ll|ve|re)" in pattern  # the engine has GPT-2's pattern built in, and it is faster
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": gpt2}
    split = {"type": "Split", "pattern": {"Regex": engine_pattern(pattern)}, "behavior": "Isolated", "invert": False}
    pre = byte_level if gpt2 else {"type": "Sequence", "pretokenizers": [split, byte_level]}
    return bpe_tokenizer_json(vocab | _holes(ranks), merges, pre_tokenizer=pre, decoder=byte_level)


def with_special_tokens(fast_json: str, special: Mapping[str, int]) -> str:
    """What `fast_tokenizer_json` gave, with the special tokens, for Hugging Face's libraries, which do not mind ids
    that no token has."""
    first = {number: token for token, number in reversed(list(special.items()))}  # o200k_harmony has two names for one
    special = {token: number for token, number in special.items() if first[number] == token}
    stated = json.loads(fast_json)
    vocab = {token: number for token, number in stated["model"]["vocab"].items() if not token.startswith(" ")}
    stated["model"]["vocab"] = vocab | special  # without them there, other ids would be given to them
    return json.dumps({**stated, "added_tokens": special_tokens(special)})


def bytes_tokenizer_json(special: Mapping[str, int]) -> str:
    """A `tokenizer.json` whose ids 0 to 255 are the bytes of a text in UTF-8."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {char: byte for byte, char in byte_to_unicode().items()} | dict(special)
    return bpe_tokenizer_json(vocab, [], pre_tokenizer=byte_level, decoder=byte_level, special=special)


def _holes(ranks: dict[bytes, int]) -> dict[str, int]:
    """Entries for ids below the largest that no token has (p50k_base: 50256, its end of text), for the engine wants
    ids without holes. No merge makes them, and a blank is not in the alphabet of byte-level tokens."""
    return {f" {rank}": rank for rank in set(range(max(ranks.values()))) - set(ranks.values())}


def engine_pattern(pattern: str) -> str:
    """A pattern of tiktoken's, as the fast engine is given it."""
    return _AS_PUBLISHED if pattern == _IN_TIKTOKEN else pattern


def known_splits(sha256: str) -> list[int] | None:
    """What `splits.npz` has for the ranks of this `ranks_sha256`; None for those of another encoding."""
    with np.load(SPLITS, allow_pickle=False) as known:
        found: list[int] | None = known[sha256].tolist() if sha256 in known else None
    return found


def find_splits(ranks: dict[bytes, int], tokens: Iterable[bytes]) -> list[int]:
    """For each of `tokens` the length of the left one of the two tokens whose merge makes it."""
    return [len(_last_merge(ranks, token, ranks[token])[0]) for token in tokens]


def _last_merge(ranks: dict[bytes, int], token: bytes, rank: int) -> tuple[bytes, bytes]:
    """The two parts whose merge makes `token`: byte-pair encoding of it with the ranks below its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        best = min(pairs)
        if best >= rank:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise TokenizerError(f"token {token!r} cannot be built from tokens of lower rank: not a byte-pair vocabulary")
    return parts[0], parts[1]


def _write_splits() -> None:
    splits = {}
    for name in _WITH_SPLITS:
        ranks = load_encoding(name)._mergeable_ranks
        tokens = [token for token, _ in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1]
        splits[ranks_sha256(ranks)] = np.array(find_splits(ranks, tokens), np.uint8)
    np.savez_compressed(SPLITS, allow_pickle=False, **splits)


if __name__ == "__main__":
    _write_splits()
