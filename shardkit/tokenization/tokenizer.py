"""Tokenizers: a name becomes a vocabulary, a dtype, an EOT id, and two engines that agree.

`with_eot` writes the EOT rule: one EOT before each document, none inside.

The reference says what is right; the fast engine gives the same ids (`engines.py` has both). Nothing here knows of
files of text or of shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.arguments import user_path
from shardkit.dataset.manifest import Manifest, TokenizerInfo
from shardkit.dataset.tokenizer_file import tokenizer_files
from shardkit.errors import AuditError, TokenizerError, UsageError
from shardkit.files import atomic_write
from shardkit.tokenization import cutting
from shardkit.tokenization.engine_calls import Unencodable
from shardkit.tokenization.engines import (
    Reference,
    fast_engine,
    make_reference,
    reference_engine,
    reference_name,
    replace_surrogates,
)
from shardkit.tokenization.guard import EncodeBatch, TokenBatch, guard_engine
from shardkit.tokenization.tokenizer_json import has_pattern_of_gpt2
from shardkit.tokenization.vocabulary import (
    Vocabulary,
    dataset_vocabulary,
    load_vocabulary,
    tokenizer_json_of,
    with_fast_json,
)

ENCODERS = ("auto", "fast", "tiktoken")


class Tokenizer:
    """Encodes documents as `encode_ordinary` does: special tokens in the text are ordinary text.

    `name` is a tiktoken encoding (`gpt2`), a path of a `tokenizer.json` or of a folder with one, a model on the Hub
    (`user/name`), or `bytes` (ids 0-255, EOT 256); or a `Vocabulary` that another instance has loaded (its
    `vocabulary`). `encoder` is `tiktoken` (the reference), `fast`, or `auto`: fast where a proof says that this gives
    the reference's ids. Documents with a character that the proof names go to the reference. The engines are made when
    they are first needed. Raises `TokenizerError` if the vocabulary cannot be had, `UsageError` if there is no fast
    engine for it.

    >>> tokenizer = Tokenizer("bytes")
    >>> ids, offsets = tokenizer.encode_batch(["ab", ""])
    >>> ids.tolist(), offsets.tolist()
    ([97, 98], [0, 2, 2])
    >>> Tokenizer("gpt2").encode_ordinary("Hello world")
    [15496, 995]
    """

    def __init__(self, name: str | Vocabulary = "gpt2", *, encoder: str = "auto") -> None:
        if encoder not in ENCODERS:
            raise UsageError(f"unknown encoder {encoder!r}: expected one of {', '.join(ENCODERS)}")
        self.vocabulary = name if isinstance(name, Vocabulary) else load_vocabulary(name)
        self.name, self.info = self.vocabulary.name, self.vocabulary.info
        fits16 = self.info.vocab_size <= 1 << 16
        self.dtype: np.dtype[np.unsignedinteger] = np.dtype("<u2") if fits16 else np.dtype("<u4")
        stated = self.vocabulary.tokenizer_json
        # whether the parts that `cutting` makes of a text have the ids of the whole
        self.cuts = stated is None or self.vocabulary.by_character or has_pattern_of_gpt2(json.loads(stated))
        self.engine, self.engine_version = reference_name(self.vocabulary)
        proof = self.vocabulary.proof
        self._proof = proof if proof is not None and proof.reason is None else None
        # the reference, for now: nobody has said whether the fast engine may be used in its place
        self.is_unproven = encoder == "auto" and proof is None and self.vocabulary.proof_key is not None
        if self.engine != "bytes" and (encoder == "fast" or (encoder == "auto" and self._proof is not None)):
            self._prepare_fast()

    @classmethod
    def of_dataset(cls, manifest: Manifest, *, name: str | None = None, encoder: str = "auto") -> Tokenizer:
        """The tokenizer that a dataset was made with: the one beside its manifest, of the name there, or of `name`.

        Raises `TokenizerError` if it cannot be had, or is another vocabulary than the manifest means.
        """
        return cls(dataset_vocabulary(manifest, name), encoder=encoder)

    @property
    def eot_id(self) -> int:
        """The end-of-text token's id."""
        return self.info.eot_id

    @cached_property
    def file(self) -> bytes:
        """The `tokenizer.json` that the vocabulary came in, or that is made of it for other libraries; empty for an
        encoding of which none can be made."""
        return tokenizer_json_of(self.vocabulary).encode()

    @property
    def info_with_file(self) -> TokenizerInfo:
        """`info`, with the hash of `file`, for the manifest of a dataset that has it."""
        sha256 = hashlib.sha256(self.file).hexdigest() if self.file else ""
        return replace(self.info, file_sha256="" if sha256 == self.info.ranks_sha256 else sha256)

    def save(self, directory: str | Path) -> bool:
        """Write `tokenizer.json` and `tokenizer_config.json` into `directory`, for `transformers.AutoTokenizer`; False,
        and nothing is written, for an encoding of which no `tokenizer.json` can be made. Raises `OutputError`."""
        files = tokenizer_files(self.info_with_file, self.file)
        for name, data in files.items():
            atomic_write(user_path(directory) / name, data)
        return bool(files)

    @property
    def is_fast(self) -> bool:
        """True if the engine in use is not the reference itself."""
        return self.engine == "fastokens"

    @property
    def exact_as(self) -> str:
        """Who decides the ids: engines of which this is the same give the same. That is the reference (of a
        `tokenizer.json` in its version), or the engine itself where nobody has proven that it gives the reference's."""
        name, its_version = reference_name(self.vocabulary)
        if self.is_fast and self._proof is None:
            return f"{self.engine} {self.engine_version}"
        return name if self.vocabulary.tokenizer_json is None else f"{name} {its_version}"

    @property
    def encoder_facts(self) -> dict[str, str]:
        """What the manifest says of the engine in use."""
        facts = {"engine": self.engine, "version": self.engine_version}
        if self.is_fast and self._proof is not None:
            facts |= {"proof": self._proof.key, "guarded_characters": str(len(self._proof.guarded))}
        return facts

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
        if len(text) <= cutting.LONGEST_RUN or self.engine == "bytes" or self.vocabulary.by_character:
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
        known = (self.vocabulary.encoding or {}).get("mergeable_ranks", {}) if self.is_fast else {}
        self.encode_batch(["", *[t.decode() for t in known if t.decode(errors="ignore").encode() == t]])

    def encode_ordinary(self, text: str) -> list[int]:
        """Encode one document with the reference. Raises `TokenizerError` where that fails."""
        try:
            return self._reference.encode(text)
        except Unencodable as failure:
            raise TokenizerError(failure.why) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, EOT becomes `<|endoftext|>`."""
        return self._reference.decode([int(i) for i in ids])

    def audit(self, text: str, ids: NDArray[np.unsignedinteger], where: str) -> None:
        """Check that `ids` is what the reference makes of `text`. Raises `AuditError` naming the document (`where`)."""
        try:
            expected = self._reference.encode(text)
        except Unencodable as failure:
            raise AuditError(
                f"{where}: {failure.why}, so nobody can say whether {self.engine} is right there: install a newer one, "
                "or leave the document out (`filter`)"
            ) from None
        if len(expected) != len(ids) or not np.array_equal(np.asarray(expected, dtype=np.int64), ids):
            shorter = min(len(expected), len(ids))
            at = next((i for i in range(shorter) if expected[i] != ids[i]), shorter)
            raise AuditError(
                f"{where}: {self.engine} {self.engine_version} and the reference differ at token {at} "
                f"(expected {expected[at : at + 5]}, got {ids[at : at + 5].tolist()}): run again with "
                "--encoder=tiktoken, and please report the document"
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
        if self.vocabulary.tokenizer_json is not None:  # of whole words or pieces, one of which may be `</s>`
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

    def _prepare_fast(self) -> None:
        """Leave nothing to do for those who get the vocabulary, and find out whether the fast engine can load it where
        nobody has tried before. Raises `UsageError` on a machine that has another version than the proof is of."""
        self.engine, self.engine_version = "fastokens", version("fastokens")
        if self._proof is not None and self._proof.engine != f"{self.engine} {self.engine_version}":
            raise UsageError(
                f"fastokens {self.engine_version} is installed here, and the run was begun with {self._proof.engine}: "
                "install the same version on all machines, or give --encoder=tiktoken"
            )
        self.vocabulary = with_fast_json(self.vocabulary)
        if self._proof is None:
            self._encode_batch  # noqa: B018 (loads it)

    @cached_property
    def _reference(self) -> Reference:
        return make_reference(self.vocabulary)

    @cached_property
    def _encode_batch(self) -> EncodeBatch:
        if not self.is_fast:
            return reference_engine(self._reference).encode_batch
        guarded = self._proof.guarded if self._proof is not None else ""
        return guard_engine(
            fast_engine(self.vocabulary).encode_batch,
            lambda texts: reference_engine(self._reference).encode_batch(texts),
            guarded,
        )
