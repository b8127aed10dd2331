"""A dataset in one format becomes one in another: which formats there are, the output folder, and the record in it.

The folder is made beside its final place and renamed when all of it is there. Of a format that is not shardkit's,
`shardkit.json` keeps what the files cannot hold: the manifest, the tokens of each split, the EOT.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardkit.dataset.consistency import check_tokenizer
from shardkit.dataset.folder import MANIFEST_NAME, parts_hint
from shardkit.dataset.formats import headerless, llmc, megatron, nanogpt, npy, parquet
from shardkit.dataset.formats.interface import SPLIT, Blocks, Given, Reader, Reading, Shape, Write
from shardkit.dataset.manifest import Manifest, TokenizerInfo
from shardkit.dataset.tokenizer_file import read_tokenizer_files, tokenizer_files, write_tokenizer_files
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import ManifestError, OutputError, ShardError, SourceError, UsageError
from shardkit.files import atomic_write, fsync_dir, read_small_file, remove_tree, write_error
from shardkit.locks import hold_lock

RECORD_NAME = "shardkit.json"
READERS: Mapping[str, Reader] = {  # in the order in which a source is compared with them
    "npy": npy,
    "llmc": llmc,
    "megatron": megatron,
    "nanogpt": nanogpt,
    "parquet": parquet,
    "headerless": headerless,
}
WRITERS: Mapping[str, Write] = {
    "npy": npy.write,
    "llmc": llmc.write,
    "nanogpt": nanogpt.write,
    "megatron": megatron.write,
    "parquet": parquet.write,
}
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What was converted: the source's format, and `tokens` and `documents` of each split (None: nobody knows), with
    one EOT a document."""

    format: str
    tokens: Mapping[str, int]
    documents: int | None
    manifest: Manifest | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What is in `shardkit.json`, but for the manifest."""

    format_version: int
    format: str
    eot_id: int | None
    tokens: Mapping[str, int]
    tokenizer: TokenizerInfo | None


def convert_folder(
    source: Path,
    out: Path,
    to: str,
    given: Given,
    *,
    shard_tokens: int | None = None,
    prefix: str = "tokens",
    tokenizer_json: bytes = b"",
    tell: Tell | None = None,
) -> Counted:
    """Write the dataset at `source` as format `to` into the new or empty folder `out`.

    `tokenizer_json` is the file of the tokenizer that is `given`, `tell` is called with (split, done bytes, total).
    Raises `ShardkitError`.
    """
    name, given = recognize(source, given)
    check_empty(out)
    if source.resolve() in out.resolve().parents:
        raise OutputError(f"{out} is inside {source}, which is read: choose a folder beside it")
    reading = READERS[name].read(source, given)
    if given.dtype not in (None, reading.dtype.name):  # of files that say it themselves
        raise UsageError(f"--dtype is {given.dtype}, the ids of {source} are {reading.dtype.name}: leave --dtype out")
    tokenizer = _tokenizer_of(reading, given)
    if reading.eot_id is not None and reading.eot_id > np.iinfo(reading.dtype).max:
        raise UsageError(f"the EOT id is {reading.eot_id}, which no {reading.dtype.name} is: give that of the tokens")
    count = _Count(reading, tokenizer, tell)
    with _made_beside(out) as folder:
        shape = Shape(shard_tokens=shard_tokens, prefix=prefix, tokenizer=tokenizer)
        manifest = WRITERS[to](reading, count.blocks(), folder, shape)
        if not count.tokens:
            raise SourceError(f"{source} holds no tokens: nothing was converted")
        if manifest is None:
            record = _Record(
                format_version=1, format=to, eot_id=reading.eot_id, tokens=count.tokens, tokenizer=tokenizer
            )
            _write_record(folder, record, reading.manifest)
        files = read_tokenizer_files(source, tokenizer) or tokenizer_files(tokenizer, tokenizer_json)
        write_tokenizer_files(folder, files)
    if manifest is not None:
        manifest = dataclasses.replace(manifest, directory=out)
    known = None if reading.eot_id is None else count.documents
    return Counted(format=name, tokens=count.tokens, documents=known, manifest=manifest)


def recognize(source: Path, given: Given) -> tuple[str, Given]:
    """The format of what is at `source`, and what an earlier conversion has noted there beside what is `given`.

    Raises `SourceError` for what is of no format, `ManifestError` for a note that cannot be read, `ShardError` for a
    file of Megatron's without its index.
    """
    record = source / RECORD_NAME
    if not (source / MANIFEST_NAME).exists() and record.exists():
        name, given = _read_record(record, given)
    else:
        name = next((name for name, kind in READERS.items() if kind.recognizes(source)), "")
    _check_indexes(source, name)
    if name:
        return name, given
    if source.is_dir() and ((source / ".shardkit").exists() or parts_hint(source)):
        Manifest.of_folder(source)  # says what is unfinished there
    what = "holds no" if source.is_dir() else "is no" if source.exists() else "is not there: expected a"
    raise SourceError(
        f"{source} {what} dataset of tokens: shards (.npy, llm.c's .bin), nanoGPT's train.bin, Megatron's .bin and "
        ".idx, parquet with lists of ids, or headerless .npy"
    )


def _check_indexes(source: Path, name: str) -> None:
    """Raise `ShardError` for a file of Megatron's whose index is not beside it: of no format by its own name, and as
    `train.bin` it looks like nanoGPT's."""
    lost = megatron.without_index(source) if name in ("", "nanogpt", "megatron") else None
    if lost is None or (name == "nanogpt" and not _is_of_megatron(lost.parent)):
        return
    index = lost.with_suffix(".idx").name
    raise ShardError(
        f"{lost} has no {index} beside it, in which Megatron-LM has the documents: fetch {index} too (a file of "
        "nothing but uint16 ids, as nanoGPT has them, is named train.bin or val.bin)"
    )


def _is_of_megatron(folder: Path) -> bool:
    record = folder / RECORD_NAME
    if record.exists() and not (folder / MANIFEST_NAME).exists():
        return _read_record(record, Given())[0] == "megatron"
    return any(folder.glob("*.idx"))


def check_empty(out: Path) -> None:
    """Raise `OutputError` unless nothing is at `out`, or an empty folder."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} is not an empty folder: choose another one, or remove it first")
    except OSError as error:
        raise write_error(error, out, 0) from None


def _tokens_of(manifest: Manifest) -> dict[str, int]:
    return {split: sum(shard.tokens for shard in shards) for split, shards in manifest.splits.items()}


def _tokenizer_of(reading: Reading, given: Given) -> TokenizerInfo | None:
    """The dataset's own tokenizer, or the one that is given. Raises `UsageError` if that cannot be its."""
    own = reading.manifest.tokenizer if reading.manifest is not None else None
    if own is not None and given.tokenizer is not None and own != given.tokenizer:
        raise UsageError(f"the dataset's own tokenizer is {own}, not {given.tokenizer}: leave --tokenizer out")
    if own is not None and given.eot_id not in (None, own.eot_id):
        raise UsageError(f"the dataset's own tokenizer is {own}: leave --eot-id out")
    if own is None and given.tokenizer is not None:
        try:
            check_tokenizer(given.tokenizer, reading.dtype.name)
        except ValueError as error:
            raise UsageError(f"the tokenizer does not go with these ids: {error}") from None
    return own or given.tokenizer


class _Count:
    """What goes through: the `tokens` of each split, and how many `documents`."""

    def __init__(self, reading: Reading, tokenizer: TokenizerInfo | None, tell: Tell | None) -> None:
        self.tokens: dict[str, int] = {}
        self.documents = 0
        self._reading, self._tell = reading, tell
        self._ids = tokenizer.vocab_size if tokenizer is not None else 1 << 32

    def blocks(self) -> Blocks:
        """Those of the reading. Raises `ShardError` for an id that is not in the vocabulary."""
        size, done, eot_id = self._reading.dtype.itemsize, 0, self._reading.eot_id
        for split, block in self._reading.blocks():
            if not len(block):
                continue
            if (largest := int(block.max())) >= self._ids:
                raise ShardError(
                    f"split {split} holds id {largest}, the vocabulary has {self._ids:,}: give the tokenizer, or the "
                    "dtype, that it was made with"
                )
            self.tokens[split] = self.tokens.get(split, 0) + len(block)
            if eot_id is not None:
                self.documents += int(np.count_nonzero(block == eot_id))
            done += len(block)
            if self._tell is not None:
                self._tell(split, done * size, max(done, self._reading.tokens) * size)
            yield split, block


@contextmanager
def _made_beside(out: Path) -> Iterator[Path]:
    """A new folder, which becomes `out` when the block has ended, and is removed if it fails."""
    out = out.absolute()
    folder = out.with_name(f".{out.name}.converting")
    busy = f"another process is converting into {out}: wait for it, or choose another folder"
    with hold_lock(out.with_name(f".{out.name}.converting.lock"), busy=busy, remove=True):
        remove_tree(folder)  # of a process that was killed
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise write_error(error, folder, 0) from None
        try:
            yield folder
            _put_in_place(folder, out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _put_in_place(folder: Path, out: Path) -> None:
    try:
        for path in folder.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        fsync_dir(folder)
        if not out.exists():
            os.rename(folder, out)
            fsync_dir(out.parent)
            return
        last = (RECORD_NAME, MANIFEST_NAME)  # what says that all of it is there
        for path in sorted(folder.iterdir(), key=lambda path: path.name in last):
            os.rename(path, out / path.name)
        fsync_dir(out)
        folder.rmdir()
    except OSError as error:
        raise write_error(error, out, 0) from None


def _write_record(folder: Path, record: _Record, manifest: Manifest | None) -> None:
    stated = None if manifest is None else json.loads(manifest.to_json())
    data = {**dataclasses.asdict(record), "manifest": stated}
    atomic_write(folder / RECORD_NAME, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _read_record(path: Path, given: Given) -> tuple[str, Given]:
    try:
        data = parse_json(read_small_file(path))
        stated = data.pop("manifest")
        record = read_record(_Record, data)
        if record.format_version != 1 or record.format not in WRITERS or not record.tokens:
            raise ValueError(f"format {record.format!r:.40}, version {record.format_version}")
        if wrong := [split for split in record.tokens if not SPLIT.fullmatch(split)]:
            raise ValueError(f"a split {wrong[0]!r:.40}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path} is not what `shardkit convert` writes ({error}): convert again") from None
    manifest = None if stated is None else Manifest.from_json(json.dumps(stated), where=str(path))
    if manifest is not None and dict(record.tokens) != _tokens_of(manifest):
        raise ManifestError(
            f"{path} states other tokens than the manifest in it: it was edited or damaged, convert again"
        )
    if record.eot_id is not None and given.eot_id not in (None, record.eot_id):
        raise UsageError(f"{path} says that {record.eot_id} ends a document, not {given.eot_id}: leave --eot-id out")
    if manifest is not None and given.dtype not in (None, manifest.dtype):
        raise UsageError(f"{path} says that the ids are {manifest.dtype}, not {given.dtype}: leave --dtype out")
    return record.format, Given(
        eot_id=record.eot_id,
        dtype=given.dtype,
        tokenizer=record.tokenizer or given.tokenizer,
        manifest=manifest,
        lengths=dict(record.tokens),
    )
