"""`pull`: a dataset from a remote into a folder, in parallel, resumable, every file checked against its SHA-256.

A file gets its final name only when its hash was checked, and `manifest.json` comes last: its presence means that the
pull is complete. What is in the folder already and right is never fetched again.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from shardkit.arguments import place_text, user_path, whole_numbers
from shardkit.bars import TransferBar, shown
from shardkit.dataset.folder import remove_half_written
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, Manifest
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, write_tokenizer_files
from shardkit.errors import HubError, ManifestError, OutputError, ShardError, ShardkitWarning, UsageError
from shardkit.files import read_small_file, remove_tree, write_error
from shardkit.locks import hold_lock
from shardkit.remote.address import hint_at_folder, open_remote
from shardkit.remote.bare_shards import pull_bare
from shardkit.remote.download import WantedFile, download_files, fetch_tokenizer, replaced_files, write_manifest
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.listing import Selection, check_listing, names_secrets, published
from shardkit.remote.uploader import TransferProgress


class Pulled(NamedTuple):
    """What a pull did: the folder's manifest, and whether each of its files was checked against a SHA-256 that the
    publisher's manifest or the remote gave."""

    manifest: Manifest
    verified: bool


def pull(
    repo: str | os.PathLike[str],
    directory: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    split: str | None = None,
    shards: tuple[int, int] | None = None,
    allow_gaps: bool = False,
    overwrite: bool = False,
    workers: int = 8,
    progress: TransferProgress | bool | None = True,
) -> Manifest:
    """Download the dataset at `repo` into `directory` (default: the last part of its name) and return its manifest.

    `split` and `shards`, a half-open range of shard indices, choose a part: then `manifest.json` lists that part and
    what earlier pulls of the same dataset fetched, and a later pull of more fetches only the rest. Safe to repeat after
    any failure; every file in the folder is hashed again, so a damaged one is found and fetched anew.

    A repo of bare `.npy` or llm.c `.bin` shards without a manifest is pulled too, with a warning: `.bin` files become
    `.npy` shards, and the manifest is made here. A shard that is missing between them is refused, as a loader would
    read on over the hole; `allow_gaps` goes without it.

    A folder that holds another dataset is refused; `overwrite` removes that one, as far as its manifest names it, once
    it is known what comes in its place and that there is room for it.

    A bar says how far it is; `progress=False` silences it, and `progress(file, done_bytes, total_bytes)` is called in
    its place.

    Raises `HubError`, `AuthError`, `DiskFull`, `ManifestError`, `OutputError` (the folder holds another dataset),
    `UsageError`.

    >>> pushed = push("out", "./far")
    >>> manifest = pull("./far", "copy", split="val")
    >>> [shard.file for shard in manifest.shards]
    ['sample_val_000000.npy']
    >>> pull("./far", "copy") == Manifest.load("out")  # fetches the other shards
    True
    """
    return pull_checked(
        repo,
        directory,
        revision=revision,
        selection=Selection(split, shards, allow_gaps),
        overwrite=overwrite,
        workers=workers,
        progress=progress,
    ).manifest


def pull_checked(
    repo: str | os.PathLike[str],
    directory: str | os.PathLike[str] | None = None,
    *,
    revision: str | None,
    selection: Selection,
    overwrite: bool = False,
    workers: int = 8,
    progress: TransferProgress | bool | None,
) -> Pulled:
    """`pull`, and whether the files were verified."""
    repo = place_text(repo)
    with shown(progress, lambda: TransferBar("pull")) as tell, hint_at_folder(repo):
        workers = whole_numbers(or_none=False, workers=workers)[0]
        remote = open_remote(repo, revision=revision)
        remote_files = remote.files()
        directory = user_path(directory) if directory is not None else Path(remote.default_folder)
        if remote.local_folder == directory.resolve() and remote_files:
            raise UsageError(f"{repo} is the folder to pull into itself: give another folder")
        dataset = published(remote, remote_files)
        with _only_pull(directory):
            local = _local_manifest(directory, overwrite=overwrite)
            if dataset is None:
                return Pulled(
                    *pull_bare(remote, remote_files, directory, local, selection, workers, tell, overwrite=overwrite)
                )
            text, whole = dataset
            replaced = replaced_files(directory, local, whole.shards) if overwrite and local else []
            local = None if replaced else local
            part = _with_local(whole, selection.part_of(whole, remote.name), local, directory)
            wanted = [WantedFile.of(shard) for shard in part.shards]
            check_listing(remote, wanted, remote_files)
            listed = {shard.file for shard in local.shards} if local else set()
            download_files(remote, directory, wanted, listed, workers, tell, replaced=replaced)
            part.check_files(directory)
            _fetch_tokenizer(remote, remote_files, directory, part)
            as_published = part is whole and not names_secrets(text, whole)
            write_manifest(directory, text if as_published else part.to_json().encode())
        return Pulled(dataclasses.replace(part, directory=directory), all(shard.sha256 for shard in part.shards))


def _fetch_tokenizer(remote: Remote, files: Mapping[str, RemoteFile], directory: Path, manifest: Manifest) -> None:
    """Fetch the dataset's own `tokenizer.json`, unless it is here. Warns (`ShardkitWarning`) if another is here."""
    if not write_tokenizer_files(directory, fetch_tokenizer(remote, files, directory, manifest)):
        warnings.warn(
            f"{directory} holds another {TOKENIZER_NAME} than this dataset's, which stays: move it away and pull "
            "again to have the dataset's own",
            ShardkitWarning,
            stacklevel=4,
        )


def _local_manifest(directory: Path, *, overwrite: bool) -> Manifest | None:
    """The folder's own manifest. With `overwrite` a damaged one counts as none: each shard that is right stays, whoever
    it is of, and the new manifest replaces it at the end. Raises `OutputError`."""
    path = directory / MANIFEST_NAME
    try:
        text = read_small_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(
            f"cannot read {path}: {error.strerror or error}; pull into another folder, or see to that file first"
        ) from None
    try:
        return Manifest.from_json(text, where=str(path))
    except ManifestError as error:
        if not overwrite:
            raise OutputError(f"{error}; or delete it, and the pull keeps every shard that is right") from None
        if b'"tokens_per_shard"' in text:
            return None
        raise OutputError(
            f"{path} is none that shardkit wrote, and --overwrite replaces nothing else: move it away, or pull into "
            "another folder"
        ) from None


def _with_local(whole: Manifest, part: Manifest, local: Manifest | None, directory: Path) -> Manifest:
    """`part` and what the folder's own manifest lists; refuses a folder that holds another dataset."""
    if local is None:
        return part
    ours = {(s.file, s.sha256) for s in whole.shards}
    for shard in local.shards:
        if (shard.file, shard.sha256) not in ours:
            raise OutputError(
                f"{directory} holds another dataset ({shard.file} is not the one to pull): pull into another folder, "
                "or `shardkit pull --overwrite` to replace what is there"
            )
    listed = {s.file for s in (*part.shards, *local.shards)}
    if len(listed) == len(whole.shards):
        return whole
    return dataclasses.replace(whole, shards=tuple(s for s in whole.shards if s.file in listed))


@contextmanager
def _only_pull(directory: Path) -> Iterator[None]:
    """Hold the folder: two pulls into one would delete each other's unfinished files."""
    work = directory / WORK_DIR
    busy = f"another pull into {directory} is running: wait for it, or choose another folder"
    try:
        with hold_lock(work / "pull.lock", busy=busy, remove=True):
            remove_half_written(directory)
            try:
                yield
            finally:
                if (directory / MANIFEST_NAME).exists():
                    remove_tree(work / "incoming")
    except OSError as error:  # of the folder: the remote's are `HubError`s
        raise write_error(error, Path(error.filename or directory), 0) from None
    except ShardError as error:
        raise HubError(f"{error}; what the remote holds is not a dataset that shardkit can use") from None
    finally:
        with suppress(OSError):  # not there, or not empty
            work.rmdir()
