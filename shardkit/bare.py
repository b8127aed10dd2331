"""Repos of bare shards: `.npy` as `fineweb.py` leaves them, or llm.c and modded-nanogpt `.bin`, without a manifest.

A `.bin` shard (256 int32 of header, then the tokens) becomes a `.npy` shard on arrival. Sizes and headers are checked;
nobody vouched for the content, so the manifest made here holds the hashes of what arrived.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from shardkit.errors import HubError, ShardError, UsageError
from shardkit.files import sha256_file
from shardkit.manifest import Manifest, SourceInfo
from shardkit.remotes import RemoteFile
from shardkit.shards import ShardWriter

_BARE_NAME = re.compile(r"(?P<folder>(?:.*/)?)(?P<stem>[^/]+_(?P<split>[a-z]+)_(?P<index>\d{6,}))\.(?P<kind>npy|bin)")
_BIN_HEADER_BYTES = 1024
_BIN_DTYPES: dict[tuple[int, int], np.dtype[np.uint16] | np.dtype[np.uint32]] = {
    (20240520, 1): np.dtype("<u2"),  # magic, version: GPT-2
    (20240801, 7): np.dtype("<u4"),  # Llama 3
}
_BLOCK_TOKENS = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """A file to have: its name at the remote, its name here, its bytes and SHA-256 ("" unknown) at the remote."""

    file: str
    target: str
    size: int
    sha256: str

    @property
    def is_bin(self) -> bool:
        """Whether it must be converted on arrival."""
        return self.file.endswith(".bin")


def bare_shards(
    name: str, there: Mapping[str, RemoteFile], takes: Callable[[str, int], bool], local: Manifest | None
) -> tuple[list[Wanted], dict[str, str]]:
    """The bare shards at a remote that `takes(split, index)` chooses, and the SHA-256 that their local files must have.

    Local hashes come from the remote, or from the manifest that an earlier pull of the same files made.
    """
    found = [(match, file) for file in sorted(there) if (match := _BARE_NAME.fullmatch(file))]
    if not found:
        raise HubError(
            f"{name} holds no manifest.json and no shards named PREFIX_SPLIT_000000.npy or .bin: it is not a dataset "
            "that shardkit made, nor one of bare shards"
        )
    if len({(match["folder"], match["kind"]) for match, _ in found}) > 1:
        raise HubError(
            f"{name} holds bare shards in several folders or formats: download the one that you want by hand"
        )
    wanted = [
        Wanted(file, f"{match['stem']}.npy", there[file].size, there[file].sha256)
        for match, file in found
        if takes(match["split"], int(match["index"]))
    ]
    if not wanted:
        splits = ", ".join(sorted({match["split"] for match, _ in found}))
        raise UsageError(f"{name} has no shard that --split and --shards choose; its splits are {splits}")
    before = local.source.options.get("bare", {}) if local and local.source else {}
    made = {shard.file: shard.sha256 for shard in local.shards} if local else {}
    hashes = {}
    for item in wanted:
        if before.get(item.file) == [item.size, item.sha256]:
            hashes[item.target] = made.get(item.target, "")
        elif not item.is_bin:
            hashes[item.target] = item.sha256
    return wanted, hashes


def bin_to_npy(path: Path) -> Path:
    """Rewrite an llm.c `.bin` shard as `.npy` beside it, delete it, and return the new path. Memory is flat."""
    size = path.stat().st_size
    header = np.fromfile(path, dtype="<i4", count=256)
    magic = (int(header[0]), int(header[1])) if len(header) == 256 else (0, 0)
    dtype: np.dtype[np.uint16] | np.dtype[np.uint32] | None = _BIN_DTYPES.get(magic)
    if dtype is None:
        raise ShardError(f"{path.name} has no llm.c header (magic 20240520 version 1, or 20240801 version 7)")
    tokens = int(header[2])
    if tokens <= 0 or size != _BIN_HEADER_BYTES + tokens * dtype.itemsize:
        raise ShardError(f"{path.name} has {size:,} bytes, its header says {tokens:,} tokens of {dtype.itemsize} bytes")
    target = path.with_suffix(".npy")
    writer = ShardWriter(target.with_suffix(".tmp"), dtype, tokens)
    stream = np.memmap(path, dtype=dtype, mode="r", offset=_BIN_HEADER_BYTES)
    for start in range(0, tokens, _BLOCK_TOKENS):
        writer.write(stream[start : start + _BLOCK_TOKENS])
    writer.finish(target)
    del stream
    path.unlink()
    return target


def bare_manifest(directory: Path, wanted: Sequence[Wanted], name: str, revision: str) -> Manifest:
    """The manifest of the pulled bare shards: hashes of what arrived, no tokenizer, documents not counted."""
    manifest, targets = Manifest.from_shards(directory), {item.target for item in wanted}
    shards = tuple(
        dataclasses.replace(shard, sha256=sha256_file(directory / shard.file), edges="")
        for shard in manifest.shards
        if shard.file in targets
    )
    source = SourceInfo(
        id=name, revision=revision or None, options={"bare": {item.file: [item.size, item.sha256] for item in wanted}}
    )
    return dataclasses.replace(manifest, shards=shards, source=source)
