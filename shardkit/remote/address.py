"""What a user calls a place: `user/name` on the Hub, a folder, or a URL that fsspec reaches."""

from __future__ import annotations

import re
from pathlib import Path

from shardkit.errors import UsageError
from shardkit.remote.interface import Remote

BUCKETS = "hf://buckets/"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LOCAL_PATH = re.compile(r"[./~\\]|[A-Za-z]:[\\/]")


def is_remote(place: object) -> bool:
    """Whether `place` is to be reached through a remote: a URL, or `user/name` where no such folder is here."""
    if not isinstance(place, str):
        return False
    return "://" in place or (_HUB_NAME.fullmatch(place) is not None and not Path(place).exists())


def open_remote(repo: str, *, revision: str | None = None) -> Remote:
    """The remote that REPO names: `user/name`, `hf://datasets/user/name[@revision]`, `hf://buckets/user/name/folder`, a
    path, `file://`, `s3://`, ...

    Nothing is asked over the network. Raises `UsageError` for what is none of these.
    """
    from shardkit.remote.hub import HubRemote
    from shardkit.remote.storage import FsspecRemote

    name, revision = hub_repo(repo, revision)
    if repo.startswith(BUCKETS):
        from shardkit.remote.bucket import BucketRemote

        return BucketRemote(repo)
    return HubRemote(name, revision) if name else FsspecRemote(repo)


def hub_repo(repo: str, revision: str | None) -> tuple[str, str | None]:
    """The `user/name` and revision that REPO names, ("", None) for a folder or URL. Raises `UsageError`."""
    if repo.startswith("hf://") and not repo.startswith(BUCKETS):
        kind, _, name = repo.removeprefix("hf://").partition("/")
        name, _, pinned = name.partition("@")
        if kind != "datasets" or not _HUB_NAME.fullmatch(name):
            raise UsageError(f"{repo} is not a dataset repo: write hf://datasets/user/name, or hf://buckets/user/name")
        if pinned and revision not in (None, pinned):
            raise UsageError(f"{repo} names one revision and --revision another ({revision}): give one")
        return name, pinned or revision
    if not _LOCAL_PATH.match(repo) and "://" not in repo:
        if not _HUB_NAME.fullmatch(repo):
            raise UsageError(f"{repo!r} is neither a Hub repo nor a folder: write user/name, or ./{repo or 'folder'}")
        return repo, revision
    if revision is not None:
        raise UsageError(f"{repo} has no revisions, only Hub repos do: leave --revision out")
    return "", None
