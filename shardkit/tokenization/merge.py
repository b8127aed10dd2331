"""`merge()`: the parts that `tokenize(part=...)` made become the dataset that a single run makes, byte for byte.

No text is read and nothing is tokenized: the final shards are ranges of the parts' tokens. Jobs that make some of the
shards each need not talk to each other; a checked line in `.shardkit/merge/` names each shard that is finished, and the
job that finds all of them named writes the manifest, last.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shardkit.arguments import place_text, user_path, whole_numbers
from shardkit.bars import TransferBar, shown
from shardkit.dataset.check import check_shard
from shardkit.dataset.folder import MANIFEST_NAME, MERGE_FOLDER, PART_NAME, PARTS_FOLDER, pushed_to
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, read_tokenizer_files, write_tokenizer_files
from shardkit.errors import OutputError, ShardError, ShardkitError, SourceError, UsageError
from shardkit.files import remove_tree
from shardkit.locks import hold_lock
from shardkit.remote.address import hint_at_folder, is_remote, open_remote
from shardkit.remote.claim import is_complete
from shardkit.remote.listing import published
from shardkit.sources.parts import parse_part
from shardkit.tokenization.live_push import named_place, note_place
from shardkit.tokenization.merge_lines import MergeLines, named_shards
from shardkit.tokenization.merge_parts import PartsHere, PartsThere
from shardkit.tokenization.merge_plan import MergePlan
from shardkit.tokenization.merge_push import MergePush, PushPlace
from shardkit.tokenization.merge_shards import Tell, merged_shards
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
    `manifest.json`, then removes the parts, unless `keep_parts`. Until then the disk has each token twice.

    `push` sends each shard to that repo as it is made, and then deletes it here, so that no disk need hold the dataset
    (nor need the jobs see one folder): the job that finds all shards there completes it, as `tokenize(push=...)` does.
    `max_disk`, in bytes, bounds the shards here, fetched and made. The same call in an empty folder goes on from there.

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
    if push is None and (max_disk is not None or private):
        raise UsageError("--max-disk and --private say how to push: give --push REPO too")
    max_disk = whole_numbers(max_disk=max_disk)[0]
    with shown(progress, lambda: TransferBar("merge")) as tell:
        job = _Job(repo=repo, directory=directory, index=index, count=count, keep_parts=keep_parts, tell=tell)
        if push is not None:
            return _merge_and_push(job, PushPlace(repo=place_text(push), private=private, max_disk=max_disk))
        was_finished = (directory / MANIFEST_NAME).exists()
        try:
            if was_finished and repo is None:
                return _already(directory, keep_parts)
            merged = _merge(job)
        except ShardkitError:
            if was_finished or not (directory / MANIFEST_NAME).exists():
                raise
        else:
            if merged.manifest is not None or not (directory / MANIFEST_NAME).exists():
                return merged
        # another job was at its end, and has removed the parts, or what was fetched of them
        return _already(directory, keep_parts) if repo is None else _merge(job)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """Part `index` of `count` of a merge in `directory`, of the parts in it or at `repo`."""

    repo: str | None
    directory: Path
    index: int
    count: int
    keep_parts: bool
    tell: Tell | None

    @property
    def name(self) -> str:
        return f"{self.index}-of-{self.count}"

    @property
    def folder(self) -> Path:
        return self.directory / MERGE_FOLDER

    def numbers(self, plan: MergePlan) -> list[int]:
        """The shards that it makes. Raises `SourceError` if there are none at all."""
        if not (total := len(plan.lengths)):
            raise SourceError("the parts hold no documents: nothing was merged")
        return [number for number in range(total) if number * self.count // total == self.index]

    @contextmanager
    def plan(self) -> Iterator[MergePlan]:
        """What is made, of parts that are held together while the block runs, in which no other process has the job."""
        busy = f"another process is merging part {self.index}/{self.count} of {self.directory}: wait for it"
        with ExitStack() as stack:
            stack.enter_context(hold_lock(self.folder / f"{self.name}.lock", busy=busy, remove=True))
            self._tidy()
            if self.repo is None:
                yield MergePlan(self.directory, PartsHere(self.directory))
                return
            stack.enter_context(hint_at_folder(self.repo))
            parts = stack.enter_context(PartsThere(self.repo, self.folder / f"{self.name}.parts"))
            yield MergePlan(self.directory, parts)

    def _tidy(self) -> None:
        """Remove what jobs of another number of jobs left that were killed; one of ours does it when it goes on."""
        for path in self.folder.iterdir():
            job = PART_NAME.fullmatch(path.stem)
            if job is not None and int(job[1]) != self.count and path.suffix in (".parts", ".tmp"):
                with suppress(OutputError), hold_lock(path.with_suffix(".lock"), busy="it is at work", remove=True):
                    remove_tree(path)


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


def _merge(job: _Job) -> Merged:
    """Make the job's shards in the folder, and the manifest if no others are missing."""
    directory, folder = job.directory, job.folder
    is_finished = (directory / MANIFEST_NAME).exists()
    if not is_finished:
        check_place(directory)
    with job.plan() as plan:
        if is_finished:
            plan.check_made(Manifest.load(directory), directory, "choose another --out")
            return _already(directory, keep_parts=True)
        mine, total = job.numbers(plan), len(plan.lengths)
        lines = MergeLines(folder / f"{job.name}.jsonl", plan.identity)
        named = named_shards(folder, plan.identity)
        to_make = [number for number in mine if number not in named or not _is_there(directory, named[number])]
        for shard in merged_shards(plan, to_make, folder / f"{job.name}.tmp", job.tell):
            lines.append(shard)
        named = named_shards(folder, plan.identity)
        if len(named) == total:  # else other jobs are still at work, and nothing more need be known
            named = {number: shard for number, shard in named.items() if _is_there(directory, shard)}
        missing = total - len(named)
        manifest = None
        if not missing:
            manifest = _complete(directory, plan, [named[number] for number in range(total)])
    if manifest is not None:
        _remove(directory, job.keep_parts or job.repo is not None)
        warn_of_missing_splits(manifest, plan.shape)
    return Merged(shards=total, made=len(to_make), missing=missing, manifest=manifest)


def _merge_and_push(job: _Job, place: PushPlace) -> Merged:
    """Make the job's shards and send them, and complete the dataset there if no others are missing."""
    try:
        return _make_and_push(job, place)
    except ShardkitError:
        if (manifest := _merged_there(job, place)) is None:
            raise
        return Merged(shards=len(manifest.shards), made=0, missing=0, manifest=manifest)


def _merged_there(job: _Job, place: PushPlace) -> Manifest | None:
    """The manifest at the place, if a job that was at its end said that the dataset lies there, and removed the parts
    from the folder."""
    there = pushed_to(job.directory)
    if there is None or job.repo is not None or (job.directory / PARTS_FOLDER).exists():
        return None
    remote = open_remote(place.repo)
    if there != named_place(remote) or not is_complete(files := remote.files()):
        return None
    found = published(remote, files)
    return None if found is None else found[1]


def _make_and_push(job: _Job, place: PushPlace) -> Merged:
    check_place(job.directory)
    with job.plan() as plan, hint_at_folder(place.repo):
        mine = job.numbers(plan)
        with MergePush(place, plan, job.folder / f"{job.name}.jsonl", job.name) as sending:
            made = 0 if sending.manifest is not None else sending.make(mine, job.folder / f"{job.name}.tmp", job.tell)
            missing = 0 if sending.manifest is not None else sending.complete()
    if sending.manifest is not None:
        note_place(job.directory, sending.remote)  # first: who is called again without parts looks there
        _remove(job.directory, job.keep_parts or job.repo is not None)
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
