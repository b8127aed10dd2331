"""`train-tokenizer`: a byte-level BPE vocabulary made of one's own text, by Hugging Face's `tokenizers`.

Deterministic: the same source, options and version of that library give the same file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardkit.arguments import as_int, user_path
from shardkit.bars import State, TransferBar, shown
from shardkit.dataset.manifest import TokenizerInfo
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, tokenizer_files, write_tokenizer_files
from shardkit.errors import OutputError, SourceError, UsageError
from shardkit.files import write_error
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.read_ahead import ReadAhead
from shardkit.sources.source import Chunk, Source
from shardkit.sources.texts import BadRow, Texts, read_chunk

EOT = "<|endoftext|>"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# How text is cut into words before merging, by OpenAI's names: the patterns of tiktoken's gpt2, cl100k_base and
# o200k_base (tiktoken_ext/openai_public.py), as published tokenizer.json files spell them. None: the library's own.
PATTERNS = {
    "gpt2": None,
    "gpt4": f"{_ENDINGS}|{_LETTERS}",
    "gpt4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_CHUNK_BYTES = 8 << 20
_HELD_OUT_STRIDE, _HELD_OUT_BYTES = 50, 8_000_000
_LEAST, _MOST = 257, 1 << 20  # ids: the bytes and the end of text; more than any published vocabulary has


_Tell = Callable[[str, int, int], object]


class TrainingBar(TransferBar):
    """Callable with (what is done, bytes of text read, bytes that are expected) of a training."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__("train-tokenizer", quiet=quiet)

    def state(self) -> State | None:
        """The bytes that were read; the line says what is done with them."""
        state = super().state()
        return state and state._replace(line=f"{state.words}, {state.line}")


@dataclass(slots=True)
class Trained:
    """What a training did: the file, and the documents that were left out of it, for `training_report.py`."""

    path: Path
    vocab_size: int
    sha256: str
    documents: int = 0
    text_bytes: int = 0
    held_out: list[str] = field(default_factory=list)


def train_tokenizer(
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str],
    *,
    vocab_size: int = 32_768,
    pattern: str = "gpt4",
    max_bytes: int = 2_000_000_000,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    include: str | None = None,
    format: str | None = None,
    text_field: str = "text",
    separator: str | None = None,
    skip_bad_rows: bool = False,
    where: str | None = None,
    sample: float | None = None,
    progress: Callable[[str, int, int], object] | bool | None = True,
) -> Trained:
    """Train a vocabulary of `vocab_size` ids on `source` (as `tokenize` understands it) into `out/tokenizer.json`.

    The last id is the end of text, `<|endoftext|>`. Of a source with more than `max_bytes` of text, chunks from all
    over it are read. Every 50th document is left out, up to 8 MB, to measure on. A text that is too short for
    `vocab_size` gives fewer ids.

    A bar says how far it is; `progress=False` silences it, and `progress(doing, done_bytes, expected_bytes)` is called
    in its place: `doing` is "reading", then "training", and as many bytes are expected as can be said (0: unknown).

    Raises `UsageError`, `SourceError` or `OutputError`.
    """
    directory, vocab_size, max_bytes = user_path(out), as_int(vocab_size, floats=True), as_int(max_bytes, floats=True)
    _check(directory, vocab_size, pattern, max_bytes)
    opened = open_source(
        source,
        name=name,
        split=split,
        revision=revision,
        include=include,
        format=format,
        text_field=text_field,
        separator=separator,
        skip_bad_rows=skip_bad_rows,
        where=where,
        sample=sample,
    )
    trained = Trained(directory / TOKENIZER_NAME, vocab_size, "")
    made = _new_tokenizer(pattern)
    with shown(progress, TrainingBar) as tell:
        _train(made, _documents(opened, max_bytes, trained, tell or (lambda *_: None)), vocab_size - 1)
    if not trained.documents:
        raise SourceError(f"{opened.info.id} has no text to train on")
    _write(directory, made, trained)
    return trained


def _write(directory: Path, made: Any, trained: Trained) -> None:
    data = made.to_str().encode()
    trained.sha256, trained.vocab_size = hashlib.sha256(data).hexdigest(), made.get_vocab_size(with_added_tokens=True)
    info = TokenizerInfo(
        name=TOKENIZER_NAME,
        vocab_size=trained.vocab_size,
        eot_id=made.token_to_id(EOT),
        ranks_sha256=trained.sha256,
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, directory, len(data)) from None
    write_tokenizer_files(directory, tokenizer_files(info, data))


def _check(directory: Path, vocab_size: int, pattern: str, max_bytes: int) -> None:
    if pattern not in PATTERNS:
        raise UsageError(f"unknown --pattern {pattern!r}: expected one of {', '.join(PATTERNS)}")
    if not _LEAST <= vocab_size <= _MOST:
        raise UsageError(f"--vocab-size is {vocab_size:,}: expected from {_LEAST} (bytes and end of text) to {_MOST:,}")
    if max_bytes < 1:
        raise UsageError(f"--max-bytes is {max_bytes}: expected at least 1")
    if (directory / TOKENIZER_NAME).exists():
        raise OutputError(f"{directory} holds a {TOKENIZER_NAME}: choose another --out, or move it away")


def _new_tokenizer(pattern: str) -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    made: Any = tokenizers.Tokenizer(models.BPE())
    regex = PATTERNS[pattern]
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    if regex is None:
        made.pre_tokenizer = bytes_of
    else:
        cut = pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_of])
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def _train(made: Any, documents: Iterator[list[str]], vocab_size: int) -> None:
    from tokenizers import AddedToken, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        documents, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken(EOT, special=True, normalized=False)])


def _documents(source: Source, max_bytes: int, trained: Trained, tell: _Tell) -> Iterator[list[str]]:
    """The documents to train on; counts them in `trained`, and puts those that are left out there."""
    held = 0
    for texts in _sampled(source, max_bytes, tell):
        kept: list[str] = []
        for text in filter(None, texts):
            size = len(text.encode(errors="replace"))
            trained.documents += 1
            if trained.documents % _HELD_OUT_STRIDE == 0 and held + size <= _HELD_OUT_BYTES:
                trained.held_out.append(text)
                held += size
            else:
                kept.append(text)
                trained.text_bytes += size
        yield kept


def _sampled(source: Source, max_bytes: int, tell: _Tell) -> Iterator[list[str]]:
    """Texts of chunks at equal distances over the source, `max_bytes` of them and at most a chunk more."""
    read, size = 0, _text_bytes(source)
    every, expected = max(1, size // max_bytes), min(size, max_bytes)
    with ReadAhead() as ahead:
        for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=_CHUNK_BYTES, ahead=ahead, every=every):
            for piece in _read(chunk, source):
                read += piece.text_bytes
                tell("reading", read, max(read, expected) if expected else 0)
                yield piece.texts
            if read >= max_bytes:
                break
    tell("training", read, read)


def _text_bytes(source: Source) -> int:
    """About how much text there is, as the first chunk has it: text for a byte of the file is much the same everywhere.
    0 where that is not known."""
    total = sum(file.bytes for file in source.files)
    if not total:  # of an iterable, which may be one that can be read once
        return 0
    first = next(iter_chunks(source, 0, 0, 0, chunk_bytes=_CHUNK_BYTES), None)
    if first is None or not first.weight:
        return 0
    text_bytes = sum(piece.text_bytes for piece in _read(first, source))
    return int(total * text_bytes / first.weight)


def _read(chunk: Chunk, source: Source) -> Iterator[Texts]:
    try:
        yield from read_chunk(chunk, source.options)
    except BadRow as bad:
        raise SourceError(
            f"{chunk.where}, row {bad.row} of them: {bad.why}; mend it, or pass over such rows with --skip-bad-rows"
        ) from None
