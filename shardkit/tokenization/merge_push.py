"""A merge whose shards leave for a remote as they are made: no machine has room for the dataset, or sees all of it.

Each job sends its lines (`merge_lines.py`) with its shards. All jobs of a merge have one claim on the place; the one
that finds every shard there completes the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from shardkit.dataset.check import check_shard
from shardkit.dataset.folder import MERGE_LINES, WORK_DIR
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.dataset.shards import DTYPES, shard_header
from shardkit.errors import DiskFull, HubError, ShardError, UsageError
from shardkit.files import format_bytes
from shardkit.remote.address import open_remote
from shardkit.remote.claim import another_dataset, check_not_claimed, claim_for, holds_data, is_complete, mark
from shardkit.remote.interface import CLAIM_FILE, RemoteFile
from shardkit.remote.listing import published
from shardkit.remote.push import publish
from shardkit.remote.uploader import Uploader
from shardkit.tokenization.merge_job import MergeJob
from shardkit.tokenization.merge_lines import MergeLines, named_shards, shards_in
from shardkit.tokenization.merge_plan import MergePlan
from shardkit.tokenization.merge_shards import merged_shards


@dataclass(frozen=True, kw_only=True, slots=True)
class PushPlace:
    """Where a merge sends its shards: `repo`, made `private`; `max_disk` bounds the bytes of shards here."""

    repo: str
    private: bool
    max_disk: int | None


def finished_at(repo: str) -> Manifest | None:
    """The manifest of the dataset that is complete at a place, None if none is. Removes what merge jobs left beside
    it."""
    remote = open_remote(repo)
    files = remote.files() if remote.exists() else {}
    if not is_complete(files) or (found := published(remote, files)) is None:
        return None
    if any(map(MERGE_LINES.fullmatch, files)):  # of a job that wrote while another completed the dataset
        publish(remote, found[1], found[0])
    return found[1]


class MergePush:
    """The shards of one `job` of a merge on their way to a place, in a folder of its own here. A context manager.

    Raises `HubError` if another dataset is there or on its way, `OutputError` for one that other parts made, `DiskFull`
    if the bound of the disk has no room, `UsageError` for the folder of the merge itself.
    """

    def __init__(self, place: PushPlace, plan: MergePlan, job: MergeJob) -> None:
        self._plan, self._job, self._file = plan, job, f"{WORK_DIR}/merge-{job.name}.jsonl"
        longest, dtype = max(plan.lengths), DTYPES[plan.dtype]
        self._shard_bytes = len(shard_header(longest, dtype)) + longest * dtype.itemsize
        if plan.most_fetched:  # where a limit leaves less than one shard, those of the parts are longer
            of_parts = (shard.bytes for part in plan.parts for shard in part.manifest.shards)
            self._shard_bytes = max(self._shard_bytes, *of_parts)
        room, self._repo = self._room(place.max_disk), place.repo
        named_shards(job.folder, plan.identity)  # which may refuse: before a claim is left
        self.remote = open_remote(place.repo)
        if self.remote.local_folder == plan.directory.resolve():
            raise UsageError(f"--push {place.repo} is the folder of the merge itself: give another place")
        self.remote.create(private=place.private)
        files = claim_for(self.remote, mark(**plan.identity), self._begin)
        self.manifest: Manifest | None = None
        self._there, ours = self._look(files)
        job.leaving.mkdir(exist_ok=True)
        self._lines = MergeLines(job.lines_file, plan.identity, ours)
        self._uploader = Uploader(self.remote, files, workers=3, delete_local=True, max_bytes=room)

    def __enter__(self) -> MergePush:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._uploader.__exit__(kind, error, at)
        with suppress(OSError):  # shards that have not left are in it
            self._job.leaving.rmdir()

    def make(self, mine: list[int]) -> int:
        """Make and send the shards of those numbers that the place has not; returns how many were made."""
        for shard in self._there.values():  # of a job that was killed before it removed them
            for folder in (self._job.leaving, self._job.directory):
                (folder / shard.file).unlink(missing_ok=True)
        missing = [number for number in mine if number not in self._there]
        named, own = named_shards(self._job.folder, self._plan.identity), self._own()
        here = {number: named[number] for number in missing if number in named and self._is_here(named[number])}
        to_make = [number for number in missing if number not in here]
        for number in missing:
            if number in here:
                if own.get(number) != here[number]:
                    self._lines.append(here[number])
                self._submit(here[number])
        self._wait_for_room()
        job = self._job
        for shard in merged_shards(self._plan, to_make, job.temp, job.leaving, job.tell):
            self._lines.append(shard)
            self._submit(shard)
            self._wait_for_room()
        self._uploader.flush()
        return len(to_make)

    def complete(self) -> int:
        """Complete the dataset, if every shard is there; returns how many are not."""
        named, _ = self._look(self.remote.files())
        if self.manifest is None and not named.keys() >= self._own().keys():
            self.remote.commit([], self._small(), "Say what was merged")  # of shards that had arrived before their line
            named, _ = self._look(self.remote.files())
        total = len(self._plan.lengths)
        if self.manifest is None and len(named) == total:
            manifest = self._plan.manifest([named[number] for number in range(total)])
            tokenizer = self._plan.tokenizer_files(manifest)
            publish(self.remote, manifest, manifest.to_json().encode(), tokenizer)
            self.manifest = manifest
        return 0 if self.manifest is not None else total - len(named)

    def _begin(self, files: Mapping[str, RemoteFile], held: bytes | None) -> dict[str, bytes | None] | None:
        if held is None and MANIFEST_NAME in files:
            return None  # which is looked at
        check_not_claimed(self.remote, held, mark(**self._plan.identity))
        strangers = [name for name in sorted(files) if holds_data(name)] if held is None else []
        if strangers:
            raise HubError(another_dataset(self.remote, f"{strangers[0]} and {len(strangers) - 1} other files"))
        return {}

    def _look(self, files: Mapping[str, RemoteFile]) -> tuple[dict[int, ShardInfo], bytes]:
        """Look whether the dataset is finished at the place, which lists `files`. Returns the shards there that a line
        of any job names, by number, and the lines of this job."""
        self.manifest = self._finished(files)
        names = [] if self.manifest is not None else [name for name in files if MERGE_LINES.fullmatch(name)]
        try:
            lines = {name: self.remote.read(name) for name in names}
        except HubError:
            files = self.remote.files()
            if files.keys() >= set(names):
                raise
            return self._look(files)  # another job has completed the dataset meanwhile
        jobs = ((f"{self.remote.name}/{name}", content) for name, content in lines.items())
        named = {
            number: shard
            for number, shard in shards_in(jobs, self._plan.identity).items()
            if shard.file in files
            and files[shard.file].size == shard.bytes
            and files[shard.file].sha256 in ("", shard.sha256)
        }
        return named, lines.get(self._file, b"")

    def _finished(self, files: Mapping[str, RemoteFile]) -> Manifest | None:
        """The manifest that is there, if it is this dataset's; what other jobs left beside it goes."""
        found = published(self.remote, files) if MANIFEST_NAME in files else None
        if found is None:
            return None
        self._plan.check_made(found[1], self.remote.name, "push to another place")
        if CLAIM_FILE in files:
            publish(self.remote, found[1], found[0])
        elif any(map(MERGE_LINES.fullmatch, files)):  # of one that wrote while the dataset was completed
            publish(open_remote(self._repo), found[1], found[0])
        return found[1]

    def _own(self) -> dict[int, ShardInfo]:
        """The shards that this job's lines name."""
        return shards_in([(self._lines.path, b"".join(self._lines.lines))], self._plan.identity)

    def _is_here(self, shard: ShardInfo) -> bool:
        """Whether a shard is in the folder of those that wait to be sent. One that a merge without --push has made in
        the dataset's folder is moved there."""
        path = self._job.leaving / shard.file
        with suppress(ShardError, OSError):
            check_shard(self._job.directory / shard.file, shard)
            (self._job.directory / shard.file).replace(path)
        try:
            check_shard(path, shard)
        except ShardError:
            return False
        return True

    def _submit(self, shard: ShardInfo) -> None:
        self._uploader.submit(self._job.leaving / shard.file, shard, self._small)

    def _small(self) -> dict[str, bytes]:
        """The job's lines. They may name a shard that is not there yet: only one that is listed too counts."""
        return {self._file: b"".join(list(self._lines.lines))}

    def _wait_for_room(self) -> None:
        self._uploader.wait_for_room(self._shard_bytes)

    def _room(self, max_disk: int | None) -> int | None:
        """What `max_disk` leaves for shards that are made. Raises `DiskFull` if that is less than two."""
        if max_disk is None:
            return None
        shards = 2 + self._plan.most_fetched
        if max_disk < (need := shards * self._shard_bytes):
            raise DiskFull(
                f"--max-disk {format_bytes(max_disk)} has no room for {shards} shards of "
                f"{format_bytes(self._shard_bytes)}: give {need} bytes or more"
            )
        return max_disk - self._plan.most_fetched * self._shard_bytes
