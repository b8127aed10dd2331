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

from shardkit.dataset.manifest import Manifest, TokenizerInfo
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, read_tokenizer_files, token_of
from shardkit.errors import TokenizerError
from shardkit.tokenization.fast_json import fast_tokenizer_json
from shardkit.tokenization.hub_vocabulary import fetch_tokenizer, is_model_id
from shardkit.tokenization.proofs import Proof, find_proof, proof_key
from shardkit.tokenization.tiktoken_files import load_encoding, ranks_sha256, seed_tiktoken_cache
from shardkit.tokenization.tokenizer_json import find_eot, parse_tokenizer_json, read_tokenizer_json

CHARS = "chars"  # the vocabulary that `characters.py` makes of a source
_SPECIALS_OF_BYTES = {"<|endoftext|>": 256}


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

    @property
    def end_of_text(self) -> str | None:
        """The token that separates documents, as text; None where it cannot be said."""
        if self.tokenizer_json is not None:
            return token_of(self.tokenizer_json.encode(), self.info.eot_id)
        specials: dict[str, int] = self.encoding["special_tokens"] if self.encoding else _SPECIALS_OF_BYTES
        return next((token for token, number in specials.items() if number == self.info.eot_id), None)


def load_vocabulary(name: str, eot: str | None = None) -> Vocabulary:
    """The vocabulary of a tiktoken encoding, of a `tokenizer.json` or a folder that holds one, of a model on the Hub
    (`user/name`), or `bytes` (ids 0-255, EOT 256). `eot` is the token that separates documents, where it is not the
    vocabulary's own end of text.

    Raises `TokenizerError` if it cannot be had, or has no such token, and `AuthError` for a model that is not for this
    account. Warns (`ShardkitWarning`) of an unusual end of text.
    """
    path = Path(name) if name.endswith(".json") else Path(name) / TOKENIZER_NAME
    if name.endswith(".json") or path.is_file():
        return _with_own_proof(_from_file(path, eot))
    if name == CHARS:
        raise TokenizerError(f"the vocabulary {CHARS} is made of the text of one dataset, beside whose manifest it is")
    if is_model_id(name):
        path, full_name = fetch_tokenizer(name)
        loaded = _from_file(path, eot)
        return _with_own_proof(replace(loaded, name=full_name, info=replace(loaded.info, name=full_name)))
    loaded = _bytes() if name == "bytes" else _with_own_proof(_from_tiktoken(name))
    if eot is None:
        return loaded
    specials: dict[str, int] = loaded.encoding["special_tokens"] if loaded.encoding else _SPECIALS_OF_BYTES
    if eot not in specials:
        raise TokenizerError(f"{name} has no special token {eot!r}: --eot is one of {', '.join(specials)}")
    return replace(loaded, info=replace(loaded.info, eot_id=specials[eot]))


def _with_own_proof(vocabulary: Vocabulary) -> Vocabulary:
    return _attach(vocabulary, find_proof(vocabulary.proof_key) if vocabulary.proof_key else None)


def _bytes() -> Vocabulary:
    sha256 = hashlib.sha256(bytes(range(256))).hexdigest()
    return Vocabulary(name="bytes", info=TokenizerInfo(name="bytes", vocab_size=257, eot_id=256, ranks_sha256=sha256))


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


def dataset_vocabulary(manifest: Manifest, name: str | None = None) -> Vocabulary:
    """The vocabulary that a dataset was made with: of the `tokenizer.json` beside its manifest, or of the name there,
    or of `name`. Where no manifest names one, gpt2's.

    Raises `TokenizerError` if it cannot be had, or is another than the manifest means.
    """
    ours, where = manifest.tokenizer, manifest.directory
    if name is None and ours is not None and where is not None and read_tokenizer_files(where, ours):
        return _with_own_proof(_from_file(where / TOKENIZER_NAME, None, ours))
    if ours is None:
        return load_vocabulary(name or "gpt2")
    try:
        loaded = load_vocabulary(name or ours.name)
    except TokenizerError as error:
        if name is not None or not ours.name.endswith((".json", CHARS)):
            raise
        raise TokenizerError(
            f"{where or 'the dataset'} was made with a tokenizer.json that is not beside its manifest, and {error}: "
            f"give --tokenizer with the file whose SHA-256 is {ours.ranks_sha256}"
        ) from error
    if loaded.info.ranks_sha256 != ours.ranks_sha256:
        raise TokenizerError(
            f"{loaded.name} here is another vocabulary than {where or 'the dataset'} was made with: give --tokenizer "
            f"with the one whose SHA-256 is {ours.ranks_sha256}"
        )
    return replace(loaded, info=ours)


def vocabulary_of_text(name: str, text: str, eot: str) -> Vocabulary:
    """The vocabulary of the text of a `tokenizer.json`, one made here; `eot` is its end of text."""
    reference = parse_tokenizer_json(text)
    info = TokenizerInfo(
        name=name,
        vocab_size=reference.get_vocab_size(with_added_tokens=True),
        eot_id=reference.token_to_id(eot),
        ranks_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    return Vocabulary(name=name, info=info, tokenizer_json=text)


def _from_file(path: Path, eot: str | None, info: TokenizerInfo | None = None) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`, of which `info` says what the manifest does, if it is a dataset's."""
    text, reference = read_tokenizer_json(path)
    if not (ids := reference.get_vocab(with_added_tokens=True)):
        raise TokenizerError(f"{path} has an empty vocabulary: give the tokenizer.json of a trained tokenizer")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    info = info or TokenizerInfo(
        name=path.name,
        vocab_size=max(ids.values()) + 1,  # ids may have holes
        eot_id=find_eot(path, reference, eot),
        ranks_sha256=sha256,
    )
    return Vocabulary(name=str(path), proof_key=proof_key(sha256), info=info, tokenizer_json=text)
