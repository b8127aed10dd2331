"""Whether files still have the hashes that were noted of them: of large ones, one process of a machine finds out.

The ranks of a training run start together, and each would read gigabytes to hash them. Whoever is first leaves a mark
beside the folder, of the machine, the files that it hashed and when; who comes within minutes, and finds the same files
(inode, size, time of change), takes its word. Later the hashes are checked again.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardkit.dataset.known_files import FileIdentity
from shardkit.dataset.typed_json import parse_json
from shardkit.errors import OutputError
from shardkit.files import atomic_write, read_small_file, sha256_file
from shardkit.locks import hold_lock

_LARGE_BYTES = 64 << 20  # of all files together: less is hashed in a moment
_SECONDS = 600.0


def are_right(home: Path, hashes: Mapping[str, str]) -> bool:
    """Whether each file in `home` has its SHA-256 of `hashes`. Raises `OSError`."""
    found = _identities(home, hashes)
    if sum(size for _, _, size, _ in found) < _LARGE_BYTES:
        return _hash_all(home, hashes)
    if _is_marked(home, found):
        return True
    with _one_at_a_time(home):
        if _is_marked(home, found):
            return True
        if right := _hash_all(home, hashes):
            note_right(home, hashes)
        return right


def note_right(home: Path, hashes: Mapping[str, str]) -> None:
    """The files in `home` were hashed just now, or read back as they were written: say so to others of this machine."""
    with contextlib.suppress(OSError, OutputError):
        found = _identities(home, hashes)
        if sum(size for _, _, size, _ in found) < _LARGE_BYTES:
            return
        for mark in home.parent.glob(f"{home.name}.*.checked"):
            if time.time() - mark.stat().st_mtime > _SECONDS:  # of machines that are gone, most of them
                mark.unlink()
        atomic_write(_mark(home), json.dumps({"at": time.time(), "files": found}))


def _hash_all(home: Path, hashes: Mapping[str, str]) -> bool:
    return all(sha256_file(home / name) == sha256 for name, sha256 in hashes.items())


def _identities(home: Path, hashes: Mapping[str, str]) -> list[list[Any]]:
    return [[name, *FileIdentity.of((home / name).stat())] for name in hashes]


def _is_marked(home: Path, found: list[list[Any]]) -> bool:
    try:
        mark = parse_json(read_small_file(_mark(home)))
        return bool(mark["files"] == found and 0 <= time.time() - mark["at"] <= _SECONDS)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _mark(home: Path) -> Path:
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]
    return home.with_name(f"{home.name}.{host}.checked")


@contextlib.contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """A block that one process of this machine is in; any may be, where there can be no lock."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OutputError):
            stack.enter_context(hold_lock(_mark(home).with_suffix(".lock"), busy=None, remove=True))
        yield
