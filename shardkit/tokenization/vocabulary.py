"""Vocabularies: what a name of `--tokenizer` stands for, as a value that every process of a run works with.

The main process reads the files, once; workers get what was read, so that a file that changes meanwhile, or is another
one on another machine, makes no difference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from shardkit.dataset.manifest import TokenizerInfo
from shardkit.errors import TokenizerError
from shardkit.tokenization.fast_json import fast_tokenizer_json
from shardkit.tokenization.proofs import Proof, find_proof, proof_key
from shardkit.tokenization.tiktoken_files import load_encoding, ranks_sha256, seed_tiktoken_cache
from shardkit.tokenization.tokenizer_json import find_eot, read_tokenizer_json


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vocabulary:
    """A vocabulary that was loaded: `name` as it was given, `info` for the manifest, and what engines are made of.

    That is the arguments of `tiktoken.Encoding` (`encoding`), or the text of a `tokenizer.json`; for `bytes` neither.
    `fast_json` is what the fast engine reads, where that is another text. `proof`, of the name `proof_key`, says what
    the fast engine may be used for; None if nobody has compared it.
    """

    name: str
    info: TokenizerInfo
    encoding: dict[str, Any] | None = None
    tokenizer_json: str | None = None
    fast_json: str | None = None
    proof_key: str | None = None
    proof: Proof | None = None


def load_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a tiktoken encoding, of the `tokenizer.json` at a path that ends in `.json`, or `bytes` (ids
    0-255, EOT 256). Raises `TokenizerError` if it cannot be had."""
    if name == "bytes":
        sha256 = hashlib.sha256(bytes(range(256))).hexdigest()
        return Vocabulary(name=name, info=TokenizerInfo(name="bytes", vocab_size=257, eot_id=256, ranks_sha256=sha256))
    loaded = _from_file(Path(name)) if name.endswith(".json") else _from_tiktoken(name)
    return _attach(loaded, find_proof(loaded.proof_key) if loaded.proof_key else None)


@lru_cache(maxsize=2)
def with_fast_json(vocabulary: Vocabulary) -> Vocabulary:
    """`vocabulary` with its `fast_json`. Raises `TokenizerError` for ranks that no byte-pair training has given."""
    known = vocabulary.encoding
    if known is None or vocabulary.fast_json is not None:
        return vocabulary
    return replace(vocabulary, fast_json=fast_tokenizer_json(known["mergeable_ranks"], known["pat_str"]))


@lru_cache(maxsize=2)
def _attach(vocabulary: Vocabulary, proof: Proof | None) -> Vocabulary:
    return replace(vocabulary, proof=proof)


@lru_cache(maxsize=2)
def _from_tiktoken(name: str) -> Vocabulary:
    # The two files of gpt2 hold what the one of r50k_base does, in a form that takes four times as long to read.
    encoding = load_encoding("r50k_base" if name == "gpt2" and seed_tiktoken_cache("r50k_base") else name)
    ranks = encoding._mergeable_ranks
    sha256 = ranks_sha256(ranks)
    return Vocabulary(
        name=name,
        info=TokenizerInfo(name=name, vocab_size=encoding.n_vocab, eot_id=encoding.eot_token, ranks_sha256=sha256),
        proof_key=proof_key(sha256, encoding._pat_str),
        encoding={
            "name": name,
            "pat_str": encoding._pat_str,
            "mergeable_ranks": ranks,
            "special_tokens": encoding._special_tokens,
        },
    )


def _from_file(path: Path) -> Vocabulary:
    text, reference = read_tokenizer_json(path)
    if not (ids := reference.get_vocab(with_added_tokens=True)):
        raise TokenizerError(f"{path} has an empty vocabulary: give the tokenizer.json of a trained tokenizer")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Vocabulary(
        name=str(path),
        proof_key=proof_key(sha256),
        info=TokenizerInfo(
            name=path.name,
            vocab_size=max(ids.values()) + 1,  # ids may have holes
            eot_id=find_eot(path, reference),
            ranks_sha256=sha256,
        ),
        tokenizer_json=text,
    )
