"""The resume ledger of a running tokenization: `.shardkit/journal.jsonl`, append-only, one fsynced line a shard.

Its first line is the run's identity: a folder whose identity differs holds another run. Each further line is a finished
shard and where the stream goes on after it. A torn last line (the machine died while writing it) is cut off.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardkit.dataset.folder import WORK_DIR
from shardkit.dataset.records import ShardInfo, SourceFile
from shardkit.errors import OutputError
from shardkit.files import atomic_write, write_error

JOURNAL_FILE = f"{WORK_DIR}/journal.jsonl"


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
    """The ledger of one output folder. `open` reads it, or starts it with `identity`."""

    def __init__(self, path: Path, shards: list[ShardInfo], resume: Resume) -> None:
        self.path = path
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
            atomic_write(path, json.dumps({"identity": identity}) + "\n")
            return cls(path, [], Resume())
        lines = _whole_lines(path)
        try:
            found, records, shards = _parse(lines)
            resume = _resume(records)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise OutputError(f"{path} is damaged ({error}): start again with --overwrite") from error
        if differ := _differences(found, json.loads(json.dumps(identity))):
            raise OutputError(
                f"{directory} holds another run ({'; '.join(differ)}): choose another --out, or start again with "
                "--overwrite"
            )
        return cls(path, shards, resume)

    def append(self, shard: ShardInfo, resume: Resume) -> None:
        """Record a finished shard, durably. `resume.files` need hold only what changed since the last call."""
        record = {"shard": dataclasses.asdict(shard), "next": dataclasses.asdict(resume)}
        line = json.dumps(record) + "\n"
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.path, len(line)) from error
        self.shards.append(shard)


def acknowledged(journal: bytes, *, where: str) -> tuple[dict[str, Any], list[ShardInfo]]:
    """The identity and the finished shards that another machine's journal names; `where` names it in errors.

    Raises `OutputError` for a damaged one. A torn last line is not counted.
    """
    try:
        identity, _, shards = _parse(journal[: journal.rfind(b"\n") + 1].decode().splitlines())
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise OutputError(f"{where} is damaged ({error}): its owner must start again with --overwrite") from error
    return identity, shards


def _parse(lines: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]], list[ShardInfo]]:
    """Identity, records, and the shards in them. Raises `ValueError` and its like."""
    identity = json.loads(lines[0])["identity"]
    records = [json.loads(line) for line in lines[1:]]
    shards = [ShardInfo(**record["shard"]) for record in records]
    if [shard.index for shard in shards] != list(range(len(shards))):
        raise ValueError("its shards are not 0, 1, 2 and so on")
    return identity, records, shards


def _whole_lines(path: Path) -> list[str]:
    """The journal's lines; a torn last one is removed from the file as well."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        atomic_write(path, whole)
    try:
        return whole.decode().splitlines()
    except UnicodeDecodeError as error:
        raise OutputError(f"{path} is damaged ({error}): start again with --overwrite") from error


def _resume(records: list[dict[str, Any]]) -> Resume:
    if not records:
        return Resume()
    files: dict[int, SourceFile] = {}
    for record in records:
        for number, stats in record["next"]["files"].items():
            files[int(number)] = SourceFile(**{**stats, "skipped_rows": tuple(stats["skipped_rows"])})
    return Resume(**{**records[-1]["next"], "files": files})


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Each option that differs, as `name: theirs there, ours now`."""
    return [
        f"{name}: {_brief(found.get(name))} there, {_brief(wanted.get(name))} now"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
