"""Repos of bare shards: `.npy` as `fineweb.py` leaves them, or llm.c and modded-nanogpt `.bin`, without a manifest.

A `.bin` shard (256 int32 of header, then the tokens) becomes a `.npy` shard on arrival. The manifest made here holds
the hashes of what arrived: nobody else says what the dataset should be.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from shardkit.dataset.folder import check_gapless
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, ShardInfo, SourceInfo
from shardkit.errors import HubError, OutputError, ShardkitWarning, UsageError
from shardkit.files import sha256_file
from shardkit.remote.download import WantedFile, download_files, replaced_files, write_manifest
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.listing import Selection
from shardkit.remote.uploader import TransferProgress

_BARE_NAME = re.compile(r"(?P<folder>(?:.*/)?)(?P<stem>[^/]+_(?P<split>[a-z]+)_(?P<index>\d{6,}))\.(?P<kind>npy|bin)")


def pull_bare(
    remote: Remote,
    remote_files: Mapping[str, RemoteFile],
    directory: Path,
    local: Manifest | None,
    selection: Selection,
    workers: int,
    progress: TransferProgress | None,
    *,
    overwrite: bool,
) -> tuple[Manifest, bool]:
    """Pull bare shards into `directory`, whose own manifest is `local`; `overwrite` removes what that one lists and is
    not among them.

    Returns the manifest made of them, and whether the remote gave a SHA-256 for each file to check it against. Warns
    (`ShardkitWarning`), for no manifest of the publisher's was there. Raises `ManifestError` for a shard that is
    missing between those to pull, unless `selection` says that gaps are meant.
    """
    wanted = bare_shards(remote.name, remote_files, selection, local)
    if not selection.allow_gaps:
        check_gapless(
            _numbers_from_to(remote_files, wanted),
            remote.name,
            "choose shards before or after the gap with --shards, or pull with --allow-gaps to go without",
        )
    unchecked = sum(not item.sha256 for item in wanted)
    warnings.warn(
        f"{remote.name} has no {MANIFEST_NAME}: nobody says what should be in it, the manifest is made here"
        + (f", and {unchecked} of {len(wanted)} files have no SHA-256 to be checked against" if unchecked else ""),
        ShardkitWarning,
        stacklevel=4,
    )
    known = [item.shard for item in wanted if item.shard.sha256]  # of the others nobody can say that they are right
    replaced = replaced_files(directory, local, known) if overwrite and local else []
    listed = {shard.file for shard in local.shards} if local and not replaced else set()
    if others := listed - {item.shard.file for item in wanted}:
        raise OutputError(
            f"{directory} also holds {min(others)}, which is not to be pulled: pull all of it, or choose another folder"
        )
    download_files(remote, directory, wanted, listed, workers, progress, replaced=replaced)
    manifest = _manifest_of(directory, wanted, remote)
    write_manifest(directory, manifest.to_json().encode())
    return manifest, not unchecked


def bare_shards(
    name: str, remote_files: Mapping[str, RemoteFile], selection: Selection, local: Manifest | None
) -> list[WantedFile]:
    """The bare shards at a remote that `selection` chooses; `name` names the remote in errors.

    Where an earlier pull of the same file made `local`, it says what the shard must be; else the remote's SHA-256 does.
    A file without one is the same only if it came from the same place.
    """
    matches = [match for file in sorted(remote_files) if (match := _BARE_NAME.fullmatch(file))]
    if not matches:
        raise HubError(
            f"{name} holds no manifest.json and no shards named PREFIX_SPLIT_000000.npy or .bin: it is not a dataset "
            "that shardkit made, nor one of bare shards"
        )
    if len({(match["folder"], match["kind"]) for match in matches}) > 1:
        raise HubError(
            f"{name} holds bare shards in several folders or formats: download the one that you want by hand"
        )
    chosen = [match for match in matches if selection.includes(match["split"], int(match["index"]))]
    if not chosen:
        splits = ", ".join(sorted({match["split"] for match in matches}))
        raise UsageError(f"{name} has no shard that --split and --shards choose; its splits are {splits}")
    pulled = local.source.options.get("bare", {}) if local and local.source else {}
    made = {shard.file: shard for shard in local.shards} if local else {}
    same_place = bool(local and local.source and local.source.id == name)
    wanted = []
    for match in chosen:
        file, size, sha256 = match[0], remote_files[match[0]].size, remote_files[match[0]].sha256
        is_same = pulled.get(file) == [size, sha256] and (sha256 or same_place)
        shard = made.get(f"{match['stem']}.npy") if is_same else None
        wanted.append(WantedFile(shard or _expected(match, size, sha256), file, size, sha256))
    return wanted


def _numbers_from_to(remote_files: Mapping[str, RemoteFile], wanted: Sequence[WantedFile]) -> list[int]:
    """The numbers of the shards at the remote from the first of those that are wanted to the last, of any split."""
    numbers = [item.shard.index for item in wanted]
    there = (int(match["index"]) for file in remote_files if (match := _BARE_NAME.fullmatch(file)))
    return [number for number in there if min(numbers) <= number <= max(numbers)]


def _expected(match: re.Match[str], size: int, sha256: str) -> ShardInfo:
    """What is known of a bare shard before it has come: of one that is a `.bin` file there, only its name."""
    if match["kind"] == "bin":
        size, sha256 = 0, ""
    return ShardInfo(
        file=f"{match['stem']}.npy",
        split=match["split"],
        index=int(match["index"]),
        tokens=0,
        documents=0,
        first_document=0,
        sha256=sha256,
        bytes=size,
    )


def _manifest_of(directory: Path, wanted: Sequence[WantedFile], remote: Remote) -> Manifest:
    """The manifest of the pulled bare shards: hashes of what arrived, no tokenizer, documents not counted."""
    manifest, files = Manifest.from_shards(directory), {item.shard.file for item in wanted}
    shards = tuple(
        dataclasses.replace(shard, sha256=sha256_file(directory / shard.file), edges="")
        for shard in manifest.shards
        if shard.file in files
    )
    source = SourceInfo(
        id=remote.name,
        revision=remote.revision or None,
        options={"bare": {item.file: [item.size, item.sha256] for item in wanted}},
    )
    return dataclasses.replace(manifest, shards=shards, source=source)
