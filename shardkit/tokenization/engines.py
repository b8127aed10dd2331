"""The libraries that encode, each behind the same two functions: `Engine` for batches, `Reference` for what is right.

The reference of a tiktoken encoding is tiktoken's `encode_ordinary`, that of a `tokenizer.json` Hugging Face's
`tokenizers`. The fast engine is fastokens, given the same ranks and the same pattern. Special tokens in a text are
ordinary text to all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from shardkit.errors import UsageError
from shardkit.tokenization.engine_calls import call_engine
from shardkit.tokenization.guard import EncodeBatch, TokenBatch
from shardkit.tokenization.tokenizer_json import parse_tokenizer_json
from shardkit.tokenization.vocabulary import Vocabulary, with_fast_json


class Engine(NamedTuple):
    """Encodes documents: flat ids, shape `(tokens,)`, and int64 offsets, shape `(documents + 1,)`."""

    name: str
    version: str
    encode_batch: EncodeBatch


class Reference(NamedTuple):
    """Encodes one document as it is right, and decodes ids; what is no UTF-8 becomes U+FFFD, and so does an id that no
    token has, which `tokenizers` leaves out."""

    name: str
    version: str
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def reference_name(vocabulary: Vocabulary) -> tuple[str, str]:
    """Name and version of the library that says what is right."""
    if vocabulary.encoding is None and vocabulary.tokenizer_json is None:
        return "bytes", "1"
    library = "tokenizers" if vocabulary.encoding is None else "tiktoken"
    return library, version(library)


def make_reference(vocabulary: Vocabulary) -> Reference:
    """The reference of `vocabulary`; its `encode` raises `Unencodable` where it fails."""
    name, its_version = reference_name(vocabulary)
    if vocabulary.encoding is not None:
        import tiktoken

        encoding = tiktoken.Encoding(**vocabulary.encoding)
        return Reference(
            name,
            its_version,
            lambda text: call_engine(f"{name} {its_version}", encoding.encode_ordinary, text),
            lambda ids: _decode(encoding, ids),
        )
    if vocabulary.tokenizer_json is None:
        return Reference(name, its_version, lambda text: list(replace_surrogates(text).encode()), _decode_bytes)
    native = parse_tokenizer_json(vocabulary.tokenizer_json)

    def encode(text: str) -> list[int]:
        text = replace_surrogates(text)
        ids = list(native.encode(text, add_special_tokens=False).ids)
        if vocabulary.by_character and len(ids) != len(text):
            unknown = next(char for char in text if native.token_to_id(char) is None)
            raise ValueError(f"{unknown!r} is no character of {vocabulary.name}")
        return ids

    return Reference(
        name,
        its_version,
        lambda text: call_engine(f"{name} {its_version}", encode, text),
        lambda ids: str(native.decode(ids, skip_special_tokens=False)),
    )


def reference_engine(reference: Reference) -> Engine:
    """The reference, for batches."""
    if reference.name == "bytes":
        return Engine(reference.name, reference.version, _encode_bytes)
    return Engine(reference.name, reference.version, lambda texts: _pack([reference.encode(text) for text in texts]))


def fast_engine(vocabulary: Vocabulary) -> Engine:
    """fastokens. Raises `UsageError` where it cannot load the vocabulary."""
    import fastokens

    try:
        native = fastokens.Tokenizer.from_json_str(with_fast_json(vocabulary).fast_json or "")
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"no fast engine for tokenizer {vocabulary.name}: {error}; use --encoder=tiktoken") from error

    def encode(texts: Sequence[str]) -> TokenBatch:
        ids, offsets = native.encode_batch_flat(list(texts), split_special_tokens=True)
        return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<u8").astype(np.int64)

    return Engine("fastokens", version("fastokens"), encode)


def replace_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced by U+FFFD, as tiktoken does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _encode_bytes(texts: Sequence[str]) -> TokenBatch:
    parts = [text.encode() for text in texts]
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.frombuffer(b"".join(parts), dtype=np.uint8), offsets


def _decode(encoding: Any, ids: list[int]) -> str:
    try:
        return str(encoding.decode(ids, errors="replace"))
    except KeyError:  # an id that no token has: many vocabularies have holes, and models round their sizes up
        return b"".join([_token_bytes(encoding, number) for number in ids]).decode("utf-8", "replace")


def _token_bytes(encoding: Any, number: int) -> bytes:
    try:
        return bytes(encoding.decode_single_token_bytes(number))
    except KeyError:
        return b"\xff"  # which is no UTF-8


def _decode_bytes(ids: list[int]) -> str:
    parts: list[bytes | None] = [b""]
    begin = 0
    for at, token in enumerate([*ids, 256]):
        if token == 256:
            parts += [bytes(min(number, 255) for number in ids[begin:at]), None]
            begin = at + 1
    return "".join("<|endoftext|>" if part is None else part.decode("utf-8", "replace") for part in parts[:-1])


def _pack(encoded: list[list[int]]) -> TokenBatch:
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
    flat = np.empty(int(offsets[-1]), dtype=np.uint32)
    for ids, start in zip(encoded, offsets.tolist(), strict=False):
        flat[start : start + len(ids)] = ids
    return flat, offsets
