"""What a remote lists, before anything is downloaded: a whole dataset, an unfinished one, bare shards, or nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile

import numpy as np

from shardkit.arguments import as_int, check_texts
from shardkit.dataset.folder import PART_NAME, PARTS_FOLDER
from shardkit.dataset.journal import JOURNAL_FILE, JournalContent, parse_journal
from shardkit.dataset.journal_segments import joined_segments, segment_files
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, Manifest, SourceInfo, is_unfinished
from shardkit.dataset.shards import SHARD_NAME, shard_header
from shardkit.errors import HubError, UsageError
from shardkit.hub_answers import or_mirror
from shardkit.remote.download import WantedFile
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.threads import TransferThreads
from shardkit.waits import result_of


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """A part of a dataset: one split (None: all), and a half-open range of shard indices (None: all); `allow_gaps` says
    that bare shards may lack one between them."""

    split: str | None
    shards: tuple[int, int] | None
    allow_gaps: bool = False

    def __post_init__(self) -> None:
        check_texts(split=self.split)
        pair = self.shards if isinstance(self.shards, tuple | list) else ()
        low, high = map(as_int, pair) if len(pair) == 2 else (None, None)
        if self.shards is not None and not (isinstance(low, int) and isinstance(high, int) and 0 <= low < high):
            raise UsageError(f"--shards is {self.shards!r:.80}: expected two whole numbers, as in (0, 10)")

    def includes(self, split: str, index: int) -> bool:
        """Whether the shard `index`, which is of `split`, is in that part."""
        low, high = self.shards or (0, index + 1)
        return (self.split is None or split == self.split) and low <= index < high

    def part_of(self, whole: Manifest, name: str) -> Manifest:
        """`whole` with the chosen shards; `name` names the dataset in the `UsageError` if there are none."""
        if self.split is None and self.shards is None:
            return whole
        chosen = tuple(s for s in whole.shards if self.includes(s.split, s.index))
        if not chosen:
            have = ", ".join(
                f"{split} ({shards[0].index}:{shards[-1].index + 1})" for split, shards in whole.splits.items()
            )
            raise UsageError(f"{name} has no shard that --split and --shards choose; it has {have}")
        return whole if len(chosen) == len(whole.shards) else dataclasses.replace(whole, shards=chosen)


def published(remote: Remote, remote_files: Mapping[str, RemoteFile]) -> tuple[bytes, Manifest] | None:
    """The manifest at the remote, as bytes and parsed; None for a repo of bare shards. Raises `HubError` for half
    a dataset, and for parts of one."""
    if MANIFEST_NAME in remote_files:
        text = remote.read(MANIFEST_NAME)
        return text, Manifest.from_json(text, where=f"{remote.name}/{MANIFEST_NAME}")
    here = remote.local_folder  # in which a merge or a pull may be at work
    if any(name.startswith(f"{WORK_DIR}/") for name in remote_files) or (here is not None and is_unfinished(here)):
        raise HubError(
            f"{remote.name} is unfinished, its {MANIFEST_NAME} has not come yet: wait, or run the push (or the "
            "`tokenize --push` or merge) again to its end, then pull"
        )
    if holds_parts(remote, remote_files):
        raise HubError(
            f"{remote.name} holds parts of a dataset, which is not made yet: `shardkit merge {remote.name} --out DIR` "
            "makes it, when they are all finished"
        )
    if not remote_files:
        raise HubError(f"{remote.name} holds nothing: check the name, or push to it first")
    return None


def holds_parts(remote: Remote, remote_files: Mapping[str, RemoteFile]) -> bool:
    """Whether parts of a dataset are there and no shards beside them. Not all places list what is in their folders."""
    if any(SHARD_NAME.match(name) for name in remote_files):
        return False
    listed = {name.split("/")[1] for name in remote_files if name.startswith(f"{PARTS_FOLDER}/")}
    return any(map(PART_NAME.fullmatch, listed if remote_files else remote.subfolders(PARTS_FOLDER)))


def names_secrets(text: bytes, manifest: Manifest) -> bool:
    """Whether `text`, that `manifest` was read from, names the source with a password or query, as earlier versions
    wrote it. `manifest` itself names it without."""
    if (ours := manifest.source) is None:
        return False
    stated = json.loads(text)["source"]
    named = stated["id"], [file["path"] for file in stated.get("files", [])]
    return named != (ours.id, [file.path for file in ours.files])


def published_so_far(remote: Remote, remote_files: Mapping[str, RemoteFile]) -> Manifest:
    """The shards that a running `tokenize --push` has sent and acknowledged, as a manifest of their own.

    Tokenizer and source files are not known yet. Raises `HubError` if there is no such run, or no shard yet.
    """
    journal = read_journal(remote, remote_files)
    identity = journal.identity
    # a folder was listed a moment before its journal was read
    shards = tuple(takewhile(lambda s: s.file in remote_files and remote_files[s.file].size == s.bytes, journal.shards))
    if not shards:
        raise HubError(
            f"{remote.name} is still being written and holds no finished shard yet: wait until `tokenize --push` there "
            "has sent the first ones"
        )
    source = SourceInfo(
        id=str(identity.get("source")),
        config=identity.get("config"),
        split=identity.get("split"),
        revision=identity.get("revision"),
        text_field=identity.get("text field"),
    )
    first, per_shard = shards[0], max(s.tokens for s in shards)
    wide = first.bytes - len(shard_header(first.tokens, np.dtype("<u4"))) == 4 * first.tokens
    manifest = Manifest(dtype="uint32" if wide else "uint16", tokens_per_shard=per_shard, shards=shards, source=source)
    return Manifest.from_json(manifest.to_json(), where=f"{remote.name}/{JOURNAL_FILE}")  # with its checks


def read_journal(remote: Remote, remote_files: Mapping[str, RemoteFile]) -> JournalContent:
    """The journal of the run that is at the remote, put together from its segments, as far as it holds.

    Raises `OutputError` if nothing of it holds.
    """
    names = segment_files(remote_files)
    with TransferThreads(8, "shardkit-journal") as threads:
        reads = {name: threads.submit(partial(remote.read, name)) for name in names}
        journal = joined_segments({name: result_of(read) for name, read in reads.items()})
    return parse_journal(journal, where=f"{remote.name}/{JOURNAL_FILE}", way_out="start again in another repo")


def check_listing(remote: Remote, wanted: Sequence[WantedFile], remote_files: Mapping[str, RemoteFile]) -> None:
    """Find a repo that is not what its manifest says before anything is downloaded. Raises `HubError`."""
    for item in wanted:
        listed = remote_files.get(item.file)
        if listed is None or listed.size != item.size or (item.sha256 and listed.sha256 not in ("", item.sha256)):
            state = "is not there" if listed is None else f"has {listed.size:,} bytes or another SHA-256 there"
            raise HubError(
                f"{remote.name}: {item.file} {state}, its {MANIFEST_NAME} says {item.size:,} bytes: its owner must "
                f"push it again{or_mirror(remote.name)}"
            )
