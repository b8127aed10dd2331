"""What a cache folder holds: the dataset that was opened into it, and which shards must go for the next one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.dataset.shards import SHARD_NAME
from shardkit.errors import DiskFull, HubError, OutputError, ShardkitError, UsageError
from shardkit.files import format_bytes
from shardkit.remote.address import open_remote
from shardkit.remote.download import WantedFile
from shardkit.remote.interface import Remote
from shardkit.remote.listing import check_listing, published, published_so_far
from shardkit.remote.streaming.folder import CacheFolder, Dataset, shown, small_bytes, source_key


class OpenDataset:
    """An opened dataset, and what of it is in the folder."""

    def __init__(self, folder: CacheFolder, remote: Remote, record: Dataset) -> None:
        self.remote = remote
        self.digest = record.digest
        manifest = Manifest.from_json(record.manifest, where=str(folder.dataset))
        self.shards: dict[str, ShardInfo] = {shard.file: shard for shard in manifest.shards}
        self.sizes = {shard.file: shard.bytes for shard in manifest.shards}
        self.small_bytes = small_bytes(manifest)
        self.room = CacheContents({p.name: p.stat().st_size for p in folder.path.iterdir() if SHARD_NAME.match(p.name)})

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
    if unfinished := MANIFEST_NAME not in there and JOURNAL_FILE in there:
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


def wanted_file(shard: ShardInfo) -> WantedFile:
    """A shard as what is fetched."""
    return WantedFile.of(shard)


def _wanted(manifest: Manifest) -> list[WantedFile]:
    return [wanted_file(shard) for shard in manifest.shards]


class CacheContents:
    """The shard files of a folder, by name, and those on their way. All sizes in bytes."""

    def __init__(self, held: Mapping[str, int]) -> None:
        self.held = dict(held)
        self.coming: dict[str, int] = {}
        self._wanted_at: dict[str, int] = {}
        self._now = 0

    @property
    def used(self) -> int:
        """Held and promised."""
        return sum(self.held.values()) + sum(self.coming.values())

    def want(self, shards: Collection[str]) -> None:
        """Note what is wanted now, so that what was wanted last goes last."""
        self._now += 1
        self._wanted_at |= dict.fromkeys(shards, self._now)

    def drop(self, shard: str) -> None:
        """It is no more, or does not come."""
        self.held.pop(shard, None)
        self.coming.pop(shard, None)

    def arrive(self, shard: str) -> None:
        """It has come whole."""
        self.held[shard] = self.coming.pop(shard)

    def make(self, size: int, *, bound: int | None, free: int, wanted: Collection[str]) -> list[str] | None:
        """The unwanted shards that must go before `size` more bytes may come; None if that would not be enough.

        `bound` is for all shards (None: no bound, then nothing goes); `free` is what the disk has free now.
        """
        spare = free - sum(self.coming.values())
        if bound is None:
            return [] if spare >= size else None
        over = max(self.used + size - bound, size - spare)
        leaving = []
        for shard in sorted(self.held.keys() - set(wanted), key=lambda shard: (self._wanted_at.get(shard, 0), shard)):
            if over <= 0:
                break
            leaving.append(shard)
            over -= self.held[shard]
        return leaving if over <= 0 else None


def in_order_of_need(wants: Sequence[Sequence[str]]) -> list[str]:
    """All that the readers want, each once: every reader's first, then every reader's second, and so on."""
    nearest: dict[str, int] = {}
    for shards in wants:
        for distance, shard in enumerate(shards):
            nearest[shard] = min(distance, nearest.get(shard, distance))
    return sorted(nearest, key=lambda shard: (nearest[shard], shard))


def too_much(wants: Sequence[str], sizes: Mapping[str, int], bound: int) -> list[str]:
    """Those of one reader's wants that do not fit below `bound` together with the ones before."""
    used, beyond = 0, []
    for shard in wants:
        used += sizes[shard]
        if used > bound:
            beyond.append(shard)
    return beyond
