"""What makes a tokenizing run resumable after `kill -9`: `.shardkit/journal.jsonl`, one fsynced line a shard.

Its first line is the run's identity: a folder whose identity differs holds another run. Each further line is a finished
shard and where the stream goes on after it. A torn last line (the machine died while writing it) is cut off.

At a remote, where a file can only be replaced as a whole, the same lines lie in segments of at most `SEGMENT_LINES`
lines and 64 kB: `journal.jsonl` holds the first ones, `journal-000128.jsonl` those from line 128 on, and so on. Only
the last segment changes when a shard is added, so the bytes sent grow with the shards, not with their square.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardkit.dataset.folder import WORK_DIR
from shardkit.dataset.records import ShardInfo, SourceFile, source_file
from shardkit.errors import OutputError
from shardkit.files import atomic_write, write_error

JOURNAL_FILE = f"{WORK_DIR}/journal.jsonl"
SEGMENT_LINES = 128  # most lines of a segment: about 60 kB where a shard is made of few source files
SEGMENT_BYTES = 1 << 16  # most bytes of one with more than one line
_SEGMENT_NAME = re.compile(rf"{re.escape(WORK_DIR)}/journal-(\d{{6,}})\.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """Where the stream goes on: at the chunk (`file`, `start`, `part`), `skip_tokens` of whose tokens are already in
    shards. `files` holds what each source file gave before that chunk; `documents` counts EOTs in finished shards."""

    file: int = 0
    start: int = 0
    part: int = 0
    skip_tokens: int = 0
    documents: int = 0
    files: Mapping[int, SourceFile] = field(default_factory=dict)


class Journal:
    """The ledger of one output folder: `lines` as they are in the file (line `i + 1` is of shard `i`), the finished
    `shards`, and where the stream went on when it was opened. `open` reads it, or starts it with `identity`."""

    def __init__(self, path: Path, lines: list[bytes], shards: list[ShardInfo], resume: Resume) -> None:
        self.path = path
        self.lines = lines
        self.shards = shards
        self.resume = resume

    @classmethod
    def open(cls, directory: Path, identity: Mapping[str, Any]) -> Journal:
        """The journal of `directory` for the run that `identity` describes, new or gone on with.

        Raises `OutputError` if the folder holds another run (naming the options that differ) or a damaged journal.
        """
        path = directory / JOURNAL_FILE
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            head = (json.dumps({"identity": identity}) + "\n").encode()
            atomic_write(path, head)
            return cls(path, [head], [], Resume())
        data = path.read_bytes()
        lines = whole_lines(data)
        if not data.endswith(b"\n"):
            atomic_write(path, b"".join(lines))
        try:
            stated, records, shards = _parse(lines)
            resume = _resume(records)
        except _DAMAGE as error:
            raise OutputError(f"{path} is damaged ({error}): start again with --overwrite") from error
        if differ := _differences(stated, json.loads(json.dumps(identity))):
            raise OutputError(
                f"{directory} holds another run ({'; '.join(differ)}): choose another --out, or start again with "
                "--overwrite"
            )
        return cls(path, lines, shards, resume)

    def append(self, shard: ShardInfo, resume: Resume) -> None:
        """Record a finished shard, durably. `resume.files` need hold only what changed since the last call."""
        record = {"shard": dataclasses.asdict(shard), "next": dataclasses.asdict(resume)}
        line = (json.dumps(record) + "\n").encode()
        try:
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.path, len(line)) from error
        self.lines.append(line)
        self.shards.append(shard)


def whole_lines(journal: bytes) -> list[bytes]:
    """The lines of a journal with their ends; a torn last one is left out."""
    return journal[: journal.rfind(b"\n") + 1].splitlines(keepends=True)


def changed_segments(lines: Sequence[bytes], since: int, starts: list[int] | None = None) -> dict[str, bytes]:
    """The segments that hold a line from number `since` on, by file name, in order: what must be written to a remote
    that has the `lines` before `since`.

    `starts`, the first lines of the segments as an earlier call for fewer of these lines left them, saves time.
    """
    starts = [] if starts is None else starts
    _extend_starts(starts, lines)
    first = max(0, bisect_right(starts, since) - 1)
    return {
        f"{WORK_DIR}/journal-{start:06d}.jsonl" if start else JOURNAL_FILE: b"".join(lines[start:end])
        for start, end in pairwise([*starts[first:], len(lines)])
        if end > since
    }


def _extend_starts(starts: list[int], lines: Sequence[bytes]) -> None:
    """Add to `starts` where further segments begin. That of a line depends on the lines before it alone."""
    at = starts[-1] if starts else 0
    size = 0
    for number in range(at, len(lines)):
        size += len(lines[number])
        if not starts or (number > at and (size > SEGMENT_BYTES or number - at == SEGMENT_LINES)):
            starts.append(number)
            at, size = number, len(lines[number])


def segment_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that are segments of a journal, in the order of their lines."""
    return sorted((name for name in names if _first_line(name) is not None), key=lambda name: _first_line(name) or 0)


def joined_segments(segments: Mapping[str, bytes]) -> bytes:
    """The journal whose segments are given by file name, up to the first line that none of them holds.

    A `journal.jsonl` of more than `SEGMENT_LINES` lines, as earlier versions wrote it, may be followed by segments too.
    """
    lines: list[bytes] = []
    for name in segment_files(segments):
        start, more = _first_line(name) or 0, segments[name].splitlines(keepends=True)
        if start > len(lines) or (start == len(lines) and lines and not lines[-1].endswith(b"\n")):
            break
        if start + len(more) > len(lines):
            lines[start:] = more
    return b"".join(lines)


def _first_line(name: str) -> int | None:
    """The number of the first line of the segment that is called `name`; None for another file."""
    if name == JOURNAL_FILE:
        return 0
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def acknowledged(journal: bytes, *, where: str) -> tuple[dict[str, Any], list[ShardInfo]]:
    """The identity and the finished shards that another machine's journal names; `where` names it in errors.

    Raises `OutputError` for a damaged one. A torn last line is not counted.
    """
    try:
        identity, _, shards = _parse(whole_lines(journal))
    except _DAMAGE as error:
        raise OutputError(f"{where} is damaged ({error}): its owner must start again with --overwrite") from error
    return identity, shards


_DAMAGE = (ValueError, KeyError, TypeError, IndexError, RecursionError)  # what `_parse` and `_resume` raise for it


def _parse(lines: list[bytes]) -> tuple[dict[str, Any], list[dict[str, Any]], list[ShardInfo]]:
    """Identity, records, and the shards in them. Raises one of `_DAMAGE`."""
    identity = json.loads(lines[0].decode())["identity"]
    records = [json.loads(line.decode()) for line in lines[1:]]
    shards = [ShardInfo(**record["shard"]) for record in records]
    if [shard.index for shard in shards] != list(range(len(shards))):
        raise ValueError("its shards are not 0, 1, 2 and so on")
    return identity, records, shards


def _resume(records: list[dict[str, Any]]) -> Resume:
    if not records:
        return Resume()
    files: dict[int, SourceFile] = {}
    for record in records:
        for number, stats in record["next"]["files"].items():
            files[int(number)] = source_file(stats)
    return Resume(**{**records[-1]["next"], "files": files})


def _differences(stated: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Each option that differs, as `name: theirs there, ours now`."""
    return [
        f"{name}: {_brief(stated.get(name))} there, {_brief(wanted.get(name))} now"
        for name in sorted({*stated, *wanted})
        if stated.get(name) != wanted.get(name)
    ]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
