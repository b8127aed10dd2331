"""A dataset whose parts are gone, because they were merged: where it lies, and that nothing is left to do."""

from __future__ import annotations

import os
from pathlib import Path

from shardkit.arguments import place_text
from shardkit.dataset.folder import MANIFEST_NAME, PARTS_FOLDER, PUSHED_TO_FILE, pushed_to
from shardkit.dataset.manifest import Manifest
from shardkit.errors import OutputError, ShardkitError
from shardkit.redaction import public_address
from shardkit.remote.address import open_remote
from shardkit.remote.claim import is_complete
from shardkit.remote.listing import published
from shardkit.tokenization.live_push import named_place
from shardkit.tokenization.merge_push import finished_at
from shardkit.tokenization.part_folders import NoParts


def merged_before(
    repo: str | None, directory: Path, push: str | os.PathLike[str] | None, error: ShardkitError
) -> Manifest | None:
    """For a merge that failed with `error`: the manifest of its dataset, if that is finished already, in `directory` or
    at the place `push`, and the parts were removed. None if this is not why it failed.

    Raises `OutputError`, which says where the dataset is, if it is elsewhere; `HubError`.
    """
    if repo is None:
        return _of_folder(directory, push)
    return _of_place(repo, directory, push) if isinstance(error, NoParts) else None


def _of_folder(directory: Path, push: str | os.PathLike[str] | None) -> Manifest | None:
    ours = Manifest.load(directory) if (directory / MANIFEST_NAME).exists() else None
    if push is None:
        return ours
    there = None if any((directory / PARTS_FOLDER).glob("*-of-*")) else pushed_to(directory)
    repo = place_text(push)
    if ours is None:
        return finished_at(repo) if there is not None and there == named_place(open_remote(repo)) else None
    theirs = finished_at(repo)
    if theirs is not None and theirs.fingerprint == ours.fingerprint:
        return theirs
    raise OutputError(f"{directory} holds a finished dataset already: `shardkit push {directory} REPO` sends it")


def _of_place(repo: str, directory: Path, push: str | os.PathLike[str] | None) -> Manifest | None:
    remote = open_remote(repo)
    files = remote.files()
    if PUSHED_TO_FILE in files:
        remote = open_remote(remote.read(PUSHED_TO_FILE).decode(errors="replace").strip())
        files = remote.files()
    whole = published(remote, files) if is_complete(files) else None
    if whole is None:
        return None
    made = finished_at(place_text(push)) if push is not None else _of_folder(directory, None)
    if made is not None and made.fingerprint == whole[1].fingerprint:
        return made
    raise OutputError(
        f"{public_address(repo)} holds no parts, the whole dataset lies at {remote.name}: `shardkit pull {remote.name} "
        "DIR` fetches it"
    )
