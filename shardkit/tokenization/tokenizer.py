"""Tokenizers: a name becomes a vocabulary, a dtype, an EOT id, and two engines that agree.

`with_eot` writes the EOT rule: one EOT before each document, none inside.

`tiktoken` (for a `tokenizer.json`: Hugging Face's `tokenizers`) is the reference: its `encode_ordinary` says what is
right. `fast` is fastokens, given the same ranks and the same pattern. Nothing here knows of files of text or of shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import TokenizerInfo
from shardkit.errors import AuditError, TokenizerError, UsageError
from shardkit.tokenization import cutting
from shardkit.tokenization.guarded import Unencodable, guarded
from shardkit.tokenization.tokenizer_json import find_eot, has_pattern_of_gpt2, read_tokenizer_json
from shardkit.tokenization.vocabulary import fast_tokenizer_json, load_encoding, rank_line

TokenBatch = tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]
ENCODERS = ("auto", "fast", "tiktoken")
# Encodings whose fast engine agreed with tiktoken on every code point in four contexts, on 104 MB of documents and on
# pathological text (benchmarks/bench_encoders.py); `auto` uses it for these alone. Not among them: cl100k_base (takes
# U+180E for a blank), o200k_base (differs after 'ſ); the engine cannot load p50k_base (it has no id 50256).
PROVEN = frozenset({"gpt2", "r50k_base"})


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
        int64, shape `(documents + 1,)`: document `i` is `ids[offsets[i]:offsets[i + 1]]`. A long document is encoded in
        parts, where that gives the same ids. Raises `Unencodable` for one that the engine fails on.
        """
        if not self.cuts or max(map(len, texts), default=0) <= cutting.PART_CHARACTERS:
            return self._encode_whole(texts)
        ids: list[NDArray[np.unsignedinteger]] = []
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        for number, text in enumerate(texts):
            for part in cutting.parts(text):
                ids.append(self._encode_whole([part], number)[0].astype(self.dtype, copy=False))
                offsets[number + 1] += len(ids[-1])
        return np.concatenate(ids), np.cumsum(offsets)

    def why_too_long(self, text: str) -> str | None:
        """Why `text` would take more memory than an engine may have; None if it would not."""
        if len(text) <= cutting.LONGEST_RUN or self.engine == "bytes":
            return None
        if not self.cuts:
            return f"{len(text):,} characters, where {self.name} takes {cutting.LONGEST_RUN:,} at most"
        longest = cutting.longest_part(text)
        if longest <= cutting.LONGEST_RUN:
            return None
        return (
            f"{longest:,} characters without a space or mark after a letter or digit, where it could be cut: at most "
            f"{cutting.LONGEST_RUN:,} are encoded at once"
        )

    def warm_up(self) -> None:
        """Encode the vocabulary itself once, so that the fast engine's cache of words does not start empty (0.1 s)."""
        self.encode_batch(["", *self._words()])

    def encode_ordinary(self, text: str) -> list[int]:
        """Encode one document with the reference. Raises `TokenizerError` where that fails."""
        try:
            return self._reference(text)
        except Unencodable as failure:
            raise TokenizerError(failure.why) from failure

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, EOT becomes `<|endoftext|>`."""
        return self._decode([int(i) for i in ids])

    def audit(self, text: str, ids: NDArray[np.unsignedinteger], where: str) -> None:
        """Check that `ids` is what the reference makes of `text`. Raises `AuditError` naming the document (`where`)."""
        try:
            expected = self._reference(text)
        except Unencodable as failure:
            raise AuditError(
                f"{where}: {failure.why}, so nobody can say whether {self.engine} is right there: install a newer one, "
                "or leave the document out (`filter`)"
            ) from failure
        if len(expected) != len(ids) or not np.array_equal(np.asarray(expected, dtype=np.int64), ids):
            shorter = min(len(expected), len(ids))
            at = next((i for i in range(shorter) if expected[i] != ids[i]), shorter)
            raise AuditError(
                f"{where}: {self.engine} {self.engine_version} and the reference differ at token {at} "
                f"(expected {expected[at : at + 5]}, got {ids[at : at + 5].tolist()}): run again with "
                "--encoder tiktoken, and please report the document"
            )

    def with_eot(
        self, ids: NDArray[np.unsignedinteger], offsets: NDArray[np.int64], *, continued: bool = False
    ) -> NDArray[np.unsignedinteger]:
        """The stream of these documents, `[EOT] + tokens` each, but of the first, where it is `continued`, the tokens
        alone: shape `(tokens + documents,)`, the shard dtype."""
        narrow = ids.astype(self.dtype, copy=False)
        return np.insert(narrow, offsets[int(continued) : -1], self.dtype.type(self.eot_id))

    def eot_positions(
        self, stream: NDArray[np.unsignedinteger], offsets: NDArray[np.int64], *, continued: bool = False
    ) -> NDArray[np.int64]:
        """Where the EOTs are in `stream`, which `with_eot` made: int64, in order; without a look at the tokens, where
        no text can give an EOT."""
        if self._text_may_give_eot:
            return np.flatnonzero(stream == self.eot_id)
        starts = offsets[int(continued) : -1]
        return starts + np.arange(len(starts))

    def _encode_whole(self, texts: Sequence[str], number: int = 0) -> TokenBatch:
        """Encode texts, each at once. The first is number `number` of a batch, for `Unencodable`."""
        try:
            return self._encode_batch(texts)
        except UnicodeEncodeError:  # a lone surrogate somewhere: what tiktoken does with one
            return self._encode_batch([replace_surrogates(text) for text in texts])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic is no Exception
            if len(texts) == 1:
                why = f"{self.engine} failed on its {len(texts[0]):,} characters ({type(error).__name__}: {error})"
                raise Unencodable(error.why if isinstance(error, Unencodable) else why, number) from error
            for place, text in enumerate(texts):  # which of them?
                self._encode_whole([text], number + place)
            raise

    def _init_bytes(self) -> None:
        self.engine, self.engine_version = "bytes", "1"
        self.info = TokenizerInfo(
            name="bytes", vocab_size=257, eot_id=256, ranks_sha256=hashlib.sha256(bytes(range(256))).hexdigest()
        )
        self.cuts = True
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
        self.cuts = True
        tiktoken = f"tiktoken {version('tiktoken')}"
        self._reference = lambda text: guarded(tiktoken, encoding.encode_ordinary, text)
        self._decode = lambda ids: encoding.decode(ids, errors="replace")
        if fast:
            self._words = lambda: [t.decode() for t in ranks if t.decode(errors="ignore").encode() == t]
            self._use_fastokens(
                fast_tokenizer_json(ranks, encoding._pat_str) if self.fast_json is None else self.fast_json
            )
        else:
            self.engine, self.engine_version = "tiktoken", version("tiktoken")
            self._encode_batch = lambda texts: _pack([self._reference(text) for text in texts])

    def _init_json(self, path: Path, *, fast: bool) -> None:
        text, reference = read_tokenizer_json(path)
        if not (vocabulary := reference.get_vocab(with_added_tokens=True)):
            raise TokenizerError(f"{path} has an empty vocabulary: give the tokenizer.json of a trained tokenizer")
        self.info = TokenizerInfo(
            name=path.name,
            vocab_size=max(vocabulary.values()) + 1,  # ids may have holes
            eot_id=find_eot(path, reference),
            ranks_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        self._text_may_give_eot = True  # a model of whole words or pieces may hold `</s>` as one
        self.cuts = has_pattern_of_gpt2(json.loads(text))
        engine = f"tokenizers {version('tokenizers')}"

        def encode(text: str) -> list[int]:
            return list(reference.encode(replace_surrogates(text), add_special_tokens=False).ids)

        self._reference = lambda text: guarded(engine, encode, text)
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
    cuts: bool  # whether the parts that `cutting` makes of a text have the ids of the whole
    _text_may_give_eot = False
    _words: Callable[[], list[str]] = staticmethod(list)
    _encode_batch: Callable[[Sequence[str]], TokenBatch]
    _reference: Callable[[str], list[int]]
    _decode: Callable[[list[int]], str]


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
