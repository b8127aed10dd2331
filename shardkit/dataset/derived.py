"""Arrays that were computed from a split once, cached beside the dataset: `.npy` files in a folder for each key.

A cached folder is used only where its key and the hash of every file are right, and computed again otherwise. Where it
cannot be written (a read-only dataset, a full disk) the arrays stay in memory. Of several
processes that want the same arrays, the first computes them and the others wait. Knows nothing of documents or rows.
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
    home = folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if (arrays := _load(home, key, dtypes)) is not None:
        return arrays
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(folder / f"{home.name}.lock", busy=None))
        except OutputError:  # no permission
            return _compute(dtypes, compute)
        if (arrays := _load(home, key, dtypes)) is not None:  # another process saved it while this one waited
            return arrays
        arrays = _compute(dtypes, compute)
        _save(home, key, arrays)
    return _load(home, key, dtypes) or arrays


def _compute(dtypes: Mapping[str, str], compute: Callable[[], Parts]) -> Arrays:
    columns: dict[str, list[NDArray[np.integer]]] = {name: [np.empty(0, dtype)] for name, dtype in dtypes.items()}
    for part in compute():
        for (name, dtype), array in zip(dtypes.items(), part, strict=True):
            columns[name].append(array.astype(dtype))
    return {name: np.concatenate(columns.pop(name)) for name in dtypes}


def _load(home: Path, key: str, dtypes: Mapping[str, str]) -> Arrays | None:
    """The arrays in `home`; None where it is missing, of another key, or damaged."""
    try:
        saved = read_record(_Saved, parse_json(read_small_file(home / _KEY_FILE)))
        if saved.key != key or list(saved.files) != [f"{name}.npy" for name in dtypes]:
            return None
        if any(sha256_file(home / file) != sha256 for file, sha256 in saved.files.items()):
            return None
        # plain arrays: indexing a memmap takes microseconds
        arrays = {name: open_memmap(home / f"{name}.npy", mode="r").view(np.ndarray) for name in dtypes}
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    as_wanted = all(array.ndim == 1 and array.dtype == dtypes[name] for name, array in arrays.items())
    return arrays if as_wanted else None


def _save(home: Path, key: str, arrays: Arrays) -> None:
    """Save the arrays as `home`, if they can be: whole or not at all. The caller holds the lock."""
    temp = home.with_name(f".{home.name}.tmp")
    shutil.rmtree(temp, ignore_errors=True)  # of a process that was killed
    try:
        temp.mkdir()
        for name, array in arrays.items():
            np.save(temp / f"{name}.npy", array)
        hashes = {f"{name}.npy": sha256_file(temp / f"{name}.npy") for name in arrays}
        (temp / _KEY_FILE).write_text(json.dumps({"key": key, "files": hashes}, indent=1), encoding="utf-8")
        shutil.rmtree(home, ignore_errors=True)  # damaged, else it would have been loaded
        os.replace(temp, home)
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)
