"""`verify`: whether a dataset, in a folder or at a remote, is what its manifest says, byte for byte and token for
token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from shardkit.arguments import place_text
from shardkit.bars import TransferBar, shown
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.errors import AuthError, HubError, ShardError, ShardkitError, UsageError
from shardkit.look.against_source import SourceComparison
from shardkit.look.opened import OpenedDataset, opened
from shardkit.look.reencode import Reencoding
from shardkit.look.result_lines import ShownAsLines
from shardkit.look.shard_pass import FileStart, check_tokens, file_starts
from shardkit.remote.address import is_remote
from shardkit.remote.threads import TransferThreads
from shardkit.remote.uploader import TransferProgress
from shardkit.waits import result_of


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyResult(ShownAsLines):
    """What was checked. `verified` says that every byte was compared with a SHA-256: it is False where hashes were left
    out, or `shards_without_hash` have none. `documents` is None where nobody knows: of bare shards. With `deep`, so
    many documents were encoded again, or why none was (`not_reencoded`), and so many source files were compared, at so
    many places, or why none was (`not_compared`). `problems` are what `verify` raises: of what it returns there are
    none."""

    dataset: str
    verified: bool
    shards: int
    tokens: int
    documents: int | None
    shards_without_hash: int
    reencoded_documents: int | None = None
    not_reencoded: str | None = None
    compared_files: int | None = None
    compared_places: int | None = None
    not_compared: str | None = None
    fingerprint: str
    problems: tuple[str, ...] = ()


def verify(
    place: str | os.PathLike[str],
    *,
    hashes: bool = True,
    deep: bool = False,
    source: str | os.PathLike[str] | None = None,
    progress: TransferProgress | bool | None = True,
) -> VerifyResult:
    """Check every shard of the dataset at `place` against its manifest: length, dtype, SHA-256 (not with
    `hashes=False`), ids below the vocabulary's size, EOT count.

    `place` is a folder, or a remote as `pull` takes it: of that each shard is fetched, some at a time, checked and
    removed again, so that what it really serves is checked. With `deep`, source files must begin where the manifest
    says, no other shard may lie beside those that it lists, and a sample of documents is decoded and encoded again:
    that must give the same ids. `source` is where the dataset's source is, as `tokenize` takes it: with it, up to 16 of
    its files are compared too, at their beginnings, or, of parquet and of `.jsonl` files on this machine, at 16 places
    from all over them. A bar says how far it is; `progress=False` silences it, and `progress(file, done_bytes,
    total_bytes)` is called in its place.

    Raises `ShardError` (of a remote `HubError`) naming the first shard that is not what the manifest says, and how many
    more are not; `ManifestError`; `UsageError` for a `source` of other files, `SourceError` for one that is not there.

    >>> verify("out").verified
    True
    >>> verify("out", deep=True).reencoded_documents > 50
    True
    >>> verify("out", deep=True, source="sample").compared_files
    16
    """
    result, problems = check_all(place, hashes=hashes, deep=deep, source=source, progress=progress)
    if len(problems) > 1:
        raise type(problems[0])(f"{problems[0]} ({len(problems) - 1:,} more of {result.shards:,} shards too)")
    if problems:
        raise problems[0]
    return result


def check_all(
    place: str | os.PathLike[str],
    *,
    hashes: bool,
    deep: bool,
    source: str | os.PathLike[str] | None = None,
    progress: TransferProgress | bool | None,
) -> tuple[VerifyResult, list[ShardkitError]]:
    """`verify`, and all that is wrong: one error a shard, in the order of the stream."""
    if source is not None and not deep:
        raise UsageError("--source is looked at with --deep: give both")
    if is_remote(place) and not hashes:
        raise UsageError(
            f"{place} is a remote, and what that serves is always hashed: a check without hashes is for a folder"
        )
    with shown(progress, lambda: TransferBar("verify")) as tell, opened(place) as dataset:
        manifest, shards = dataset.manifest, list(dataset.manifest.shards)
        look = _Look(dataset, hashes, _Deep(manifest, source) if deep else None)
        problems, done, counted = list[ShardkitError](), 0, _Counts(0, 0, 0)
        total = sum(shard.bytes for shard in shards)
        with TransferThreads(dataset.threads(shards), "shardkit-verify") as threads:
            looks = [threads.submit(partial(look.at, number)) for number in range(len(shards))]
            for shard, found in zip(shards, looks, strict=True):
                try:
                    counted = counted.plus(result_of(found))
                except (ShardError, HubError) as error:
                    if isinstance(error, AuthError):
                        dataset.stop()
                        raise
                    problems.append(error)
                except BaseException:
                    dataset.stop()
                    raise
                done += shard.bytes
                if tell is not None:
                    tell(shard.file, done, total)
        problems += [_unlisted(dataset, name) for name in (dataset.unlisted() if deep else ())]
        unhashed = sum(not (hashes and shard.sha256) for shard in shards)
        result = VerifyResult(
            dataset=dataset.name,
            verified=unhashed == 0 and not problems,
            shards=len(shards),
            tokens=manifest.tokens,
            documents=manifest.documents or None,
            shards_without_hash=unhashed,
            reencoded_documents=counted.documents if deep else None,
            not_reencoded=look.deep.reencoding.why_none(counted.documents) if look.deep else None,
            compared_files=counted.files if deep else None,
            compared_places=counted.places if deep else None,
            not_compared=look.deep.comparison.why_not if look.deep else None,
            fingerprint=manifest.fingerprint,
            problems=tuple(map(str, problems)),
        )
        return result, problems


class _Counts(NamedTuple):
    """Documents that were encoded again, source files that were compared, and places in these."""

    documents: int
    files: int
    places: int

    def plus(self, more: _Counts) -> _Counts:
        return _Counts(self.documents + more.documents, self.files + more.files, self.places + more.places)


class _Deep:
    """What is looked at beside the shards' files."""

    def __init__(self, manifest: Manifest, source: str | os.PathLike[str] | None) -> None:
        self.starts: dict[int, list[FileStart]] = file_starts(manifest)
        self.reencoding = Reencoding(manifest)
        self.comparison = SourceComparison(manifest, None if source is None else place_text(source))


class _Look:
    """Looks at shards of one dataset, in any thread."""

    def __init__(self, dataset: OpenedDataset, hashes: bool, deep: _Deep | None) -> None:
        self._dataset, self._hashes, self.deep = dataset, hashes, deep

    def at(self, number: int) -> _Counts:
        """Check that shard; what more than its file was looked at."""
        dataset = self._dataset
        shard: ShardInfo = dataset.manifest.shards[number]
        path = dataset.place_of(shard)
        with dataset.shard(shard) as file:
            starts = self.deep.starts.get(number, []) if self.deep else []
            check_tokens(file, path, shard, dataset.manifest, hashed=self._hashes, starts=starts)
            if self.deep is None:
                return _Counts(0, 0, 0)
            documents = self.deep.reencoding.check(file, path, shard)
            return _Counts(documents, *self.deep.comparison.check(file, path, shard))


def _unlisted(dataset: OpenedDataset, name: str) -> ShardError:
    return ShardError(
        f"{dataset.name} holds {name}, which its manifest.json does not list: scripts that choose shards by name would "
        "read it; move it away"
    )
