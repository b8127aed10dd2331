"""A dataset's folder: the names of what lies in it beside the shards, and shards without a manifest."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import SHARD_NAME, read_header
from shardkit.errors import ManifestError, ShardError

MANIFEST_NAME = "manifest.json"
WORK_DIR = ".shardkit"  # working files; scripts in the wild that look for shards do not look there
PLAN_FOLDER = "plans"  # in WORK_DIR: what was worked out about finished shards
INCOMING_FOLDER = f"{WORK_DIR}/incoming"  # files that are not downloaded to their end
_EDGE_BYTES = 4096


def read_bare_shards(directory: Path) -> tuple[list[ShardInfo], str]:
    """The shards in a folder without a manifest, in stream order, and their dtype: from names, headers and edges.

    Raises `ManifestError` if there are none, or those of several datasets, and `ShardError` for a damaged one.
    """
    named = sorted(
        ((int(m["index"]), m, path) for path in directory.glob("*.npy") if (m := SHARD_NAME.match(path.name))),
        key=lambda item: (item[0], item[2].name),
    )
    if not named:
        raise ManifestError(
            f"{directory} holds no {MANIFEST_NAME} and no shards named PREFIX_SPLIT_000000.npy: point at a folder "
            "that `shardkit tokenize` or `fineweb.py` made"
        )
    if len({match["prefix"] for _, match, _ in named}) > 1:
        names = ", ".join(sorted({match["prefix"] for _, match, _ in named}))
        raise ManifestError(f"{directory} holds shards of several datasets ({names}): give each its own folder")
    shards, dtypes = zip(*(_read_bare_shard(path, match) for _, match, path in named), strict=True)
    if len(set(dtypes)) > 1:
        raise ManifestError(f"{directory} mixes {' and '.join(sorted(set(dtypes)))} shards: give each its own folder")
    return list(shards), dtypes[0]


def hash_edges(file: BinaryIO, size: int) -> str:
    """A hash of the first and last 4096 bytes of a file of `size` bytes: it stands in for one that nobody has made."""
    file.seek(0)
    head = file.read(_EDGE_BYTES)
    file.seek(max(0, size - _EDGE_BYTES))
    return hashlib.sha256(head + file.read(_EDGE_BYTES)).hexdigest()


def _read_bare_shard(path: Path, match: re.Match[str]) -> tuple[ShardInfo, str]:
    """The shard and its dtype; its edges stand in for the hash that nobody has made."""
    try:
        with open(path, "rb") as file:
            header, size = read_header(file, path), os.fstat(file.fileno()).st_size
            edges = hash_edges(file, size)
    except OSError as error:
        raise ShardError(f"cannot open shard {path}: {error.strerror or error}") from error
    shard = ShardInfo(
        file=path.name,
        split=match["split"],
        index=int(match["index"]),
        tokens=header.tokens,
        documents=0,
        first_document=0,
        sha256="",
        bytes=size,
        edges=edges,
    )
    return shard, header.dtype.name
