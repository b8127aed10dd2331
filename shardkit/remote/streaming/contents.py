"""What a cache folder holds: the dataset that was opened into it, and which shards must go for the next one."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.dataset.shards import SHARD_NAME
from shardkit.dataset.tokenizer_file import write_tokenizer_files
from shardkit.errors import HubError, UsageError
from shardkit.redaction import public_address
from shardkit.remote.address import open_remote
from shardkit.remote.download import WantedFile, fetch_tokenizer
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.listing import check_listing, published, published_so_far
from shardkit.remote.streaming.folder import CacheFolder, Dataset, small_bytes, source_key
from shardkit.remote.streaming.room import when_there_is_room


class OpenDataset:
    """An opened dataset, where it comes from, and what of it is in the folder."""

    def __init__(self, folder: CacheFolder, remote: Remote, record: Dataset) -> None:
        self.remote = remote
        self.digest = record.digest
        manifest = Manifest.from_json(record.manifest, where=str(folder.dataset))
        self.shards: dict[str, ShardInfo] = {shard.file: shard for shard in manifest.shards}
        self.sizes = {shard.file: shard.bytes for shard in manifest.shards}
        self.small_bytes = small_bytes(manifest, folder.path)
        files = [path for path in folder.path.iterdir() if SHARD_NAME.match(path.name) and path.is_file()]
        self.contents = CacheContents({path.name: path.stat().st_size for path in files})


def open_dataset(folder: CacheFolder, source: str, revision: str | None) -> OpenDataset:
    """Resolve the revision and read the manifest, or go on with those that living readers have."""
    record = folder.read(folder.dataset, Dataset)
    if record is not None and any(lease.dataset == record.digest for lease in folder.living()):
        remote = open_remote(source, revision=record.revision or None)
        manifest = Manifest.from_json(record.manifest, where=str(folder.dataset))
        check_listing(remote, [wanted_file(shard) for shard in manifest.shards], remote.files())
        return OpenDataset(folder, remote, record)
    remote = open_remote(source, revision=revision)
    listing = remote.files()
    manifest, unfinished = _read_manifest(remote, listing)
    _write_tokenizer(remote, listing, folder, manifest)
    record = Dataset(
        key=source_key(public_address(source)),
        name=remote.name,
        asked=revision,
        revision=remote.revision,
        unfinished=unfinished,
        manifest=manifest.to_json(),
    )
    when_there_is_room(folder.path, lambda: folder.write(folder.dataset, record))
    return OpenDataset(folder, remote, record)


def _write_tokenizer(
    remote: Remote, listing: Mapping[str, RemoteFile], folder: CacheFolder, manifest: Manifest
) -> None:
    """Put the dataset's own `tokenizer.json` into the folder, in place of that of a dataset that was there before.
    Where it cannot be had there is none: no batch needs it."""
    with contextlib.suppress(HubError):
        files = fetch_tokenizer(remote, listing, folder.path, manifest)
        for name in files:
            (folder.path / name).unlink(missing_ok=True)
        when_there_is_room(folder.path, lambda: write_tokenizer_files(folder.path, files))


def wanted_file(shard: ShardInfo) -> WantedFile:
    """A shard as what is fetched."""
    return WantedFile.of(shard)


def _read_manifest(remote: Remote, listing: Mapping[str, RemoteFile]) -> tuple[Manifest, bool]:
    """The manifest at the remote, or that of a dataset that is still being written; and whether it is."""
    unfinished = MANIFEST_NAME not in listing and JOURNAL_FILE in listing
    if unfinished:
        manifest = published_so_far(remote, listing)
    else:
        whole = published(remote, listing)
        if whole is None:
            raise UsageError(
                f"{remote.name} has no {MANIFEST_NAME}, so nobody vouches for its shards: bring it here "
                "with `shardkit pull`, and train from the folder"
            )
        manifest = whole[1]
    check_listing(remote, [wanted_file(shard) for shard in manifest.shards], listing)
    if nameless := [shard.file for shard in manifest.shards if len(shard.sha256) != 64]:
        raise HubError(f"{remote.name} has no SHA-256 for {nameless[0]}: `shardkit pull` it instead")
    return manifest, unfinished


class CacheContents:
    """The shard files of a folder, by name, and those on their way. All sizes in bytes."""

    def __init__(self, held: Mapping[str, int]) -> None:
        self.held = dict(held)
        self.coming: dict[str, int] = {}
        self._wanted_at: dict[str, int] = {}
        self._now = 0

    @property
    def used(self) -> int:
        """Held and on their way."""
        return sum(self.held.values()) + sum(self.coming.values())

    def note_wanted(self, shards: Collection[str]) -> None:
        """Note what is wanted now, so that what was wanted last is deleted last."""
        self._now += 1
        self._wanted_at |= dict.fromkeys(shards, self._now)

    def forget(self, shard: str) -> None:
        """It was deleted, or did not come."""
        self.held.pop(shard, None)
        self.coming.pop(shard, None)

    def to_delete(self, size: int, *, bound: int | None, free: int, wanted: Collection[str]) -> list[str] | None:
        """The unwanted shards to delete before `size` more bytes may come; None if that would not be enough.

        `bound` is for all shards (None: no bound, then nothing is deleted); `free` is what the disk has free now.
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
    """Those of one reader's wants for which `bound` leaves no room after the earlier ones."""
    used, beyond = 0, []
    for shard in wants:
        used += sizes[shard]
        if used > bound:
            beyond.append(shard)
    return beyond
