"""The places a dataset is pushed to and pulled from, behind one small interface.

To add a place: write a class with the methods of `Remote` beside `hub.py`, and choose it in `address.py:open_remote`.

`HubRemote` is a dataset repo, and `BucketRemote` a bucket, through `huggingface_hub`; `FsspecRemote` is everything else
that fsspec reaches: a mounted drive, S3, GCS. All take shards in two steps, `upload` (the bytes) and `commit` (the
acknowledgement, with small files and deletions), so that the push after a killed one knows what has arrived. All are
written only by whoever has the claim (`claim.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from shardkit.dataset.folder import PUSHING_FILE
from shardkit.dataset.manifest import ShardInfo
from shardkit.errors import HubError
from shardkit.files import SMALL_BYTES, format_bytes

CLAIM_FILE = PUSHING_FILE
Item = TypeVar("Item")


class PlaceChanged(HubError):
    """Somebody else has written to the place since it was looked at: look again."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that the remote shows: its bytes, and the SHA-256 that the remote vouches for ("" if it knows none)."""

    size: int
    sha256: str


def check_small(name: str, file: str, size: int) -> None:
    """Refuse to read the whole of a file that is no small one, before anything of it has come. Raises `HubError`."""
    if size > SMALL_BYTES:
        raise HubError(
            f"{name}: {file} has {format_bytes(size)} there, more than {format_bytes(SMALL_BYTES)}: it is not what "
            "shardkit writes, its owner must push it again"
        )


def by_folder(listing: Mapping[str, Item], above: str) -> dict[str, dict[str, Item]]:
    """A `listing` of all below the folder `above`, by path: taken apart by the folders that are directly in it."""
    folders: dict[str, dict[str, Item]] = {}
    for path, item in listing.items():
        name, _, file = path.removeprefix(f"{above}/").partition("/")
        if file:
            folders.setdefault(name, {})[path] = item
    return folders


class Remote(Protocol):
    """A place for one dataset. Every method raises `HubError` or `AuthError`, and tries again what may pass.

    `name` is for people and the card. `commit_files` is how many shards a commit should hold. `has_commits` says
    whether there are revisions and tags; where there are none, hashes come from a record of our own. Setting `stopping`
    cuts the waits between tries, and downloads in progress.
    """

    name: str
    commit_files: int
    has_commits: bool
    stopping: threading.Event

    @property
    def revision(self) -> str:
        """The commit that `files` saw, or that the last `commit` made; "" where there is no such thing."""

    @property
    def local_folder(self) -> Path | None:
        """The folder, if it is one of this machine."""

    @property
    def default_folder(self) -> str:
        """The folder name that a pull takes if it is given none."""

    def exists(self) -> bool:
        """Whether there is such a place; a folder that is still to be made is one, and lists nothing."""

    def create(self, *, private: bool) -> None:
        """Make the place, if there is none. Refuses `private` for one that is public."""

    def files(self, listed: Any = None) -> dict[str, RemoteFile]:
        """The files at the remote now, by name relative to the dataset. With `listed`, which `subfolders` gave for this
        very folder, no call is made."""

    def subfolders(self, folder: str) -> dict[str, Any]:
        """The folders in `folder`, by name; none where there is no such folder. With each comes what was listed of it,
        for `files` of a remote at it; None where nothing was."""

    def read(self, file: str) -> bytes:
        """The bytes of a small file, one of at most `SMALL_BYTES`."""

    def fetch(self, file: str, folder: Path, *, again: bool) -> tuple[Path, str]:
        """Download `file` into `folder`; its path and SHA-256. `again` distrusts every copy on this machine."""

    def claimed_by(self) -> bytes | None:
        """The mark in the claim file; None if there is none."""

    def claim(self, mark: bytes, held: bytes | None, small: Mapping[str, bytes | None], message: str) -> None:
        """Put `mark` into the claim file in place of `held`, and write the `small` files as `commit` does.

        Raises `PlaceChanged` if the place is not as the last `files` and `claimed_by` saw it. From now on `upload` and
        `commit` raise `HubError` once the place has another mark, or none.
        """

    def release(self) -> None:
        """Take back a claim that `claim` may have made before it raised `PlaceChanged`."""

    def discard(self, shards: Sequence[ShardInfo]) -> None:
        """Forget the bytes of `shards`, which are served wrong: the next `upload` sends them, whatever is there."""

    def prepare(self, files: Sequence[tuple[Path, ShardInfo]]) -> None:
        """Ask about shards that `upload` will send, at most 100 at once: one call for many where there is one."""

    def upload(self, path: Path, shard: ShardInfo) -> str:
        """Send the bytes of a shard. Thread-safe; not acknowledged until `commit`. Returns a receipt, with which
        another process can commit it (`received`)."""

    def received(self, shard: ShardInfo, receipt: str) -> None:
        """Note that another process has sent a shard, for which its `upload` returned `receipt`: `commit` may name it.
        Raises `HubError` where the bytes would have to be here."""

    def commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> None:
        """Acknowledge uploaded `shards`, then write the `small` files, by name, in their order (None deletes one).

        When it returns, the place was still ours; with nothing to write it makes sure of that alone.
        """

    def tag(self, name: str, *, overwrite: bool) -> None:
        """Give the last commit a name."""
