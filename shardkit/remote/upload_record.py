"""What has arrived whole at a place that keeps no hashes itself, written down there: a line of JSON a shard.

The lines lie in segments, `.shardkit/uploaded-000001.jsonl` and on: a segment is written again with each line, as
object stores cannot append, and closed at `SEGMENT_BYTES`, so that the bytes written grow with the shards and not with
their square. Earlier versions wrote one `uploaded.json`; it is still read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from shardkit.dataset.manifest import WORK_DIR, Manifest
from shardkit.dataset.typed_json import parse_json
from shardkit.errors import ManifestError

SEGMENT_BYTES = 64_000
OLD_RECORD_FILE = f"{WORK_DIR}/uploaded.json"
_SEGMENT_FILE = re.compile(rf"{re.escape(WORK_DIR)}/uploaded-(\d{{6,}})\.jsonl")


def is_record(file: str) -> bool:
    """Whether a file of that name is a part of the record."""
    return file == OLD_RECORD_FILE or _SEGMENT_FILE.fullmatch(file) is not None


class UploadRecord:
    """The record as it was read: `entries` are `(bytes, sha256)` of each shard, by its name.

    `versions` are the hashes that the place itself has for their content, where it has any (a bucket's Xet hashes).
    What cannot be read is not known, and sent again.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.entries: dict[str, tuple[int, str]] = {}
        self.versions: dict[str, str] = {}
        self._files = set(files)
        self._number, self._segment = 0, b""
        self._read_old(files.get(OLD_RECORD_FILE, b"{}"))
        numbers = {int(match[1]): file for file in files if (match := _SEGMENT_FILE.fullmatch(file))}
        for number, file in sorted(numbers.items()):
            self._number, self._segment = number, files[file]
            for line in self._segment.splitlines():
                self._read_line(line)

    @property
    def files(self) -> list[str]:
        """The names of the files that hold it."""
        return sorted(self._files)

    def add(
        self, entries: Mapping[str, tuple[int, str]], versions: Mapping[str, str] | None = None
    ) -> dict[str, bytes]:
        """Note that these shards have arrived, as `versions` where given; returns the files to write, in order."""
        known = versions or {}
        return self._append(
            {file: (*entry, *([known[file]] if file in known else [])) for file, entry in entries.items()}
        )

    def remove(self, files: Iterable[str]) -> dict[str, bytes]:
        """Note that these files are no more; returns the files to write."""
        return self._append({file: None for file in files if file in self.entries})

    def _append(self, lines: Mapping[str, tuple[int | str, ...] | None]) -> dict[str, bytes]:
        changed = {}
        for file, entry in lines.items():
            if not self._number or len(self._segment) >= SEGMENT_BYTES or not self._segment.endswith(b"\n"):
                self._number, self._segment = self._number + 1, b""
            line = json.dumps([file, entry]).encode() + b"\n"
            self._read_line(line)
            self._segment += line
            changed[f"{WORK_DIR}/uploaded-{self._number:06d}.jsonl"] = self._segment
        self._files |= set(changed)
        return changed

    def _read_line(self, line: bytes) -> None:
        try:
            file, entry = parse_json(line)
            self.versions.pop(file, None)
            if entry is None:
                self.entries.pop(file, None)
                return
            self.entries[file] = _entry(entry[:2])
            if entry[2:]:
                self.versions[file] = str(entry[2])
        except (ValueError, TypeError):
            return

    def _read_old(self, text: bytes) -> None:
        try:
            self.entries |= {file: _entry(entry) for file, entry in parse_json(text).items()}
        except (ValueError, TypeError, AttributeError):
            return


def _entry(value: Any) -> tuple[int, str]:
    """What the record says of a shard. Raises `ValueError` or `TypeError` for what it cannot say."""
    size, sha256 = value
    if type(size) is not int or type(sha256) is not str:
        raise TypeError(f"{type(size).__name__}, {type(sha256).__name__}")
    return size, sha256


def stated_shards(manifest: bytes) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of the shards in a manifest, by name; nothing if it cannot be read."""
    try:
        return {shard.file: (shard.bytes, shard.sha256) for shard in Manifest.from_json(manifest).shards}
    except ManifestError:
        return {}  # whoever needs the manifest says what is wrong with it
