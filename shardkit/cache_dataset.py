"""A dataset as the downloader of a cache folder opened it: pinned, its manifest, and what of it is in the folder."""

from __future__ import annotations

from collections.abc import Sequence

from shardkit.arrival import check_listing, published, published_so_far
from shardkit.bare import Wanted
from shardkit.cache_folder import CacheFolder, Dataset, shown, small_bytes, source_key
from shardkit.cache_room import Room, too_much
from shardkit.errors import DiskFull, HubError, OutputError, ShardkitError, UsageError
from shardkit.files import format_bytes
from shardkit.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.remotes import JOURNAL_NAME, Remote, open_remote
from shardkit.shards import SHARD_NAME


class OpenDataset:
    """An opened dataset, and what of it is in the folder."""

    def __init__(self, folder: CacheFolder, remote: Remote, record: Dataset) -> None:
        self.remote = remote
        self.digest = record.digest
        manifest = Manifest.from_json(record.manifest, where=str(folder.dataset))
        self.shards: dict[str, ShardInfo] = {shard.file: shard for shard in manifest.shards}
        self.sizes = {shard.file: shard.bytes for shard in manifest.shards}
        self.small_bytes = small_bytes(manifest)
        self.room = Room({p.name: p.stat().st_size for p in folder.path.iterdir() if SHARD_NAME.match(p.name)})

    def refused(self, wants: Sequence[Sequence[str]], bound: int | None) -> dict[str, ShardkitError]:
        """What can never fit below the bound with what the same reader needs before it."""
        refused: dict[str, ShardkitError] = {}
        for shards in wants if bound is not None else ():
            for shard in too_much(shards, self.sizes, bound or 0):
                needed = sum(self.sizes[s] for s in shards) + self.small_bytes
                refused[shard] = DiskFull(
                    f"cache_bytes is {format_bytes((bound or 0) + self.small_bytes)}, one reader needs {len(shards)} "
                    f"shards at once, {format_bytes(needed)} with the small files: give more, or a smaller span"
                )
        return refused


def open_dataset(folder: CacheFolder, source: str, revision: str | None) -> OpenDataset:
    """Resolve the revision and read the manifest, or go on with those that living readers have."""
    before = folder.read_dataset()
    if before is not None and before.key != source_key(source):
        raise OutputError(f"{folder.path} is the cache of {before.name}, not of {shown(source)}: give another folder")
    if before is not None and any(note.dataset == before.digest for note in folder.live_readers()):
        remote = open_remote(source, revision=before.revision or None)
        manifest = Manifest.from_json(before.manifest, where=str(folder.dataset))
        check_listing(remote, _wanted(manifest), remote.files())
        return OpenDataset(folder, remote, before)
    remote = open_remote(source, revision=revision)
    there = remote.files()
    if unfinished := MANIFEST_NAME not in there and JOURNAL_NAME in there:
        manifest = published_so_far(remote, there)
    else:
        found = published(remote, there)
        if found is None:
            raise UsageError(
                f"{shown(remote.name)} has no {MANIFEST_NAME}, so nobody vouches for its shards: bring it here "
                "with `shardkit pull`, and train from the folder"
            )
        manifest = found[1]
    check_listing(remote, _wanted(manifest), there)
    if nameless := [shard.file for shard in manifest.shards if len(shard.sha256) != 64]:
        raise HubError(f"{shown(remote.name)} has no SHA-256 for {nameless[0]}: `shardkit pull` it instead")
    record = Dataset(
        key=source_key(source), name=shown(remote.name), asked=revision, revision=remote.revision,
        unfinished=unfinished, manifest=manifest.to_json(),
    )  # fmt: skip
    folder.write(folder.dataset, record)
    return OpenDataset(folder, remote, record)


def wanted_file(shard: ShardInfo) -> Wanted:
    """A shard as what is fetched."""
    return Wanted(shard.file, shard.file, shard.bytes, shard.sha256)


def _wanted(manifest: Manifest) -> list[Wanted]:
    return [wanted_file(shard) for shard in manifest.shards]
