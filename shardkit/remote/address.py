"""What a user calls a place: `user/name` on the Hub, a folder, or a URL that fsspec reaches."""

from __future__ import annotations

import re
from pathlib import Path

from shardkit.errors import UsageError
from shardkit.hub_address import HUB_NAME, HubAddress, parse_address, parse_short
from shardkit.remote.interface import Remote

_LOCAL_PATH = re.compile(r"[./~\\]|[A-Za-z]:[\\/]")


def is_remote(place: object) -> bool:
    """Whether `place` is to be reached through a remote: a URL, or `user/name` where no such folder is here."""
    if not isinstance(place, str):
        return False
    return "://" in place or (HUB_NAME.fullmatch(place) is not None and not Path(place).exists())


def open_remote(repo: str, *, revision: str | None = None) -> Remote:
    """The remote that REPO names: `user/name`, `hf://datasets/user/name[@revision]`, the address of its page, a path,
    `file://`, `s3://`, ...

    Nothing is asked over the network. Raises `UsageError` for what is none of these.
    """
    from shardkit.remote.hub import HubRemote
    from shardkit.remote.storage import FsspecRemote

    name, revision = hub_repo(repo, revision)
    return HubRemote(name, revision) if name else FsspecRemote(repo)


def hub_repo(repo: str, revision: str | None) -> tuple[str, str | None]:
    """The `user/name` and revision that REPO names, ("", None) for a folder or URL. Raises `UsageError`."""
    if "://" in repo and (address := parse_address(repo)) is not None:
        return _whole(address, repo), address.revision_with(revision)
    if repo.startswith("hf://"):
        raise UsageError(f"{repo} is not a dataset repo: write hf://datasets/user/name (no bucket, no model)")
    if not _LOCAL_PATH.match(repo) and "://" not in repo:
        short = parse_short(repo)
        if short is None:
            raise UsageError(f"{repo!r} is neither a Hub repo nor a folder: write user/name, or ./{repo or 'folder'}")
        return _whole(short, repo), revision
    if revision is not None:
        raise UsageError(f"{repo} has no revisions, only Hub repos do: leave --revision out")
    return "", None


def _whole(address: HubAddress, repo: str) -> str:
    """The repo's name. Raises `UsageError` if the address is one of a part: a place is a whole repo."""
    if address.path:
        hint = f"; if it is a folder here, ./{repo}" if "://" not in repo else ""
        raise UsageError(
            f"{repo} is a part of the repo {address.name}, and a place is a whole one: write {address.name}{hint}; or "
            f"fetch the part with `hf download {address.name} --repo-type dataset --include '{address.path}/*'`"
        )
    return address.name
