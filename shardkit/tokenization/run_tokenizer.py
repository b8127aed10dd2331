"""Which tokenizer a run has: by its name, the source, and the text that there is to encode."""

from __future__ import annotations

import os
import warnings

from shardkit.arguments import place_text
from shardkit.errors import ShardkitWarning, UsageError
from shardkit.sources.source import Source
from shardkit.tokenization import proving
from shardkit.tokenization.characters import character_vocabulary
from shardkit.tokenization.run_size import source_bytes
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.user_functions import Filter, Transform
from shardkit.tokenization.vocabulary import CHARS, load_vocabulary


def open_tokenizer(
    name: str | os.PathLike[str],
    eot: str | None,
    encoder: str,
    source: Source,
    *,
    max_docs: int | None,
    max_tokens: int | None,
    transform: Transform | None,
    filter: Filter | None,
) -> Tokenizer:
    """The tokenizer of a run; for `auto` and much text, with a proof of the fast engine, made now if need be."""
    name = place_text(name)
    if encoder == "fast" and name in (CHARS, "bytes"):
        warnings.warn(f"--encoder=fast changes nothing: {name} has one encoder", ShardkitWarning, stacklevel=3)
    if name == CHARS:
        if eot is not None:
            raise UsageError(f"--tokenizer {CHARS} has one end of text: leave --eot out")
        limits = {"max_docs": max_docs, "max_tokens": max_tokens}
        vocabulary = character_vocabulary(source, transform=transform, filter=filter, **limits)
        return Tokenizer(vocabulary, encoder="tiktoken")  # the one that knows what is no character of it
    vocabulary = load_vocabulary(name, eot)
    if encoder == "auto" and vocabulary.proof_key is not None:
        count_to = proving.WORTH_BYTES if vocabulary.tokenizer_json is not None else 0  # the others' proofs are there
        size = source_bytes(source, max_docs=max_docs, max_tokens=max_tokens, count_to=count_to)
        vocabulary = proving.with_proof(vocabulary, size)
    return Tokenizer(vocabulary, encoder=encoder)
