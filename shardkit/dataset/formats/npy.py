"""shardkit's own format, and `fineweb.py`'s: shards `PREFIX_SPLIT_000000.npy`, one EOT before each document."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial
from pathlib import Path

from shardkit.dataset.folder import MANIFEST_NAME, shard_files
from shardkit.dataset.formats.interface import Blocks, Given, Reading, Shape
from shardkit.dataset.formats.sharded import Cut, Slot, temp_of, write_shards
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import DTYPES, MEND, ShardWriter, edges_sha256, read_header, token_blocks
from shardkit.errors import ShardError, SourceError
from shardkit.files import open_file


def recognizes(path: Path) -> bool:
    """A folder with a manifest, or with files that have the name and the first bytes of a shard."""
    if not path.is_dir():
        return False
    return (path / MANIFEST_NAME).exists() or any(map(has_header, shard_files(path)))


def has_header(path: Path) -> bool:
    """Whether a file begins as `np.save` writes it."""
    try:
        with open_file(path) as file:
            return file.read(6) == b"\x93NUMPY"
    except OSError:
        return False


def read(path: Path, given: Given) -> Reading:
    """The folder's dataset, whose shards are hashed while they are read. Raises `ManifestError`, `ShardError`."""
    known, manifest = KnownFiles(path), Manifest.of_folder(path)
    manifest.check_files(path)
    eot_id = given.eot_id if manifest.tokenizer is None else manifest.tokenizer.eot_id
    return Reading(
        dtype=DTYPES[manifest.dtype],
        tokens=manifest.tokens,
        blocks=partial(_blocks, known, manifest),
        eot_id=eot_id,
        manifest=manifest,
    )


def _blocks(known: KnownFiles, manifest: Manifest) -> Blocks:
    for split, shards in manifest.splits.items():
        for shard in shards:
            path, digest = known.directory / shard.file, hashlib.sha256()
            with known.open(shard, manifest.dtype) as file:
                header = read_header(file, path)
                file.seek(0)
                digest.update(file.read(header.bytes))
                for block in token_blocks(file, path, header.dtype, header.tokens):
                    digest.update(block.data)
                    yield split, block
            if shard.sha256 and digest.hexdigest() != shard.sha256:
                raise ShardError(f"{path} does not have the SHA-256 that its manifest states: it is damaged, {MEND}")


def write(reading: Reading, blocks: Blocks, folder: Path, shape: Shape) -> Manifest:
    """Shards and their manifest: the source's own where they are the same shards. Raises `OutputError`, and
    `ShardError` if they should be the same and are not; `SourceError` if there is no token."""
    cut, shards = Cut.of(reading, shape), list[ShardInfo]()

    def open_writer(slot: Slot) -> ShardWriter:
        return ShardWriter(temp_of(folder), reading.dtype, slot.room)

    def finish(slot: Slot, writer: ShardWriter, documents: int) -> None:
        made = writer.finish(folder / slot.file)
        info = ShardInfo(
            file=slot.file,
            split=slot.split,
            index=slot.number,
            tokens=made.tokens,
            documents=documents,
            first_document=0,  # known when all are
            sha256=made.sha256,
            bytes=made.bytes,
        )
        shards.append(info)

    write_shards(blocks, cut, open_writer, finish, reading.eot_id)
    if not shards:
        raise SourceError("the source holds no tokens: nothing was converted")
    if cut.manifest is not None:
        made = {shard.file: shard for shard in shards}
        shards = [made[shard.file] for shard in cut.manifest.shards]
        for shard, stated in zip(shards, cut.manifest.shards, strict=True):
            _check_same(folder / shard.file, shard, stated)
    manifest = _manifest(reading, shape, cut, shards)
    manifest.save(folder)
    return manifest


def _check_same(path: Path, made: ShardInfo, stated: ShardInfo) -> None:
    with open_file(path) as file:
        edges = edges_sha256(file) if stated.edges else ""
    if stated.sha256 not in ("", made.sha256) or stated.edges != edges:
        raise ShardError(
            f"{made.file} does not come back as it was before it was converted: the source is damaged or was changed, "
            "convert it again"
        )


def _manifest(reading: Reading, shape: Shape, cut: Cut, shards: list[ShardInfo]) -> Manifest:
    source = reading.manifest
    if cut.manifest is not None and all(shard.sha256 for shard in cut.manifest.shards):
        return dataclasses.replace(cut.manifest, tokenizer=cut.manifest.tokenizer or shape.tokenizer)
    first = source.shards[0].first_document if source is not None else 0
    numbered = []
    for shard in shards:
        numbered.append(dataclasses.replace(shard, first_document=first))
        first += shard.documents
    if source is not None:
        tokenizer = source.tokenizer or shape.tokenizer
        return dataclasses.replace(source, shards=tuple(numbered), tokens_per_shard=cut.tokens, tokenizer=tokenizer)
    return Manifest(
        dtype=reading.dtype.name, tokens_per_shard=cut.tokens, shards=tuple(numbered), tokenizer=shape.tokenizer
    )
