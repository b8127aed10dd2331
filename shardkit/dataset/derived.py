"""Arrays that were computed from a split once, kept beside the dataset: `.npy` files in a folder of their own.

A kept folder is a cache and no more: it is taken as it is only where its key and the hash of every file are right, and
made again otherwise; where it cannot be written (a read-only dataset, a full disk) the arrays stay in memory. Of
several processes that want the same one, the first makes it and the others wait. Knows nothing of documents or rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.shards import shard_header
from shardkit.dataset.token_stream import TokenStream
from shardkit.errors import ShardError
from shardkit.files import sha256_file

_KEY_FILE = "kept.json"
Arrays = dict[str, NDArray[np.integer]]
Parts = Iterable[tuple[NDArray[np.integer], ...]]  # one array of each name, to be laid end to end


def content_key(stream: TokenStream) -> str:
    """What decides a stream's tokens, as text: its dtype, and each shard's length and hash.

    A bare shard has a hash of its edges alone, so when it was last written stands in for the rest.
    """
    shards = [
        [s.tokens, s.sha256] if s.sha256 else [s.tokens, s.edges, _written_ns(stream.directory / s.file)]
        for s in stream.shards
    ]
    return json.dumps([stream.dtype.str, shards])


def derived_arrays(
    folder: Path | None, kind: str, key: str, dtypes: Mapping[str, str], make: Callable[[], Parts]
) -> Arrays:
    """The arrays of `dtypes`, by name, one-dimensional: as `folder` keeps them for `key`, else from `make`, and kept.

    What is kept comes back memory-mapped, read-only. `key` says everything that decides the arrays; `kind` is a word
    for the folder's name. None for `folder` keeps nothing.
    """
    if folder is None:
        return _in_memory(dtypes, make())
    home = folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    found = _load(home, key, dtypes)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(folder / f"{home.name}.lock"))
        except (OSError, NotImplementedError):  # the latter where the file system has no locks
            return _in_memory(dtypes, make())
        found = _load(home, key, dtypes)  # another process made it while this one waited
        if found is not None:
            return found
        return _keep(home, key, dtypes, make) or _in_memory(dtypes, make())


def _in_memory(dtypes: Mapping[str, str], parts: Parts) -> Arrays:
    columns: dict[str, list[NDArray[np.integer]]] = {name: [] for name in dtypes}
    for part in parts:
        for name, array in zip(dtypes, part, strict=True):
            columns[name].append(array.astype(dtypes[name]))
    return {name: np.concatenate([np.empty(0, dtypes[name]), *arrays]) for name, arrays in columns.items()}


def _load(home: Path, key: str, dtypes: Mapping[str, str]) -> Arrays | None:
    """The arrays in `home`; None where it is not there, of another key, or damaged."""
    try:
        kept = json.loads((home / _KEY_FILE).read_text(encoding="utf-8"))
        if kept["key"] != key or list(kept["files"]) != [f"{name}.npy" for name in dtypes]:
            return None
        if any(sha256_file(home / file) != digest for file, digest in kept["files"].items()):
            return None
        return {name: _map(home / f"{name}.npy") for name in dtypes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _map(path: Path) -> NDArray[np.integer]:
    array: NDArray[np.integer] = np.load(path, mmap_mode="r").view(np.ndarray)  # indexing a memmap takes microseconds
    return array


def _keep(home: Path, key: str, dtypes: Mapping[str, str], make: Callable[[], Parts]) -> Arrays | None:
    """Make the arrays, part by part into files; None where they cannot be written. The caller holds the lock."""
    temp = home.with_name(f".{home.name}.tmp")
    try:
        shutil.rmtree(temp, ignore_errors=True)  # of a process that was killed
        temp.mkdir()
        files = {name: _Column(temp / f"{name}.npy", dtype) for name, dtype in dtypes.items()}
    except OSError:
        return None
    try:
        for part in make():
            for name, array in zip(dtypes, part, strict=True):
                files[name].append(array)
        hashes = {column.path.name: column.finish() for column in files.values()}
        (temp / _KEY_FILE).write_text(json.dumps({"key": key, "files": hashes}, indent=1), encoding="utf-8")
        shutil.rmtree(home, ignore_errors=True)  # damaged, else it would have been loaded
        os.replace(temp, home)
    except OSError:
        return None
    finally:
        for column in files.values():
            column.close()
        shutil.rmtree(temp, ignore_errors=True)
    return _load(home, key, dtypes)


class _Column:
    """One `.npy` file that grows by parts; its header is written again when its length is known."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed by finish or close)
        self._file.write(shard_header(0, self._dtype))

    def append(self, array: NDArray[np.integer]) -> None:
        self._file.write(np.ascontiguousarray(array, dtype=self._dtype).data)
        self._length += len(array)

    def finish(self) -> str:
        """Close the file, whole; returns its SHA-256."""
        self._file.seek(0)
        self._file.write(shard_header(self._length, self._dtype))
        self.close()
        return sha256_file(self.path)

    def close(self) -> None:
        self._file.close()


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise ShardError(f"cannot open shard {path}: {error.strerror or error}") from error
