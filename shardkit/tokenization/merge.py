"""`merge()`: the parts that `tokenize(part=...)` made become the dataset that a single run makes, byte for byte.

No text is read and nothing is tokenized: the final shards are ranges of the parts' tokens. Jobs that make some of the
shards each need not talk to each other; a checked line in `.shardkit/merge/` names each shard that is finished, and the
job that finds all of them named writes the manifest, last.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.arguments import place_text, user_path
from shardkit.bars import TransferBar, shown
from shardkit.dataset.check import check_shard
from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.folder import MANIFEST_NAME, MERGE_FOLDER, PARTS_FOLDER
from shardkit.dataset.journal import whole_lines
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import DTYPES, ShardWriter, shard_blocks
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, read_tokenizer_files, write_tokenizer_files
from shardkit.dataset.typed_json import read_record
from shardkit.errors import OutputError, ShardError, ShardkitError, SourceError, UsageError
from shardkit.files import atomic_write, read_small_file, write_error
from shardkit.locks import hold_lock
from shardkit.remote.address import hint_at_folder, is_remote
from shardkit.sources.parts import parse_part
from shardkit.tokenization.merge_parts import PartsHere, PartsThere
from shardkit.tokenization.merge_plan import MergePlan
from shardkit.tokenization.part_folders import check_place
from shardkit.tokenization.run_checks import warn_of_missing_splits

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What a call of `merge` did: of the dataset's `shards` it `made` some, `missing` are still to be made by other
    jobs. `manifest` is the dataset's, once none is."""

    shards: int
    made: int
    missing: int
    manifest: Manifest | None


def merge(
    place: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    part: str | None = None,
    keep_parts: bool = False,
    progress: Callable[[str, int, int], None] | bool | None = True,
) -> Merged:
    """Make the one dataset of the parts at `place`: what a single `tokenize` would have made, byte for byte.

    `place` is the folder that has the parts, in which the dataset is made; or, with `out`, a remote to which they were
    pushed (as `shardkit.push` understands it), or another folder. Then the dataset comes into `out`, the parts' shards
    are fetched as they are needed, a few at a time, and the parts stay where they are.

    `part`, "3/64", makes some of its shards, as one of 64 jobs on any machines that see the folder. Killed or failed,
    the same call goes on; a shard that is finished is not made again. The job that finds all shards finished writes
    `manifest.json`, then removes the parts, unless `keep_parts`. Until then the disk has each token twice.

    A bar says how far this job is; `progress=False` silences it, and `progress(shard, done_bytes, total_bytes)` is
    called in its place.

    Raises `OutputError` if a part is missing, unfinished, damaged, or of another run than the others; `SourceError`
    if they hold no documents; `HubError`, `UsageError`. Warns (`ShardkitWarning`) if there is no train split.

    >>> for index in range(2):
    ...     part = tokenize("sample", "big", part=f"{index}/2", shard_tokens=100_000, tokenizer="bytes")
    >>> merged = merge("big")
    >>> merged.made == merged.shards == len(merged.manifest.shards), merged.missing
    (True, 0)
    """
    repo, directory = _places(place, out)
    index, count = (0, 1) if part is None else parse_part(part)
    with shown(progress, lambda: TransferBar("merge")) as tell:
        was_finished = (directory / MANIFEST_NAME).exists()
        try:
            if was_finished and repo is None:
                return _already(directory, keep_parts)
            merged = _merge(repo, directory, index, count, keep_parts, tell)
        except ShardkitError:
            if was_finished or not (directory / MANIFEST_NAME).exists():
                raise
        else:
            if merged.manifest is not None or not (directory / MANIFEST_NAME).exists():
                return merged
        # another job was at its end, and has removed the parts, or what was fetched of them
        return _already(directory, keep_parts) if repo is None else _merge(repo, directory, index, count, True, tell)


def _places(place: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> tuple[str | None, Path]:
    """The remote that has the parts, None where they are in the dataset's folder; and that folder."""
    if out is not None:
        directory, repo = user_path(out), place_text(place)
        if is_remote(place):
            return repo, directory
        here = user_path(place)
        return (None if here.resolve() == directory.resolve() else place_text(here)), directory
    if is_remote(place):
        raise UsageError(f"{place} is no folder here: to merge parts that are at a remote, give --out DIR too")
    return None, user_path(place)


def _already(directory: Path, keep_parts: bool) -> Merged:
    """The dataset in `directory` is finished, but for parts that may still have to be removed."""
    manifest = Manifest.load(directory)
    _check_files(directory, manifest)
    if (directory / MERGE_FOLDER).exists():
        _remove(directory, keep_parts)
    return Merged(shards=len(manifest.shards), made=0, missing=0, manifest=manifest)


def _merge(repo: str | None, directory: Path, index: int, count: int, keep_parts: bool, tell: Tell | None) -> Merged:
    """Make part `index` of `count` of the dataset in `directory`, of the parts in it or at `repo`."""
    is_finished = (directory / MANIFEST_NAME).exists()
    if not is_finished:
        check_place(directory)
    job = f"{index}-of-{count}"
    folder = directory / MERGE_FOLDER
    with ExitStack() as stack:
        busy = f"another process is merging part {index}/{count} of {directory}: wait for it"
        stack.enter_context(hold_lock(folder / f"{job}.lock", busy=busy, remove=True))
        stack.enter_context(hint_at_folder(repo))
        parts = PartsHere(directory) if repo is None else stack.enter_context(PartsThere(repo, folder / f"{job}.parts"))
        plan = MergePlan(directory, parts)
        if is_finished:
            plan.check_made(Manifest.load(directory))
            return _already(directory, keep_parts=True)
        if not plan.lengths:
            raise SourceError("the parts hold no documents: nothing was merged")
        total = len(plan.lengths)
        mine = [number for number in range(total) if number * count // total == index]
        lines = _Lines(folder / f"{job}.jsonl", plan.identity)
        named = _named(directory, plan)
        to_make = [number for number in mine if number not in named or not _is_there(directory, named[number])]
        _make(plan, to_make, lines, folder / f"{job}.tmp", tell)
        named = _named(directory, plan)
        if len(named) == total:  # else other jobs are still at work, and nothing more need be known
            named = {number: shard for number, shard in named.items() if _is_there(directory, shard)}
        missing = total - len(named)
        manifest = None
        if not missing:
            manifest = _complete(directory, plan, [named[number] for number in range(total)])
    if manifest is not None:
        _remove(directory, keep_parts or repo is not None)
        warn_of_missing_splits(manifest, plan.shape)
    return Merged(shards=total, made=len(to_make), missing=missing, manifest=manifest)


def _make(plan: MergePlan, numbers: list[int], lines: _Lines, temp: Path, tell: Tell | None) -> None:
    """Make those shards, and note each."""
    dtype = DTYPES[plan.dtype]
    done, total = 0, sum(plan.lengths[number] for number in numbers) * dtype.itemsize
    plan.expect(numbers)
    for number in numbers:
        file, documents = plan.shape.shard_file(number), 0
        writer = ShardWriter(temp, dtype, plan.lengths[number])
        try:
            for source, begin, end in plan.sources(number):
                for block in shard_blocks(source.path, begin, end):
                    writer.write(block)
                    documents += int(np.count_nonzero(block == plan.eot_id))
                    done += block.nbytes
                    if tell is not None:
                        tell(file, done, total)
            made = writer.finish(plan.directory / file)
        except BaseException:
            writer.abort()
            raise
        shard = ShardInfo(
            file=file,
            split=plan.shape.split(number),
            index=number,
            tokens=made.tokens,
            documents=documents,
            first_document=0,  # known when all are
            sha256=made.sha256,
            bytes=made.bytes,
        )
        lines.append(dataclasses.asdict(shard))


class _Lines:
    """The lines of one job, in the file at `path`: the merge's `identity`, then the shards that are finished."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        held, check = _held(path, identity)
        self._check = check
        if not held:
            held = [self._check.seal(identity)]
        try:
            content = read_small_file(path) if path.exists() else b""
        except OSError as error:
            raise write_error(error, path, 0) from None
        if content != b"".join(held):
            atomic_write(path, b"".join(held))

    def append(self, record: dict[str, Any]) -> None:
        """Note a shard, durably. Raises `OutputError`."""
        line = self._check.seal(record)
        try:
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.path, len(line)) from None


def _held(path: Path, identity: dict[str, Any]) -> tuple[list[bytes], CheckedLines]:
    """The lines of a job that hold, and their checksum. Raises `OutputError` if they are of other parts."""
    check = CheckedLines()
    try:
        lines = whole_lines(read_small_file(path))
    except FileNotFoundError:
        return [], check
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from None
    records = check.unseal(lines)
    if records and records[0] != identity:
        raise OutputError(
            f"{path} names shards that were merged from other parts than there are now: remove {path.parent} and the "
            "shards in the dataset's folder, and merge again"
        )
    return lines[: len(records)], check


def _named(directory: Path, plan: MergePlan) -> dict[int, ShardInfo]:
    """The shards that a line of any job names, by number."""
    found: dict[int, ShardInfo] = {}
    for path in sorted((directory / MERGE_FOLDER).glob("*.jsonl")):
        lines, _ = _held(path, plan.identity)
        for record in CheckedLines().unseal(lines)[1:]:
            shard = read_record(ShardInfo, record)
            found[shard.index] = shard
    return found


def _is_there(directory: Path, shard: ShardInfo) -> bool:
    """Whether a shard that was finished is still there, with the right size: else it is made again."""
    try:
        check_shard(directory / shard.file, shard)
    except ShardError:
        return False
    return True


def _complete(directory: Path, plan: MergePlan, shards: list[ShardInfo]) -> Manifest:
    """Write the manifest of the dataset with those shards, and its `tokenizer.json`; returns it with its folder."""
    manifest = plan.manifest(shards)
    _check_files(directory, manifest)
    if not write_tokenizer_files(directory, read_tokenizer_files(plan.parts[0].folder, manifest.tokenizer)):
        raise OutputError(
            f"{directory} holds another {TOKENIZER_NAME} than this dataset's: move it away, then run the same command "
            "again"
        )
    manifest.save(directory)
    return dataclasses.replace(manifest, directory=directory)


def _check_files(directory: Path, manifest: Manifest) -> None:
    try:
        manifest.check_files(directory)
    except ShardError as error:
        raise OutputError(str(error)) from None


def _remove(directory: Path, keep_parts: bool) -> None:
    """Remove the parts, unless they are kept, and last what says that they are merged."""
    for folder in () if keep_parts else (directory / PARTS_FOLDER).glob("*-of-*"):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # something of somebody else's is in it
        (directory / PARTS_FOLDER).rmdir()
    shutil.rmtree(directory / MERGE_FOLDER, ignore_errors=True)
