"""Vocabularies: what a name of `--tokenizer` stands for, as a value that every process of a run works with.

The main process reads the files, once; workers get what was read, so that a file that changes meanwhile, or is another
one on another machine, makes no difference.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shardkit.arguments import check_texts, place_text
from shardkit.dataset.manifest import Manifest, TokenizerInfo
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, read_tokenizer_files
from shardkit.errors import TokenizerError
from shardkit.tokenization.fast_json import (
    bytes_tokenizer_json,
    engine_pattern,
    fast_tokenizer_json,
    known_splits,
    with_special_tokens,
)
from shardkit.tokenization.hub_vocabulary import fetch_tokenizer, is_model_id, tokenizer_in
from shardkit.tokenization.proofs import Proof, find_proof, proof_key
from shardkit.tokenization.tiktoken_files import (
    encoding_sha256,
    is_encoding,
    load_encoding,
    seed_from_tokenizer_json,
    seed_tiktoken_cache,
)
from shardkit.tokenization.tokenizer_json import (
    canonical_tokenizer_json,
    find_eot,
    is_by_character,
    parse_tokenizer_json,
    read_tokenizer_json,
)

CHARS = "chars"  # the vocabulary that `characters.py` makes of a source
_EOT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vocabulary:
    """A vocabulary that was loaded: `name` as it was given (of a model on the Hub with the commit), `info` for the
    manifest, the token that separates documents, and what engines are made of.

    That is the arguments of `tiktoken.Encoding` (`encoding`), or the text of a `tokenizer.json`; for `bytes` neither.
    `fast_json` is what the fast engine reads. `proof`, of the name `proof_key`, says what
    the fast engine may be used for; None if nobody has compared it. `by_character`: each character is a token, and one
    that has no id is an error.
    """

    name: str
    info: TokenizerInfo
    end_of_text: str | None
    encoding: dict[str, Any] | None = None
    tokenizer_json: str | None = None
    by_character: bool = False
    fast_json: str | None = None
    proof_key: str | None = None
    proof: Proof | None = None

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids that no text gives."""
        if self.tokenizer_json is None:
            return tuple((self.encoding or {"special_tokens": {_EOT: self.info.eot_id}})["special_tokens"].values())
        added = json.loads(self.tokenizer_json).get("added_tokens") or ()
        return tuple(token["id"] for token in added if token.get("special"))


def load_vocabulary(name: str | os.PathLike[str], eot: str | None = None) -> Vocabulary:
    """The vocabulary of a tiktoken encoding, of a `tokenizer.json` or a folder that holds one, of a model on the Hub
    (`user/name`), or `bytes` (ids 0-255, EOT 256). `eot` is the token that separates documents, where it is not the
    vocabulary's own end of text.

    Raises `TokenizerError` if it cannot be had, or has no such token, and `AuthError` for a model that is not for this
    account. Warns (`ShardkitWarning`) of an unusual end of text.
    """
    check_texts(eot=eot)
    if name == CHARS:
        raise TokenizerError(
            f"the vocabulary {CHARS} is made of the text of one dataset, beside whose manifest it is: give --tokenizer "
            "with that tokenizer.json"
        )
    name = os.path.expanduser(place_text(name))
    if name.endswith(".json"):
        return _with_own_proof(_from_file(Path(name), eot))
    if name != "bytes" and not is_encoding(name):  # their names are taken: no folder stands for them
        if (path := tokenizer_in(name)) is not None:
            return _with_own_proof(_from_file(path, eot))
        if is_model_id(name):
            path, full_name = fetch_tokenizer(name)
            loaded = _from_file(path, eot)
            return _with_own_proof(replace(loaded, name=full_name, info=replace(loaded.info, name=full_name)))
    loaded = _bytes() if name == "bytes" else _with_own_proof(_from_tiktoken(name))
    if eot is None:
        return loaded
    specials: dict[str, int] = loaded.encoding["special_tokens"] if loaded.encoding else {_EOT: 256}
    if eot not in specials:
        raise TokenizerError(f"{name} has no special token {eot!r}: --eot is one of {', '.join(specials)}")
    return replace(loaded, info=replace(loaded.info, eot_id=specials[eot]), end_of_text=eot)


def _with_own_proof(vocabulary: Vocabulary) -> Vocabulary:
    return _attach(vocabulary, find_proof(vocabulary.proof_key) if vocabulary.proof_key else None)


def _bytes() -> Vocabulary:
    sha256 = hashlib.sha256(bytes(range(256))).hexdigest()
    info = TokenizerInfo(name="bytes", vocab_size=257, eot_id=256, ranks_sha256=sha256)
    return Vocabulary(name="bytes", info=info, end_of_text=_EOT)


@lru_cache(maxsize=2)
def with_fast_json(vocabulary: Vocabulary) -> Vocabulary:
    """`vocabulary` with its `fast_json`. Raises `TokenizerError` for ranks that no byte-pair training has given."""
    known = vocabulary.encoding
    if vocabulary.fast_json is not None or (known is None and vocabulary.tokenizer_json is None):
        return vocabulary
    if known is None:
        return replace(vocabulary, fast_json=canonical_tokenizer_json(vocabulary.tokenizer_json or ""))
    spelled = fast_tokenizer_json(known["mergeable_ranks"], known["pat_str"], vocabulary.info.ranks_sha256)
    return replace(vocabulary, fast_json=spelled)


@lru_cache(maxsize=2)
def tokenizer_json_of(vocabulary: Vocabulary) -> str:
    """The text of a `tokenizer.json` with its special tokens, which other libraries read: the one that it came in, or
    one made of it; "" for an encoding of which none can be made in short time."""
    if vocabulary.tokenizer_json is not None:
        return vocabulary.tokenizer_json
    known = vocabulary.encoding
    if known is None:
        return bytes_tokenizer_json({_EOT: vocabulary.info.eot_id})
    if known_splits(vocabulary.info.ranks_sha256) is None:
        return ""
    return with_special_tokens(with_fast_json(vocabulary).fast_json or "", known["special_tokens"])


@lru_cache(maxsize=2)
def _attach(vocabulary: Vocabulary, proof: Proof | None) -> Vocabulary:
    return replace(vocabulary, proof=proof)


@lru_cache(maxsize=2)
def _from_tiktoken(name: str) -> Vocabulary:
    # The two files of gpt2 hold what the one of r50k_base does, in a form that takes four times as long to read.
    encoding = load_encoding("r50k_base" if name == "gpt2" and seed_tiktoken_cache("r50k_base") else name)
    ranks, sha256 = encoding._mergeable_ranks, encoding_sha256(encoding)
    return Vocabulary(
        name=name,
        info=TokenizerInfo(name=name, vocab_size=encoding.n_vocab, eot_id=encoding.eot_token, ranks_sha256=sha256),
        end_of_text=_EOT,
        proof_key=proof_key(sha256, engine_pattern(encoding._pat_str)),
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

    Raises `TokenizerError` if it cannot be had, or is another than the manifest means. No manifest decides what is
    fetched from the Hub.
    """
    ours, where = manifest.tokenizer, manifest.directory
    if ours is None:
        return load_vocabulary(name or "gpt2")
    place = where or "the dataset"
    if name is None and where is not None and not ours.file_sha256 and read_tokenizer_files(where, ours):
        loaded = _with_own_proof(_from_file(where / TOKENIZER_NAME, None, ours))
    elif name is None and ours.name != "bytes" and not is_encoding(ours.name) and not _is_here(ours.name):
        raise TokenizerError(
            f"{place} was made with a tokenizer.json that is not beside its manifest ({ours.name}): give --tokenizer "
            f"with the file whose SHA-256 is {ours.ranks_sha256}"
        )
    else:
        if name is None and where is not None and is_encoding(ours.name):
            _seed_from(where, ours)
        loaded = load_vocabulary(name or ours.name)
    if loaded.info.ranks_sha256 != ours.ranks_sha256 or loaded.info.vocab_size > ours.vocab_size:
        advice = f"give --tokenizer with the one whose SHA-256 is {ours.ranks_sha256}"
        if name is not None and _is_had_without_a_name(manifest):
            advice = f"leave --tokenizer out, which takes the dataset's own ({ours.name})"
        raise TokenizerError(f"{loaded.name} here is another vocabulary than {place} was made with: {advice}")
    return loaded if loaded.info == ours else replace(loaded, info=ours)


def _is_had_without_a_name(manifest: Manifest) -> bool:
    try:
        dataset_vocabulary(manifest)
    except TokenizerError:
        return False
    return True


def _seed_from(directory: Path, info: TokenizerInfo) -> None:
    """Give tiktoken its file out of the dataset's own `tokenizer.json`, if it is on this machine nowhere else."""
    name = "r50k_base" if info.name == "gpt2" else info.name  # of which there is one file
    if not seed_tiktoken_cache(name) and (files := read_tokenizer_files(directory, info)):
        seed_from_tokenizer_json(name, files[TOKENIZER_NAME])


def _is_here(name: str) -> bool:
    try:
        return name.endswith(".json") and Path(name).is_file()
    except OSError:
        return False


def vocabulary_of_characters(text: str, eot: str) -> Vocabulary:
    """The vocabulary `chars`, of the text of a `tokenizer.json` made here; `eot` is its end of text."""
    reference = parse_tokenizer_json(text)
    info = TokenizerInfo(
        name=CHARS,
        vocab_size=reference.get_vocab_size(with_added_tokens=True),
        eot_id=reference.token_to_id(eot),
        ranks_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    return Vocabulary(name=CHARS, info=info, end_of_text=eot, tokenizer_json=text, by_character=True)


def _from_file(path: Path, eot: str | None, dataset: TokenizerInfo | None = None) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`; of a `dataset`'s own, its manifest says which token separates documents."""
    text, reference = read_tokenizer_json(path)
    if not (ids := reference.get_vocab(with_added_tokens=True)):
        raise TokenizerError(f"{path} has an empty vocabulary: give the tokenizer.json of a trained tokenizer")
    sha256, by_character = hashlib.sha256(text.encode()).hexdigest(), is_by_character(json.loads(text))
    info = TokenizerInfo(
        name=path.name,
        vocab_size=max(ids.values()) + 1,  # ids may have holes
        eot_id=find_eot(path, reference, eot) if dataset is None else dataset.eot_id,
        ranks_sha256=sha256,
    )
    canonical = None if by_character else canonical_tokenizer_json(text)
    hashed = canonical and hashlib.sha256(canonical.encode()).hexdigest()
    return Vocabulary(
        name=str(path),
        info=info,
        end_of_text=reference.id_to_token(info.eot_id),
        proof_key=hashed and proof_key(hashed, f"tokenizers {version('tokenizers')}"),
        tokenizer_json=text,
        by_character=by_character,
        fast_json=canonical,
    )
