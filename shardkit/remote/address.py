"""What a user calls a place: `user/name` on the Hub (or a folder in it), a folder, or a URL that fsspec reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shardkit.arguments import check_texts
from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.dataset.shards import SHARD_NAME
from shardkit.errors import AuthError, UsageError
from shardkit.hub_address import HubAddress, parse_address, parse_short
from shardkit.remote.interface import Remote

BUCKETS = "hf://buckets/"
_LOCAL_PATH = re.compile(r"[./~\\]|[A-Za-z]:[\\/]")


def is_remote(place: object) -> bool:
    """Whether `place` is to be reached through a remote: a URL, or `user/name[/folder]` where it is no folder here."""
    if not isinstance(place, str):
        return False
    if "://" in place:
        return True
    return not place.startswith((".", "~")) and parse_short(place) is not None and not Path(place).exists()


def open_remote(repo: str, *, revision: str | None = None) -> Remote:
    """The remote that REPO names: `user/name[/folder]`, `hf://datasets/user/name[@revision][/folder]`, the address of
    such a page on the Hub, `hf://buckets/user/name[/folder]`, a path, `file://`, `s3://`, ...

    Nothing is asked over the network. Raises `UsageError` for what is none of these.
    """
    from shardkit.remote.hub import HubRemote
    from shardkit.remote.storage import FsspecRemote

    check_texts(revision=revision)
    address = hub_place(repo, revision)
    if repo.startswith(BUCKETS):
        from shardkit.remote.bucket import BucketRemote

        return BucketRemote(repo)
    return HubRemote(address) if address else FsspecRemote(repo)


def hub_place(repo: str, revision: str | None) -> HubAddress | None:
    """The dataset repo, revision and folder in it that REPO names; None for a bucket, folder or URL. Raises
    `UsageError`."""
    if "://" in repo and (address := parse_address(repo)) is not None:
        return _folder(replace(address, revision=address.revision_with(revision)))
    if repo.startswith("hf://") and not repo.startswith(BUCKETS):
        raise UsageError(f"{repo} is not a dataset repo: write hf://datasets/user/name, or hf://buckets/user/name")
    if not _LOCAL_PATH.match(repo) and "://" not in repo:
        short = parse_short(repo)
        if short is None:
            raise UsageError(f"{repo!r} is neither a Hub repo nor a folder: write user/name, or ./{repo or 'folder'}")
        return _folder(replace(short, revision=revision))
    if revision is not None:
        raise UsageError(f"{repo} has no revisions, only Hub repos do: leave --revision out")
    return None


def place_below(repo: str, folder: str) -> str:
    """What `folder` of the place REPO is called. Raises `UsageError`."""
    if (address := hub_place(repo, None)) is None:
        return f"{repo.rstrip('/')}/{folder}"
    return replace(address, path="/".join(filter(None, (address.path, folder)))).url


@contextmanager
def hint_at_folder(repo: str | None) -> Iterator[None]:
    """While the block runs, where the Hub refuses REPO, say how it is written as a path, if it begins as a folder here
    does."""
    try:
        yield
    except AuthError as error:
        if repo is None or not is_remote(repo) or "://" in repo or not Path(repo.partition("/")[0]).is_dir():
            raise
        raise AuthError(f"{error}; if a folder here is meant, write ./{repo}") from None


def _folder(address: HubAddress) -> HubAddress:
    """`address`, if it can be a dataset's folder. Raises `UsageError` for a file or a glob."""
    last = address.path.rpartition("/")[2]
    if last == MANIFEST_NAME or SHARD_NAME.match(last) or any(c in address.path for c in "*?["):
        raise UsageError(f"{address.url} names files: a place is a whole dataset, name its repo or folder")
    return address
