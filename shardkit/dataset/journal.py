"""What makes a tokenizing run resumable after `kill -9`: `.shardkit/journal.jsonl`, one fsynced line a shard.

Its first line is the run's identity: a folder whose identity differs holds another run, which is refused once it has a
finished shard, and forgotten before. Each further line is a finished shard and where the stream goes on after it. Each
line's checksum covers the lines before too, and a line that does not hold is where the run goes on from: torn (the
machine died while writing it), or damaged since.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.consistency import check_shards
from shardkit.dataset.folder import MANIFEST_NAME, WORK_DIR, shard_files
from shardkit.dataset.records import MAPS_BYTES, ShardInfo, SourceFile, without_maps
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import OutputError, ShardkitWarning
from shardkit.files import atomic_write, read_small_file, write_error

JOURNAL_FILE = f"{WORK_DIR}/journal.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """Where the stream goes on: at the chunk (`file`, `start`, `part`), `skip_tokens` of whose tokens are already in
    shards. `files` holds what each source file gave before that chunk; `documents` counts EOTs in finished shards.
    `digest` is of the texts of an iterable up to that chunk's end (not in journals of earlier versions)."""

    file: int = 0
    start: int = 0
    part: int = 0
    skip_tokens: int = 0
    documents: int = 0
    digest: str = ""
    files: Mapping[int, SourceFile] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """The first line."""

    identity: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """A further line: a finished shard, and where the stream goes on after it."""

    shard: ShardInfo
    next: Resume


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalContent:
    """What a journal says, as far as it holds: its `lines` (line `i + 1` is of shard `i`), the run's `identity`, the
    finished `shards`, where the stream goes on, and the checksum so far. `damaged`: a line did not hold that is not
    just a torn last one."""

    lines: list[bytes]
    identity: dict[str, Any]
    shards: list[ShardInfo]
    resume: Resume
    check: CheckedLines
    damaged: bool


class Journal:
    """The journal of one output folder: `lines` as they are in the file, the finished `shards`, and where the stream
    went on when it was opened. `open` reads it, or starts it with `identity`."""

    def __init__(self, path: Path, content: JournalContent) -> None:
        self.path = path
        self.lines = content.lines
        self.shards = content.shards
        self.resume = content.resume
        self._check = content.check
        self._bytes = sum(map(len, content.lines))
        self._maps = {number: len(file.skipped_maps) for number, file in content.resume.files.items()}
        self._map_bytes = sum(len(text) for file in content.resume.files.values() for text in file.skipped_maps)

    @classmethod
    def open(cls, directory: Path, identity: Mapping[str, Any]) -> Journal:
        """The journal of `directory` for the run that `identity` describes, new or gone on with.

        Warns (`ShardkitWarning`) if it goes on from before a damaged line. Raises `OutputError` if the folder holds
        shards of another run (naming the options that differ), or shards and a journal of which nothing holds.
        """
        path = directory / JOURNAL_FILE
        content = read_local(directory)
        differ = differences(content.identity, identity) if content is not None else []
        if content is None or (differ and _made_nothing(directory, content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = _begun(identity)
            atomic_write(path, content.lines[0])
            return cls(path, content)
        if differ:
            raise OutputError(
                f"{directory} holds another run with {counted_shards(content.shards)} ({'; '.join(differ)}): call it "
                "as there to go on with it, start again with --overwrite, or choose another --out"
            )
        if content.damaged:
            warnings.warn(
                f"{path} is damaged from line {len(content.lines) + 1} on: the run goes on from shard "
                f"{len(content.shards)}, and makes what comes after it again",
                ShardkitWarning,
                stacklevel=3,
            )
        if path.stat().st_size != sum(map(len, content.lines)):
            atomic_write(path, b"".join(content.lines))
        return cls(path, content)

    def append(self, shard: ShardInfo, resume: Resume) -> None:
        """Record a finished shard, durably. `resume.files` need hold only what changed since the last call.

        Raises `OutputError` if it cannot be written, or is not the file that it was: then the folder is not ours.
        """
        line = self._check.seal({"shard": dataclasses.asdict(shard), "next": self._as_json(resume)})
        try:
            with open(self.path, "r+b") as file:  # which makes none
                if file.seek(0, os.SEEK_END) != self._bytes:
                    raise OutputError(f"{self.path} was written to by somebody else: run the same command again")
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.path, len(line)) from None
        self.lines.append(line)
        self.shards.append(shard)
        self._bytes += len(line)

    def _as_json(self, resume: Resume) -> dict[str, Any]:
        """A place as a line has it: of the maps of a file's skipped rows those that no line before has, while there is
        room for them."""
        files: dict[int, SourceFile] = {}
        for number, file in resume.files.items():
            known = self._maps.get(number, 0)
            more = sum(map(len, file.skipped_maps[known:]))
            if self._map_bytes + more > MAPS_BYTES:
                self._map_bytes = MAPS_BYTES  # for good
                file = without_maps(file, known)
            else:
                self._map_bytes += more
                self._maps[number] = len(file.skipped_maps)
            files[number] = dataclasses.replace(file, skipped_maps=file.skipped_maps[known:])
        stated = dataclasses.asdict(dataclasses.replace(resume, files=files))
        for stated_file in stated["files"].values():
            if not stated_file["skipped_maps"]:  # which most have not
                del stated_file["skipped_maps"]
            if stated_file["duplicates"] is None:
                del stated_file["duplicates"]
        return stated


def read_local(directory: Path) -> JournalContent | None:
    """What the journal in `directory` says; None if there is none, or nothing of it holds and no shard is there either:
    of a folder that was removed while a run was at work. Raises `OutputError` as `parse_journal` does."""
    path = directory / JOURNAL_FILE
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no plain file: move it away")
    try:
        return parse_journal(read_small_file(path), where=str(path))
    except FileNotFoundError:
        return None
    except OutputError:
        if shard_files(directory):
            raise
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from None


def abandoned_run(directory: Path, identity: Mapping[str, Any]) -> bytes | None:
    """The first line of the journal in `directory`, if it is of another run than `identity` describes, and that one has
    made nothing. Whoever holds the folder's lock knows that it is not at work there."""
    content = read_local(directory)
    if content is None or content.lines[0] == first_line(identity) or not _made_nothing(directory, content):
        return None
    return content.lines[0]


def forget_unused(directory: Path) -> None:
    """Remove the journal in `directory` if its run has made nothing. Raises `OSError` or `OutputError`."""
    if (content := read_local(directory)) is not None and _made_nothing(directory, content):
        (directory / JOURNAL_FILE).unlink()


def _made_nothing(directory: Path, content: JournalContent) -> bool:
    """Whether nothing is lost if the run that `content` begins in `directory` is forgotten. A shard that no line names
    may have been finished just before a kill, or be on its way from a remote."""
    made = content.shards or content.damaged or (directory / MANIFEST_NAME).exists()
    return not made and not shard_files(directory)


def counted_shards(shards: Sequence[ShardInfo]) -> str:
    """How many finished shards a run has, in words."""
    return f"{len(shards)} finished shard{'' if len(shards) == 1 else 's'}" if shards else "no finished shard yet"


def parse_journal(journal: bytes, *, where: str, way_out: str = "start again with --overwrite") -> JournalContent:
    """What a journal says, up to the first line that does not hold; `where` names it in errors.

    Raises `OutputError` if nothing of it holds: it is damaged, or of a version whose lines had no checksums.
    """
    lines, check = whole_lines(journal), CheckedLines()
    shards: list[ShardInfo] = []
    files: dict[int, SourceFile] = {}
    place = Resume()
    try:
        records = check.each(lines)
        if (head := next(records, None)) is None:
            raise ValueError("its first line does not hold")
        identity = read_record(_Head, head).identity
        for record in records:  # of which only what is needed is kept: there may be 150,000
            step = read_record(_Step, record)
            shards.append(step.shard)
            for number, file in step.next.files.items():  # of its maps a line has what the lines before have not
                earlier = files[number].skipped_maps if number in files else ()
                files[number] = dataclasses.replace(file, skipped_maps=(*earlier, *file.skipped_maps))
            place = step.next
        if [shard.index for shard in shards] != list(range(len(shards))):
            raise ValueError("its shards are not 0, 1, 2 and so on")
        check_shards(shards)
    except ValueError as error:
        if _is_unchecked(lines):
            raise OutputError(
                f"{where} was begun by an earlier version, its lines have no checksums: {way_out} (a dataset that has "
                "its manifest.json is whole without it)"
            ) from None
        raise OutputError(f"{where} is damaged ({error}): {way_out}") from None
    return JournalContent(
        lines=lines[: 1 + len(shards)],
        identity=identity,
        shards=shards,
        resume=dataclasses.replace(place, files=files),
        check=check,
        damaged=1 + len(shards) < len(lines),
    )


def whole_lines(journal: bytes) -> list[bytes]:
    """The lines of a journal with their ends; a torn last one is left out."""
    return journal[: journal.rfind(b"\n") + 1].splitlines(keepends=True)


def first_line(identity: Mapping[str, Any]) -> bytes:
    """How the journal of the run that `identity` describes begins."""
    return _begun(identity).lines[0]


def _begun(identity: Mapping[str, Any]) -> JournalContent:
    check = CheckedLines()
    line = check.seal({"identity": dict(identity)})
    return JournalContent(lines=[line], identity=dict(identity), shards=[], resume=Resume(), check=check, damaged=False)


def _is_unchecked(lines: Sequence[bytes]) -> bool:
    """Whether these lines begin as those of earlier versions did."""
    try:
        return set(parse_json(lines[0])) == {"identity"}
    except (ValueError, TypeError, IndexError):
        return False


def differences(stated: Mapping[str, Any], wanted: Mapping[str, Any], ours: str = "now") -> list[str]:
    """Each option that differs, as `name: theirs there, ours now`; a source file that differs alone, by its name.

    The states of the files (a list of [name, state]) are not in journals of earlier versions.
    """
    wanted = json.loads(json.dumps(wanted))
    states = zip(stated.get("file states") or (), wanted.get("file states") or (), strict=False)
    if changed := [
        f"source file {name}: {then} then, {now} now"
        for (name, then), (same_name, now) in states
        if name == same_name and then != now
    ]:
        return changed[:3]
    stated, wanted = ({**identity, "file states": None} for identity in (stated, wanted))
    return [
        f"{name}: {_brief(stated.get(name))} there, {_brief(wanted.get(name))} {ours}"
        for name in sorted({*stated, *wanted})
        if stated.get(name) != wanted.get(name)
    ]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
