"""A dataset's folder: the names of what lies in it beside the shards, and shards without a manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path

from shardkit.dataset.patience import unreadable
from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import SHARD_NAME, edges_sha256, read_header
from shardkit.errors import ManifestError
from shardkit.files import open_file

MANIFEST_NAME = "manifest.json"
WORK_DIR = ".shardkit"  # working files; scripts in the wild that look for shards do not look there
PLAN_FOLDER = "plans"  # in WORK_DIR: what was worked out about finished shards
INCOMING_FOLDER = f"{WORK_DIR}/incoming"  # files that are not downloaded to their end
MERGE_FOLDER = f"{WORK_DIR}/merge"  # of parts that are being merged into this folder
PUSHED_TO_FILE = f"{WORK_DIR}/pushed-to"  # where the whole dataset lies, of a run that kept no shard here


def shard_files(directory: Path) -> list[Path]:
    """The files in a folder that have the name of a shard, in no order."""
    return [path for path in directory.glob("*.npy") if SHARD_NAME.match(path.name)]


def check_gapless(numbers: Iterable[int], where: str, way_out: str) -> None:
    """Refuse bare shards with one missing between them: without a manifest nothing else tells a broken download.

    Raises `ManifestError`, which says what `where` lacks, and the `way_out`.
    """
    present = sorted(set(numbers))
    missing = list(islice((lost for low, high in pairwise(present) for lost in range(low + 1, high)), 6))
    if missing:
        more = " and more" if len(missing) > 5 else ""
        raise ManifestError(
            f"{where} has shards {present[0]} to {present[-1]}, but lacks {', '.join(map(str, missing[:5]))}{more}: "
            f"{way_out}"
        )


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


def _read_bare_shard(path: Path, match: re.Match[str]) -> tuple[ShardInfo, str]:
    """The shard and its dtype; its edges stand in for the hash that nobody has made."""
    try:
        with open_file(path) as file:
            header, size = read_header(file, path), os.fstat(file.fileno()).st_size
            edges = edges_sha256(file)
    except OSError as error:
        raise unreadable(path, error) from None
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
