"""Shards of llm.c and modded-nanogpt: `.bin` files, 256 int32 of header and then the tokens.

As llm.c's `dev/data/data_common.py` writes them and `llmc/dataloader.h` reads them: magic, version, number of tokens.
One EOT before each document (`dev/data/fineweb.py`), as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shardkit.dataset.bin_files import (
    HEADER_BYTES,
    MAGIC,
    NamedShard,
    TokenType,
    bin_files,
    bin_header,
    is_llmc,
    split_of,
)
from shardkit.dataset.folder import check_gapless
from shardkit.dataset.formats.eot import cut
from shardkit.dataset.formats.interface import Blocks, Given, Reading, Shape, Tokens
from shardkit.dataset.formats.raw_tokens import RawWriter, TokenFile, file_blocks, read_run
from shardkit.dataset.formats.sharded import Cut, Slot, temp_of, write_shards
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.shards import DTYPES, SHARD_NAME, ShardWriter, shard_name
from shardkit.errors import ShardError, UsageError
from shardkit.files import open_file

_MOST_TOKENS = (1 << 31) - 1  # of a file: its header has an int32


def recognizes(path: Path) -> bool:
    """A `.bin` file that begins with llm.c's header, or a folder whose files of tokens do."""
    if path.is_file():
        return path.suffix == ".bin" and is_llmc(path)
    return path.is_dir() and any(is_llmc(file.path) for file in bin_files(path))


def read(path: Path, given: Given) -> Reading:
    """The shards in stream order: val before the others. Raises `ShardError`, `ManifestError` if one is missing."""
    prefix = None
    if path.is_file():
        files = [_token_file(split_of(path) or "train", path)]
    else:
        if not (found := _found(path, given.manifest)):
            raise ShardError(f"{path} has no shard of llm.c, which its shardkit.json means: convert it again")
        files = [_token_file(file.split, file.path) for file in found]
        prefix = found[0].prefix
    dtypes = {file.dtype.name for file in files}
    if len(dtypes) > 1:
        raise ShardError(f"{path} mixes {' and '.join(sorted(dtypes))} shards: give each its own folder")
    dtype, lengths = DTYPES[dtypes.pop()], given.lengths
    return Reading(
        dtype=dtype,
        tokens=sum(file.tokens for file in files),
        blocks=lambda: _in_splits(file_blocks(files, dtype), lengths, path),
        eot_id=given.eot_id,
        manifest=given.manifest,
        prefix=prefix if SHARD_NAME.match(shard_name(prefix or "", "train", 0)) else None,
        shard_tokens=max(file.tokens for file in files) if given.manifest is None else None,
    )


def _in_splits(blocks: Blocks, lengths: Mapping[str, int] | None, path: Path) -> Blocks:
    return blocks if lengths is None else cut(blocks, lengths, str(path))


def _found(path: Path, manifest: Manifest | None) -> list[NamedShard]:
    """The files of a folder in stream order, those of the manifest if there is one."""
    found = sorted(bin_files(path), key=lambda file: (file.split != "val", file.number))
    if manifest is None:
        check_gapless([file.number for file in found], str(path), "fetch them, or move the others away")
        if len(prefixes := sorted({file.prefix for file in found})) > 1:
            raise ShardError(f"{path} holds several datasets ({', '.join(prefixes)}): give each its own folder")
        return found
    names = [Path(shard.file).with_suffix(".bin").name for part in manifest.splits.values() for shard in part]
    places = {file.path.name: file for file in found}
    if lost := [name for name in names if name not in places]:
        raise ShardError(f"{path} has no {lost[0]}, which its shardkit.json means: convert it again")
    return [places[name] for name in names]


def write(reading: Reading, blocks: Blocks, folder: Path, shape: Shape) -> None:
    """Each shard as a file of its name, with the ending `.bin`. Raises `OutputError`."""

    def open_writer(slot: Slot) -> BinWriter:
        return BinWriter(temp_of(folder), reading.dtype, slot.room)

    def finish(slot: Slot, writer: BinWriter, _: int) -> None:
        writer.finish((folder / slot.file).with_suffix(".bin"))

    write_shards(blocks, Cut.of(reading, shape), open_writer, finish, reading.eot_id)


class BinWriter:
    """Writes one `.bin` shard of at most `capacity` tokens into `temp`; `finish` gives it its name."""

    def __init__(self, temp: Path, dtype: TokenType, capacity: int) -> None:
        self.room = min(capacity, _MOST_TOKENS)
        if capacity > _MOST_TOKENS:
            raise UsageError(
                f"a .bin shard takes at most {_MOST_TOKENS:,} tokens, not {capacity:,}: give --shard-tokens of less"
            )
        self._temp, self._dtype, self._tokens = temp, dtype, 0
        self._file = RawWriter(temp)
        self._file.write(_header(0, dtype))

    def write(self, tokens: Tokens) -> None:
        """Append `tokens`, of the shard's dtype."""
        self._file.write(tokens)
        self._tokens += len(tokens)
        self.room -= len(tokens)

    def finish(self, final: Path) -> None:
        """Sync it and give it its name."""
        self._file.finish(_header(self._tokens, self._dtype))
        self._temp.replace(final)

    def abort(self) -> None:
        """Close and remove the unfinished file."""
        self._file.abort()
        self._temp.unlink(missing_ok=True)


def _header(tokens: int, dtype: TokenType) -> bytes:
    magic, version = next(key for key, of in MAGIC.items() if of == dtype)
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = magic, version, tokens
    return header.tobytes()


def _token_file(split: str, path: Path) -> TokenFile:
    try:
        with open_file(path) as file:
            tokens, dtype, skip = bin_header(file, path)
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error.strerror or error}") from None
    if not skip:
        raise ShardError(f"{path.name} has no llm.c header (magic 20240520 version 1, or 20240801 version 7)")
    return TokenFile(split, path, skip, tokens, dtype)


def bin_to_npy(path: Path) -> Path:
    """Rewrite an llm.c `.bin` shard as `.npy` beside it, delete it, and return the new path. Memory is flat."""
    file = _token_file("", path)
    target = path.with_suffix(".npy")
    writer = ShardWriter(target.with_suffix(".tmp"), DTYPES[file.dtype.name], file.tokens)
    for block in read_run(file):
        writer.write(block.astype(writer.dtype, copy=False))
    writer.finish(target)
    path.unlink()
    return target
