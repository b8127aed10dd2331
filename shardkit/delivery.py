"""`tokenize --push`: finished shards leave for the remote while the next are made; the run can move to a new machine.

The journal travels with the shards. On a machine that has nothing, the remote's journal says where the stream goes on;
it never names a shard that is not there.
"""

from __future__ import annotations

from pathlib import Path

from shardkit.assembler import Plan, shard_file_bytes, working_bytes
from shardkit.errors import DiskFull, HubError, OutputError
from shardkit.files import atomic_write, format_bytes
from shardkit.hub import RemoteRun, fetch_journal, open_outbox, publish
from shardkit.journal import JOURNAL_NAME, WORK_DIR, Journal
from shardkit.manifest import Manifest
from shardkit.outbox import Outbox


def bring_journal(directory: Path, repo: str) -> RemoteRun:
    """What is at `repo`; its journal is put into `directory` if it is further than the one there (or the only one)."""
    found = fetch_journal(repo)
    path = directory / WORK_DIR / JOURNAL_NAME
    here = path.read_bytes() if path.exists() else b""
    if found.journal is not None and here and found.journal.split(b"\n", 1)[0] != here.split(b"\n", 1)[0]:
        raise HubError(f"{repo} holds another run than {directory}: push to another repo, or choose another --out")
    if found.journal is not None and len(found.journal) > len(here):
        atomic_write(path, found.journal)
    return found


def open_delivery(repo: str, plan: Plan, journal: Journal, *, private: bool, max_disk: int | None) -> Outbox:
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
                outbox.submit(path, shard, b"".join(lines[: number + 2]))
            else:
                raise OutputError(
                    f"{path} is missing here and at {repo}, the journal names it: start again with --overwrite and "
                    "another repo"
                )
    except BaseException:
        outbox.close()
        raise
    return outbox


def deliver(outbox: Outbox, manifest: Manifest) -> None:
    """Wait until every shard has arrived, then complete the dataset at the remote: card, and manifest last."""
    outbox.flush()
    publish(outbox.remote, manifest, manifest.to_json().encode())
