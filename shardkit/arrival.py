"""What a remote says it holds, and files that come from it right: shared by `pull` and the streaming cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np

from shardkit.bare import Wanted, bin_to_npy
from shardkit.errors import HubError, ManifestError
from shardkit.journal import acknowledged
from shardkit.manifest import MANIFEST_NAME, Manifest, SourceInfo
from shardkit.remotes import JOURNAL_NAME, WORK_FOLDER, Remote, RemoteFile
from shardkit.shards import open_shard, shard_header

FETCHES = 3  # of one file, while it arrives with a wrong hash


def published(remote: Remote, there: Mapping[str, RemoteFile]) -> tuple[bytes, Manifest] | None:
    """The manifest at the remote, as bytes and parsed; None for a repo of bare shards. Raises for half a dataset."""
    if MANIFEST_NAME in there:
        text = remote.read(MANIFEST_NAME)
        try:
            return text, Manifest.from_json(text.decode(), where=f"{remote.name}/{MANIFEST_NAME}")
        except UnicodeDecodeError as error:
            raise ManifestError(f"{remote.name}/{MANIFEST_NAME} is not text ({error}): push it again") from error
    if not there:
        raise HubError(f"{remote.name} holds nothing: check the name, or push to it first")
    if any(name.startswith(f"{WORK_FOLDER}/") for name in there):
        raise HubError(
            f"{remote.name} is unfinished, its {MANIFEST_NAME} has not come yet: wait, or run the push (or the "
            "`tokenize --push`) again to its end, then pull"
        )
    return None


def published_so_far(remote: Remote, there: Mapping[str, RemoteFile]) -> Manifest:
    """The shards that a running `tokenize --push` has brought and acknowledged, as a manifest of their own.

    Tokenizer and source files are not known yet. Raises `HubError` if there is no such run, or no shard yet.
    """
    journal = remote.read(JOURNAL_NAME)
    identity, named = acknowledged(journal, where=f"{remote.name}/{JOURNAL_NAME}")
    # a folder was listed a moment before its journal was read
    shards = tuple(takewhile(lambda s: s.file in there and there[s.file].size == s.bytes, named))
    if not shards:
        raise HubError(
            f"{remote.name} is still being written and holds no finished shard yet: wait until `tokenize --push` there "
            "has sent the first ones"
        )
    source = SourceInfo(
        id=str(identity.get("source")), config=identity.get("config"), split=identity.get("split"),
        revision=identity.get("revision"), text_field=identity.get("text field"),
    )  # fmt: skip
    first, per_shard = shards[0], max(s.tokens for s in shards)
    wide = first.bytes - len(shard_header(first.tokens, np.dtype("<u4"))) == 4 * first.tokens
    manifest = Manifest(dtype="uint32" if wide else "uint16", tokens_per_shard=per_shard, shards=shards, source=source)
    return Manifest.from_json(manifest.to_json(), where=f"{remote.name}/{JOURNAL_NAME}")  # with its checks


def check_listing(remote: Remote, wanted: Sequence[Wanted], there: Mapping[str, RemoteFile]) -> None:
    """Find a repo that is not what its manifest says before anything is downloaded."""
    for item in wanted:
        found = there.get(item.file)
        if found is None or found.size != item.size or (item.sha256 and found.sha256 not in ("", item.sha256)):
            state = "is not there" if found is None else f"has {found.size:,} bytes or another SHA-256 there"
            raise HubError(
                f"{remote.name}: {item.file} {state}, its {MANIFEST_NAME} says {item.size:,} bytes: its owner must "
                "push it again"
            )


def fetch_right(remote: Remote, item: Wanted, incoming: Path, target: Path) -> None:
    for attempt in range(FETCHES):
        path, sha256 = remote.fetch(item.file, incoming, again=attempt > 0)
        if path.stat().st_size == item.size and item.sha256 in ("", sha256):
            if item.is_bin:
                path = bin_to_npy(path)
            elif not item.sha256:
                open_shard(path)
            os.replace(path, target)
            return
        path.unlink()
    raise HubError(
        f"{item.file} from {remote.name} arrived {FETCHES} times with other bytes than promised (size or SHA-256): the "
        "copy there is damaged, its owner must push it again with --overwrite"
    )
