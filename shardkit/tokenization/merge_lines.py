"""Which shards the jobs of a merge have finished: `.shardkit/merge/3-of-16.jsonl`, a checked line a shard, after a line
that names the parts. A job that pushes has them at the remote too, as `.shardkit/merge-3-of-16.jsonl`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.journal import whole_lines
from shardkit.dataset.manifest import ShardInfo
from shardkit.dataset.typed_json import read_record
from shardkit.errors import OutputError
from shardkit.files import atomic_write, read_small_file, write_error


class MergeLines:
    """The lines of one job, in the file at `path`: the merge's `identity`, then the shards that are finished. Where the
    remote has more of them, these are `there`.

    Raises `OutputError` if they are of other parts.
    """

    def __init__(self, path: Path, identity: dict[str, Any], there: bytes = b"") -> None:
        self.path = path
        content = _read(path)
        self._check, self.lines = CheckedLines(), _held(content, path, identity)
        if len(further := _held(there, path, identity)) > len(self.lines):
            self.lines = further
        self._check.unseal(self.lines)
        self.lines = self.lines or [self._check.seal(identity)]
        if content != b"".join(self.lines):
            atomic_write(path, b"".join(self.lines))

    def append(self, shard: ShardInfo) -> None:
        """Note a shard, durably. Raises `OutputError`."""
        line = self._check.seal(dataclasses.asdict(shard))
        try:
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.path, len(line)) from None
        self.lines.append(line)


def named_shards(folder: Path, identity: Mapping[str, Any]) -> dict[int, ShardInfo]:
    """The shards that a line of any job in `folder` names, by number. Raises `OutputError`."""
    return shards_in(((path, _read(path)) for path in sorted(folder.glob("*.jsonl"))), identity)


def shards_in(jobs: Iterable[tuple[Path | str, bytes]], identity: Mapping[str, Any]) -> dict[int, ShardInfo]:
    """The shards that the lines of those jobs name, by number: of each where its lines are, and what they are. Raises
    `OutputError`."""
    found: dict[int, ShardInfo] = {}
    for where, content in jobs:
        for record in CheckedLines().unseal(_held(content, where, identity))[1:]:
            shard = read_record(ShardInfo, record)
            found[shard.index] = shard
    return found


def _read(path: Path) -> bytes:
    try:
        return read_small_file(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from None


def _held(content: bytes, where: Path | str, identity: Mapping[str, Any]) -> list[bytes]:
    """The lines that hold. Raises `OutputError` if they are of other parts."""
    lines = whole_lines(content)
    records = CheckedLines().unseal(lines)
    if records and records[0] != identity:
        raise OutputError(
            f"{where} names shards that were merged from other parts than there are now: remove {Path(where).parent} "
            "and the shards in the dataset's folder, and merge again"
        )
    return lines[: len(records)]
