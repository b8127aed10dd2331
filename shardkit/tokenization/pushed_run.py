"""What an earlier `tokenize --push` left at its place: to be gone on with, or, if it made nothing, to be taken away."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardkit.dataset.journal import JOURNAL_FILE, Journal, abandoned_run
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import HubError, ShardkitError
from shardkit.remote.address import open_remote
from shardkit.remote.claim import claim_for, holds_data, mark
from shardkit.remote.interface import CLAIM_FILE, Remote, RemoteFile
from shardkit.remote.listing import published, read_journal
from shardkit.tokenization.output_folder import OwnFolder

_LEAVE_SECONDS = 10.0  # for a place that does not answer, when the run has failed for another reason


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteRun:
    """What an earlier `tokenize --push` left at `remote`, which lists `files`: the lines that hold of the `journal` of
    an unfinished run, the `manifest` of a finished one, both of a finished part, or neither (None)."""

    remote: Remote
    files: Mapping[str, RemoteFile]
    journal: bytes | None
    manifest: Manifest | None


def fetch_journal(repo: str, *, revision: str | None = None) -> RemoteRun:
    """Open `repo`, list it, and read what a run left there. A repo that does not exist holds nothing.

    Every shard that the journal names is at the remote. Raises `OutputError` for a journal of which nothing holds.
    """
    remote = open_remote(repo, revision=revision)
    files = remote.files() if remote.exists() else {}
    finished = published(remote, files) if MANIFEST_NAME in files else None
    journal = b"".join(read_journal(remote, files).lines) if JOURNAL_FILE in files else None
    return RemoteRun(remote=remote, files=files, journal=journal, manifest=finished[1] if finished else None)


def fetch_journal_for(repo: str, directory: Path, identity: Mapping[str, Any]) -> RemoteRun:
    """`fetch_journal`, once another run of `directory`, whose lock is ours, has left the place if it made nothing."""
    run = fetch_journal(repo)
    head = abandoned_run(directory, identity)
    if head is None or not (JOURNAL_FILE in run.files or CLAIM_FILE in run.files):
        return run
    leave_place(run.remote, head)
    return fetch_journal(repo)


def leave_place(remote: Remote, head: bytes) -> None:
    """Take the claim and the journal of the run that begins with `head` away from a place to which it sent nothing."""
    ours = run_mark(head)

    def end(files: Mapping[str, RemoteFile], held: bytes | None) -> dict[str, bytes | None] | None:
        if held != ours or any(holds_data(name) for name in files):
            return None
        if JOURNAL_FILE in files and remote.read(JOURNAL_FILE) != head:
            return None
        return {JOURNAL_FILE: None, CLAIM_FILE: None}

    claim_for(remote, ours, end)


@contextmanager
def place_left_if_nothing_is_made(repo: str, journal: Journal, run: RemoteRun, folder: OwnFolder) -> Iterator[None]:
    """Where the block fails before the run has made a shard, leave the place as `run` found it, unless it was claimed
    then: by a run that was killed, or one like this that is at work. Where it is not left, `folder` keeps the journal,
    for `fetch_journal_for`."""
    keep, folder.keep_journal = folder.keep_journal, True
    try:
        yield
    except HubError:
        raise  # who refused, or does not answer, would not be asked in vain
    except BaseException:
        if not journal.shards and CLAIM_FILE not in run.files:
            with suppress(ShardkitError):
                remote = open_remote(repo)  # the one of the run has been stopped
                giving_up = threading.Timer(_LEAVE_SECONDS, remote.stopping.set)
                giving_up.daemon = True  # also where a second Ctrl-C ends this
                giving_up.start()
                try:
                    leave_place(remote, journal.lines[0])
                    folder.keep_journal = keep
                finally:
                    giving_up.cancel()
        raise


def run_mark(head: bytes) -> bytes:
    """The mark of the run whose journal begins with `head`."""
    return mark(run=hashlib.sha256(head).hexdigest())
