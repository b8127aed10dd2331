"""`merge()`: the parts that `tokenize(part=...)` made become the dataset that a single run makes, byte for byte.

No text is read and nothing is tokenized: the final shards are ranges of the parts' tokens. Jobs that make some of the
shards each need not talk to each other; a checked line in `.shardkit/merge/` names each shard that is finished, and the
job that finds all of them named writes the manifest, last.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardkit.arguments import place_text, user_path, whole_numbers
from shardkit.bars import TransferBar, shown
from shardkit.dataset.check import check_shard
from shardkit.dataset.folder import MANIFEST_NAME
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, read_tokenizer_files, write_tokenizer_files
from shardkit.errors import OutputError, ShardError, ShardkitError, UsageError
from shardkit.remote.address import hint_at_folder, is_remote
from shardkit.sources.parts import parse_part
from shardkit.tokenization.live_push import note_place
from shardkit.tokenization.merge_job import MergeJob
from shardkit.tokenization.merge_lines import MergeLines, named_shards
from shardkit.tokenization.merge_plan import MergePlan
from shardkit.tokenization.merge_push import MergePush, PushPlace
from shardkit.tokenization.merge_shards import merged_shards
from shardkit.tokenization.merged_before import merged_before
from shardkit.tokenization.part_folders import check_place
from shardkit.tokenization.run_checks import warn_of_missing_splits


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
    push: str | os.PathLike[str] | None = None,
    private: bool = False,
    max_disk: int | None = None,
    keep_parts: bool = False,
    progress: Callable[[str, int, int], None] | bool | None = True,
) -> Merged:
    """Make the one dataset of the parts at `place`: what a single `tokenize` would have made, byte for byte.

    `place` is the folder that has the parts, in which the dataset is made; or, with `out`, a remote to which they were
    pushed (as `shardkit.push` understands it), or another folder. Then the dataset comes into `out`, the parts' shards
    are fetched as they are needed, a few at a time, and the parts stay where they are.

    `part`, "3/64", makes some of its shards, as one of 64 jobs on any machines that see the folder. Killed or failed,
    the same call goes on; a shard that is finished is not made again. The job that finds all shards finished writes
    `manifest.json`, then removes the parts, unless `keep_parts`. Until then the disk has each token twice. A call when
    all is merged and the parts are gone returns the dataset, or says where it lies.

    `push` sends each shard to that repo as it is made, and then deletes it here, so that no disk need hold the dataset
    (nor need the jobs see one folder): the job that finds all shards there completes it, as `tokenize(push=...)` does.
    `max_disk`, in bytes, bounds the shards here, fetched and made. The same call in an empty folder goes on from there.

    A bar says how far this job is, unless `progress` is False or a function(shard, done_bytes, total_bytes).

    Raises `OutputError` if a part is missing, unfinished, damaged, or of another run than the others; `SourceError`
    if they hold no documents; `HubError`, `UsageError`. Warns (`ShardkitWarning`) without a train split or tokenizer.

    >>> for index in range(2):
    ...     part = tokenize("sample", "big", part=f"{index}/2", shard_tokens=100_000, tokenizer="bytes")
    >>> merged = merge("big")
    >>> merged.made == merged.shards == len(merged.manifest.shards), merged.missing
    (True, 0)
    """
    repo, directory = _places(place, out)
    index, count = (0, 1) if part is None else parse_part(part)
    if push is None and (max_disk is not None or private):
        raise UsageError("--max-disk and --private say how to push: give --push REPO too")
    max_disk = whole_numbers(max_disk=max_disk)[0]
    with shown(progress, lambda: TransferBar("merge")) as tell:
        job = MergeJob(repo=repo, directory=directory, index=index, count=count, keep_parts=keep_parts, tell=tell)
        there = None if push is None else PushPlace(repo=place_text(push), private=private, max_disk=max_disk)
        was_finished = (directory / MANIFEST_NAME).exists()
        try:
            if there is not None:
                return _merge_and_push(job, there)
            if was_finished and repo is None:
                return _already(job)
            merged = _merge(job)
        except ShardkitError as error:
            # another job was at its end, and has removed the parts; or they were merged and removed long ago
            if (manifest := merged_before(repo, directory, push, error)) is None:
                raise
            return _already(job) if push is None else _ended(job, manifest)
        if merged.manifest is not None or was_finished or not (directory / MANIFEST_NAME).exists():
            return merged
        return _already(job) if repo is None else _merge(job)  # others have ended meanwhile


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


def _already(job: MergeJob) -> Merged:
    """The dataset in the job's folder is finished, but for parts that may still have to be removed."""
    manifest = Manifest.load(job.directory)
    _check_files(job.directory, manifest)
    return _ended(job, manifest)


def _ended(job: MergeJob, manifest: Manifest) -> Merged:
    if job.folder.exists():
        job.remove()
    return Merged(shards=len(manifest.shards), made=0, missing=0, manifest=manifest)


def _merge(job: MergeJob) -> Merged:
    """Make the job's shards in the folder, and the manifest if no others are missing."""
    directory = job.directory
    is_finished = (directory / MANIFEST_NAME).exists()
    if not is_finished:
        check_place(directory)
    with job.plan() as plan:
        if is_finished:
            plan.check_made(Manifest.load(directory), directory, "choose another --out")
        else:
            merged = _make(job, plan)
    if is_finished:
        return _already(job)
    if merged.manifest is not None:
        job.remove()
        warn_of_missing_splits(merged.manifest, plan.shape)
    return merged


def _make(job: MergeJob, plan: MergePlan) -> Merged:
    directory = job.directory
    mine, total = job.numbers(plan), len(plan.lengths)
    lines = MergeLines(job.lines_file, plan.identity)
    named = named_shards(job.folder, plan.identity)
    to_make = [number for number in mine if number not in named or not _is_there(directory, named[number])]
    for shard in merged_shards(plan, to_make, job.temp, directory, job.tell):
        lines.append(shard)
    named = named_shards(job.folder, plan.identity)
    if len(named) == total:  # else other jobs are still at work, and nothing more need be known
        named = {number: shard for number, shard in named.items() if _is_there(directory, shard)}
    missing = total - len(named)
    manifest = None if missing else _complete(directory, plan, [named[number] for number in range(total)])
    return Merged(shards=total, made=len(to_make), missing=missing, manifest=manifest)


def _merge_and_push(job: MergeJob, place: PushPlace) -> Merged:
    """Make the job's shards and send them, and complete the dataset there if no others are missing."""
    check_place(job.directory)
    with job.plan() as plan, hint_at_folder(place.repo):
        mine = job.numbers(plan)
        with MergePush(place, plan, job) as sending:
            made = 0 if sending.manifest is not None else sending.make(mine)
            missing = 0 if sending.manifest is not None else sending.complete()
    if sending.manifest is not None:
        note_place(job.directory, sending.remote)  # first: who is called again without parts looks there
        job.remove()
        warn_of_missing_splits(sending.manifest, plan.shape)
    return Merged(shards=len(plan.lengths), made=made, missing=missing, manifest=sending.manifest)


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
    tokenizer = read_tokenizer_files(directory, manifest.tokenizer) or plan.tokenizer_files(manifest)
    if not write_tokenizer_files(directory, tokenizer):
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
