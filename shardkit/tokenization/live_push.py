"""`tokenize --push`: finished shards leave for the remote while the next are made; the run can move to a new machine.

The journal travels with the shards. On a machine that has nothing, the remote's journal says where the stream goes on;
it never names a shard that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardkit.dataset.journal import JOURNAL_FILE, Journal
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import DiskFull, HubError, OutputError
from shardkit.files import atomic_write, format_bytes
from shardkit.remote.address import open_remote
from shardkit.remote.push import another_dataset, holds_data, publish
from shardkit.remote.uploader import TransferProgress, Uploader
from shardkit.tokenization.run_spec import ShardPlan, shard_file_bytes, working_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteRun:
    """What an earlier `tokenize --push` left at a remote: `journal` (None: nothing) or the whole `manifest`."""

    journal: bytes | None
    manifest: Manifest | None


def open_outbox(
    repo: str,
    journal: bytes,
    *,
    private: bool = False,
    revision: str | None = None,
    max_bytes: int | None = None,
    workers: int = 2,
    progress: TransferProgress | None = None,
) -> Uploader:
    """The outbox of `tokenize --push`: makes `repo`, leaves the run's `journal` there, and deletes what has arrived.

    `max_bytes` bounds the bytes of finished shards on this disk; None keeps them all. `journal` (its head, at a fresh
    start) claims the place, so that nobody takes a part for a dataset. Raises `HubError` if another dataset is there.
    """
    remote = open_remote(repo, revision=revision)
    remote.create(private=private)
    there = remote.files()
    if JOURNAL_FILE not in there:
        if strangers := [name for name in (MANIFEST_NAME, *sorted(there)) if name in there and holds_data(name)]:
            raise HubError(another_dataset(remote, f"{strangers[0]} and {len(strangers) - 1} other files"))
        remote.commit([], {JOURNAL_FILE: journal}, "Begin")
    return Uploader(
        remote, there, workers=workers, delete_local=max_bytes is not None, max_bytes=max_bytes, progress=progress
    )


def fetch_journal(repo: str, *, revision: str | None = None) -> RemoteRun:
    """What an earlier run left at `repo`, for a machine that has nothing: its journal, or its finished dataset.

    Every shard that the journal names is at the remote. A repo that does not exist, or is empty, gives neither.
    """
    remote = open_remote(repo, revision=revision)
    there = remote.files() if remote.exists() else {}
    manifest = None
    if MANIFEST_NAME in there:
        manifest = Manifest.from_json(remote.read(MANIFEST_NAME).decode(), where=f"{remote.name}/{MANIFEST_NAME}")
    return RemoteRun(journal=remote.read(JOURNAL_FILE) if JOURNAL_FILE in there else None, manifest=manifest)


def bring_journal(directory: Path, repo: str) -> RemoteRun:
    """What is at `repo`; its journal is put into `directory` if it is further than the one there (or the only one)."""
    found = fetch_journal(repo)
    path = directory / JOURNAL_FILE
    here = path.read_bytes() if path.exists() else b""
    if found.journal is not None and here and found.journal.split(b"\n", 1)[0] != here.split(b"\n", 1)[0]:
        raise HubError(f"{repo} holds another run than {directory}: push to another repo, or choose another --out")
    if found.journal is not None and len(found.journal) > len(here):
        atomic_write(path, found.journal)
    return found


def open_delivery(repo: str, plan: ShardPlan, journal: Journal, *, private: bool, max_disk: int | None) -> Uploader:
    """The outbox for this run's shards; those of the journal that are not at the remote yet are handed in first.

    `max_disk` bounds the bytes of this run on this disk: the shard being written, those on their way, the journal.
    Raises `DiskFull` if it has no room for two shards (one on its way, one being written), `OutputError` if a shard is
    neither here nor there.
    """
    if max_disk is not None and max_disk < 2 * shard_file_bytes(plan) + working_bytes(journal):
        raise DiskFull(
            f"--max-disk {format_bytes(max_disk)} has no room for two shards of "
            f"{format_bytes(shard_file_bytes(plan))}: give more, or make smaller shards (--shard-tokens)"
        )
    lines = journal.path.read_bytes().splitlines(keepends=True)
    # The head alone claims the place: the journal there may name a shard only once that has arrived.
    outbox = open_outbox(repo, lines[0], private=private, max_bytes=max_disk)
    try:
        for number, shard in enumerate(journal.shards):
            path = plan.directory / shard.file
            if outbox.has(shard):
                if max_disk is not None:
                    path.unlink(missing_ok=True)
            elif path.exists():
                outbox.submit(path, shard, {JOURNAL_FILE: b"".join(lines[: number + 2])})
            else:
                raise OutputError(
                    f"{path} is missing here and at {repo}, the journal names it: start again with --overwrite and "
                    "another repo"
                )
    except BaseException:
        outbox.close()
        raise
    return outbox


def deliver(outbox: Uploader, manifest: Manifest) -> None:
    """Wait until every shard has arrived, then complete the dataset at the remote: card, and manifest last."""
    outbox.flush()
    publish(outbox.remote, manifest, manifest.to_json().encode())
