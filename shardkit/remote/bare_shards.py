"""Repos of bare shards: `.npy` as `fineweb.py` leaves them, or llm.c and modded-nanogpt `.bin`, without a manifest.

A `.bin` shard (256 int32 of header, then the tokens) becomes a `.npy` shard on arrival. Sizes and headers are checked;
nobody vouched for the content, so the manifest made here holds the hashes of what arrived.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, SourceInfo
from shardkit.errors import HubError, OutputError, UsageError
from shardkit.files import sha256_file
from shardkit.remote.download import WantedFile, bring_all, finish_folder
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.listing import Selection
from shardkit.remote.uploader import TransferProgress


def pull_bare(
    remote: Remote,
    there: Mapping[str, RemoteFile],
    directory: Path,
    local: Manifest | None,
    selection: Selection,
    workers: int,
    progress: TransferProgress | None,
) -> Manifest:
    wanted, hashes = bare_shards(remote.name, there, selection.takes, local)
    warnings.warn(
        f"{remote.name} has no {MANIFEST_NAME}: hashes were not checked by the publisher, the manifest is made here",
        stacklevel=3,
    )
    known = {s.file: s for s in local.shards} if local else {}
    if local is not None and (other := set(known) - {item.target for item in wanted}):
        raise OutputError(
            f"{directory} also holds {min(other)}, which is not to be pulled: pull all of it, or choose another folder"
        )
    bring_all(remote, directory, wanted, hashes, known, workers, progress)
    manifest = bare_manifest(directory, wanted, remote.name, remote.revision)
    finish_folder(directory, manifest.to_json().encode())
    return manifest


_BARE_NAME = re.compile(r"(?P<folder>(?:.*/)?)(?P<stem>[^/]+_(?P<split>[a-z]+)_(?P<index>\d{6,}))\.(?P<kind>npy|bin)")


def bare_shards(
    name: str, there: Mapping[str, RemoteFile], takes: Callable[[str, int], bool], local: Manifest | None
) -> tuple[list[WantedFile], dict[str, str]]:
    """The bare shards at a remote that `takes(split, index)` chooses, and the SHA-256 that their local files must have.

    Local hashes come from the remote, or from the manifest that an earlier pull of the same files made.
    """
    found = [(match, file) for file in sorted(there) if (match := _BARE_NAME.fullmatch(file))]
    if not found:
        raise HubError(
            f"{name} holds no manifest.json and no shards named PREFIX_SPLIT_000000.npy or .bin: it is not a dataset "
            "that shardkit made, nor one of bare shards"
        )
    if len({(match["folder"], match["kind"]) for match, _ in found}) > 1:
        raise HubError(
            f"{name} holds bare shards in several folders or formats: download the one that you want by hand"
        )
    wanted = [
        WantedFile(file, f"{match['stem']}.npy", there[file].size, there[file].sha256)
        for match, file in found
        if takes(match["split"], int(match["index"]))
    ]
    if not wanted:
        splits = ", ".join(sorted({match["split"] for match, _ in found}))
        raise UsageError(f"{name} has no shard that --split and --shards choose; its splits are {splits}")
    before = local.source.options.get("bare", {}) if local and local.source else {}
    made = {shard.file: shard.sha256 for shard in local.shards} if local else {}
    hashes = {}
    for item in wanted:
        if before.get(item.file) == [item.size, item.sha256]:
            hashes[item.target] = made.get(item.target, "")
        elif not item.is_bin:
            hashes[item.target] = item.sha256
    return wanted, hashes


def bare_manifest(directory: Path, wanted: Sequence[WantedFile], name: str, revision: str) -> Manifest:
    """The manifest of the pulled bare shards: hashes of what arrived, no tokenizer, documents not counted."""
    manifest, targets = Manifest.from_shards(directory), {item.target for item in wanted}
    shards = tuple(
        dataclasses.replace(shard, sha256=sha256_file(directory / shard.file), edges="")
        for shard in manifest.shards
        if shard.file in targets
    )
    source = SourceInfo(
        id=name, revision=revision or None, options={"bare": {item.file: [item.size, item.sha256] for item in wanted}}
    )
    return dataclasses.replace(manifest, shards=shards, source=source)
