"""A dataset's folder: the names of what lies in it beside the shards, and shards without a manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path

from shardkit.dataset.bin_files import NamedShard, bin_files
from shardkit.dataset.patience import unreadable
from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import HEADERLESS, SHARD_NAME, edges_sha256, read_header
from shardkit.errors import ManifestError
from shardkit.files import open_file, read_small_file

MANIFEST_NAME = "manifest.json"
WORK_DIR = ".shardkit"  # working files; scripts in the wild that look for shards do not look there
PLAN_FOLDER = "plans"  # in WORK_DIR: what was worked out about finished shards
INCOMING_FOLDER = f"{WORK_DIR}/incoming"  # files that are not downloaded to their end
MERGE_FOLDER = f"{WORK_DIR}/merge"  # of parts that are being merged into this folder
MERGE_LINES = re.compile(rf"{re.escape(WORK_DIR)}/merge-[0-9]+-of-[0-9]+\.jsonl")  # at a remote: what a job has merged
PARTS_FOLDER = "parts"  # of a dataset whose parts are made one by one, each a folder `3-of-64` in there
PART_NAME = re.compile(r"[0-9]+-of-([1-9][0-9]*)")  # of a part's folder in there
PUSHED_TO_FILE = f"{WORK_DIR}/pushed-to"  # where the whole dataset lies, of a run that kept no shard here
_HALF_WRITTEN = re.compile(r"\.(manifest|tokenizer|tokenizer_config)\.json\.[0-9]+\.tmp")  # as `atomic_write` has it
PUSHING_FILE = f"{WORK_DIR}/push.json"  # in a folder that a push to it has not come to its end in


def shard_files(directory: Path) -> list[Path]:
    """The files in a folder that have the name of a shard, in no order."""
    return [path for path in directory.glob("*.npy") if SHARD_NAME.match(path.name)]


def remove_half_written(directory: Path) -> None:
    """Remove what killed processes left of small files that they wrote beside the shards. For whoever has the folder's
    lock alone: others may be writing. Raises `OSError`."""
    for path in directory.iterdir():
        if _HALF_WRITTEN.fullmatch(path.name):
            path.unlink(missing_ok=True)


def pushed_to(directory: Path) -> str | None:
    """Where the dataset lies that was made in a folder, of a run that kept no shard there; None for any other."""
    try:
        return read_small_file(directory / PUSHED_TO_FILE).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None


def parts_hint(directory: Path) -> str:
    """What makes a dataset of the parts in a folder; empty if there are none."""
    if not any((directory / PARTS_FOLDER).glob("*-of-*")):
        return ""
    return f"`shardkit merge {directory}` makes it of the parts in there, when they are all finished"


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

    Where there are no `.npy` shards, the `.bin` files of llm.c or nanoGPT are the shards.

    Raises `ManifestError` if there are none, or those of several datasets, and `ShardError` for a damaged one.
    """
    matches = [(path, match) for path in directory.glob("*.npy") if (match := SHARD_NAME.match(path.name))]
    named = [NamedShard(int(match["index"]), path, match["prefix"], match["split"]) for path, match in matches]
    if not (named := sorted(named) or bin_files(directory)):
        raise ManifestError(
            f"{directory} holds no {MANIFEST_NAME} and no shards named PREFIX_SPLIT_000000.npy{_what_else(directory)}"
        )
    if len({file.prefix for file in named}) > 1:
        names = ", ".join(sorted({file.prefix for file in named}))
        raise ManifestError(f"{directory} holds shards of several datasets ({names}): give each its own folder")
    shards, dtypes = zip(*map(_read_bare_shard, named), strict=True)
    if len(set(dtypes)) > 1:
        raise ManifestError(f"{directory} mixes {' and '.join(sorted(set(dtypes)))} shards: give each its own folder")
    return list(shards), dtypes[0]


def _what_else(directory: Path) -> str:
    """The end of the error for a folder without shards, by what is in it."""
    if parts := parts_hint(directory):
        return f": the dataset is unfinished, {parts}"
    if other := min(directory.glob("*.npy"), default=None):
        return f", but {other.name}: is it {HEADERLESS}"
    if other := min((*directory.glob("*.idx"), *directory.glob("*.parquet")), default=None):
        return f", but {other.name}: if it is of tokens, `shardkit convert {directory} OUT --to npy` makes shards of it"
    return ": point at a folder that `shardkit tokenize` or `fineweb.py` made"


def _read_bare_shard(named: NamedShard) -> tuple[ShardInfo, str]:
    """The shard and its dtype; its edges stand in for the hash that nobody has made."""
    path = named.path
    try:
        with open_file(path) as file:
            header, size = read_header(file, path), os.fstat(file.fileno()).st_size
            edges = edges_sha256(file)
    except OSError as error:
        raise unreadable(path, error) from None
    shard = ShardInfo(
        file=path.name,
        split=named.split,
        index=named.number,
        tokens=header.tokens,
        documents=0,
        first_document=0,
        sha256="",
        bytes=size,
        edges=edges,
    )
    return shard, header.dtype.name
