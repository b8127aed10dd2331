"""The vocabulary `chars`: the characters of the text, sorted, and the end of text after them, as tutorials have it."""

from __future__ import annotations

from collections.abc import Iterator

from shardkit.errors import SourceError, UsageError
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import Source, is_read_once
from shardkit.tokenization.tokenizer_json import bpe_tokenizer_json
from shardkit.tokenization.user_functions import Filter, Transform, by_value
from shardkit.tokenization.vocabulary import CHARS, Vocabulary, load_vocabulary, vocabulary_of_characters
from shardkit.tokenization.worker import ChunkEncoder, Job

_EOT = "<|endoftext|>"
_CHUNK_BYTES = 8 << 20


def character_vocabulary(
    source: Source,
    *,
    transform: Transform | None = None,
    filter: Filter | None = None,
    max_docs: int | None = None,
    max_tokens: int | None = None,
) -> Vocabulary:
    """The vocabulary of all characters of `source`, after the caller's functions: it is read once for it, up to the
    chunk in which the run's limits are reached.

    Raises `UsageError` for a source that can be read only once, `SourceError` for one that cannot be read or has no
    text.
    """
    if is_read_once(source.texts):
        raise UsageError(
            f"--tokenizer {CHARS} reads the source twice, and an iterator can be read once: give a list, or a file"
        )
    job = Job(
        vocabulary=load_vocabulary("bytes"),
        encoder="tiktoken",
        read=source.options,
        audit_stride=1,
        transform=by_value(transform),
        filter=by_value(filter),
    )
    found: set[str] = set()
    documents = characters = 0
    for text, begun in _texts(source, job):
        found.update(text)
        documents, characters = documents + begun, characters + len(text)
        if (max_docs is not None and documents >= max_docs) or (max_tokens is not None and characters >= max_tokens):
            break
    if not found:
        raise SourceError(f"{source.info.id} has no text, so there are no characters to make a vocabulary of")
    return vocabulary_of_characters(_tokenizer_json(sorted(found)), _EOT)


def _texts(source: Source, job: Job) -> Iterator[tuple[str, int]]:
    """The text of each piece, as a worker reads it for the vocabulary `bytes`, and how many documents begin in it."""
    worker, eot_id = ChunkEncoder(job), job.vocabulary.info.eot_id
    with ReadAhead() as ahead:
        for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=_CHUNK_BYTES, ahead=ahead):
            for piece in worker.encode(chunk):
                if piece.error is not None:
                    raise piece.error
                if piece.bad_row is None:  # which the run itself refuses, by name
                    text = piece.tokens[piece.tokens != eot_id].astype("u1").tobytes().decode()
                    yield text, len(piece.eot_positions)


def _tokenizer_json(characters: list[str]) -> str:
    """A byte-pair encoding without merges, whose tokens are the characters."""
    vocab = {character: number for number, character in enumerate(characters)}
    special = {_EOT: len(characters)}
    return bpe_tokenizer_json(vocab, [], pre_tokenizer=None, decoder={"type": "Fuse"}, special=special)
