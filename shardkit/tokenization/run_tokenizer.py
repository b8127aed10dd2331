"""Which tokenizer a run has: by its name, the source, and the text that there is to encode."""

from __future__ import annotations

from shardkit.errors import UsageError
from shardkit.sources.source import Source
from shardkit.tokenization.characters import character_vocabulary
from shardkit.tokenization.proving import with_proof
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.vocabulary import CHARS, load_vocabulary
from shardkit.tokenization.worker import Filter, Transform

_BYTES_A_TOKEN = 4  # of English, with most vocabularies


def open_tokenizer(
    name: str,
    eot: str | None,
    encoder: str,
    source: Source,
    max_tokens: int | None,
    transform: Transform | None,
    filter: Filter | None,
) -> Tokenizer:
    """The tokenizer of a run; for `auto` and much text, with a proof of the fast engine, made now if need be."""
    if name == CHARS:
        if eot is not None:
            raise UsageError(f"--tokenizer {CHARS} has one end of text: leave --eot out")
        return Tokenizer(character_vocabulary(source, transform=transform, filter=filter), encoder=encoder)
    vocabulary = load_vocabulary(name, eot)
    if encoder == "auto":
        source_bytes = sum(file.bytes for file in source.files)
        most = source_bytes if max_tokens is None else min(source_bytes, max_tokens * _BYTES_A_TOKEN)
        vocabulary = with_proof(vocabulary, most)
    return Tokenizer(vocabulary, encoder=encoder)
