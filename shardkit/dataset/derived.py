"""Arrays that were computed from a split once, cached beside the dataset: `.npy` files in a folder for each key.

A cached folder is used only where its key and the hash of every file are right, and computed again otherwise; of large
files one process of a machine checks the hashes for all that come within minutes (`checked_once.py`). Where it
cannot be written (a read-only dataset, a full disk) the arrays stay in memory. Of several
processes that want the same arrays, the first computes them and the others wait, or compute other parts of them
(`derived_parts.py`). Knows nothing of documents or rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from shardkit.dataset.checked_once import are_right, note_right
from shardkit.dataset.growing_array import GrowingArray
from shardkit.dataset.token_stream import TokenStream
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import OutputError
from shardkit.files import read_small_file, sha256_file
from shardkit.locks import hold_lock

_KEY_FILE = "kept.json"
Arrays = dict[str, NDArray[np.integer]]
Parts = Iterable[tuple[NDArray[np.integer], ...]]  # one array of each name, to be laid end to end


@dataclass(frozen=True, kw_only=True, slots=True)
class _Saved:
    """What is in `kept.json`: what the arrays were computed for, and the SHA-256 of each file."""

    key: str
    files: Mapping[str, str]


def content_key(stream: TokenStream) -> str:
    """What decides a stream's tokens, as text: its dtype, and each shard's length, hash and when it was last written.

    A shard that was read may have been damaged, and one that was mended since is another one; a bare shard has a hash
    of its edges alone.
    """
    shards = [[s.tokens, s.sha256 or s.edges, stream.known.written_ns(s)] for s in stream.shards]
    return json.dumps([stream.dtype.str, shards])


def derived_arrays(
    folder: Path | None, kind: str, key: str, dtypes: Mapping[str, str], compute: Callable[[], Parts]
) -> Arrays:
    """The arrays of `dtypes`, by name, one-dimensional: as `folder` has them for `key`, else from `compute`.

    Computed arrays are saved in `folder`; a saved array is memory-mapped, read-only. `key` says everything that decides
    the arrays; `kind` is a word for the name of their own folder. With None for `folder` nothing is saved.
    """
    if folder is None:
        return _compute(dtypes, compute)
    home = home_of(folder, kind, key)
    if (arrays := load_arrays(home, key, dtypes)) is not None:
        return arrays
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder / f"{home.name}.lock", busy=None))
        except OutputError:  # no permission
            return _compute(dtypes, compute)
        if (arrays := load_arrays(home, key, dtypes)) is not None:  # another process saved it while this one waited
            return arrays
        return save_arrays(home, key, dtypes, compute)


def home_of(folder: Path, kind: str, key: str) -> Path:
    """The folder in `folder` that keeps the arrays of `key`."""
    return folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _compute(dtypes: Mapping[str, str], compute: Callable[[], Parts]) -> Arrays:
    columns = [GrowingArray(None, dtype) for dtype in dtypes.values()]
    _fill(columns, compute)
    return {name: column.in_memory() for name, column in zip(dtypes, columns, strict=True)}


def _fill(columns: list[GrowingArray], compute: Callable[[], Parts]) -> None:
    for part in compute():
        for column, array in zip(columns, part, strict=True):
            column.append(array)


def load_arrays(home: Path, key: str, dtypes: Mapping[str, str]) -> Arrays | None:
    """The arrays in `home`; None where it is missing, of another key, or damaged."""
    try:
        saved = read_record(_Saved, parse_json(read_small_file(home / _KEY_FILE)))
        if saved.key != key or list(saved.files) != [f"{name}.npy" for name in dtypes]:
            return None
        if not are_right(home, saved.files):
            return None
        # plain arrays: indexing a memmap takes microseconds
        arrays = {name: open_memmap(home / f"{name}.npy", mode="r").view(np.ndarray) for name in dtypes}
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    as_wanted = all(array.ndim == 1 and array.dtype == dtypes[name] for name, array in arrays.items())
    return arrays if as_wanted else None


def save_arrays(home: Path, key: str, dtypes: Mapping[str, str], compute: Callable[[], Parts]) -> Arrays:
    """Compute the arrays and save them as `home`: whole or not at all, and then they are in memory. The caller holds
    the lock. What is saved is never in memory whole."""
    temp = home.with_name(f".{home.name}.tmp")
    shutil.rmtree(temp, ignore_errors=True)  # of a process that was killed
    with contextlib.suppress(OSError):
        temp.mkdir()
    columns = [GrowingArray(temp / f"{name}.npy", dtype) for name, dtype in dtypes.items()]
    try:
        _fill(columns, compute)
        try:
            if not all(column.close() for column in columns):
                return {name: column.in_memory() for name, column in zip(dtypes, columns, strict=True)}
            hashes = {f"{name}.npy": sha256_file(temp / f"{name}.npy") for name in dtypes}
            (temp / _KEY_FILE).write_text(json.dumps({"key": key, "files": hashes}, indent=1), encoding="utf-8")
            shutil.rmtree(home, ignore_errors=True)  # damaged, else it would have been loaded
            os.replace(temp, home)
        except OSError:
            return {name: column.in_memory() for name, column in zip(dtypes, columns, strict=True)}
        note_right(home, hashes)
    finally:
        for column in columns:
            column.abandon()
        shutil.rmtree(temp, ignore_errors=True)
    return load_arrays(home, key, dtypes) or _compute(dtypes, compute)
