"""The folders of a dataset's parts, `DIR/parts/3-of-64`: whose they are, and whether they are parts of one dataset.

Each holds an ordinary run of its part of the source (`sources/parts.py`), with its journal and manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardkit.dataset.folder import MANIFEST_NAME, MERGE_FOLDER, PART_NAME, PARTS_FOLDER, pushed_to, shard_files
from shardkit.dataset.journal import JOURNAL_FILE, differences, read_local
from shardkit.dataset.manifest import Manifest
from shardkit.errors import ManifestError, OutputError
from shardkit.remote.address import place_below
from shardkit.sources.parts import Part, cut_part, parse_part
from shardkit.sources.source import Source
from shardkit.tokenization.run_spec import BEGINS, ENDS, FILE_STATES, PART

REMADE_THERE = "remove that folder there, and call that part again"  # what mends a part at a remote


class NoParts(OutputError):
    """There is not a single part in a place."""


def part_folder(directory: Path, index: int, count: int) -> Path:
    """Where part `index` of `count` of the dataset in `directory` is made."""
    return directory / PARTS_FOLDER / f"{index}-of-{count}"


def part_place(repo: str, index: int, count: int) -> str:
    """Where at the place REPO part `index` of `count` of a dataset is pushed to. Raises `UsageError`."""
    return place_below(repo, f"{PARTS_FOLDER}/{index}-of-{count}")


def begin_part(directory: Path, part: str, source: Source, chunk_bytes: int) -> tuple[Path, Part, Source]:
    """The folder in `directory` that the `part` ("3/64") of `source` is made in, the part, and what it reads.

    Raises `UsageError` for what is no part or has none, and as `check_place` does.
    """
    index, count = parse_part(part)
    check_place(directory)
    cut, read = cut_part(source, index, count, chunk_bytes)
    return part_folder(directory, index, count), cut, read


def check_place(directory: Path) -> None:
    """Raise `OutputError` if parts cannot be merged in `directory`, because something else is there."""
    shards = shard_files(directory)  # before the folder that a merge makes before its first shard
    if (directory / MANIFEST_NAME).exists():
        raise OutputError(
            f"{directory} holds a finished dataset, and no part of one that is to be made: choose another --out, or "
            "remove that one"
        )
    if (directory / JOURNAL_FILE).exists() or (shards and not (directory / MERGE_FOLDER).exists()):
        what = "a run without --part" if (directory / JOURNAL_FILE).exists() else shards[0].name
        raise OutputError(f"{directory} holds {what}: choose another --out for the parts")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedPart:
    """Part `index` in its `folder`, or at the `place` of that name: the `identity` of its run, and its `manifest`."""

    index: int
    folder: Path
    place: str
    identity: Mapping[str, Any]
    manifest: Manifest

    @property
    def first_file(self) -> int:
        """The number, in the whole source, of the first file that it reads, if it reads any."""
        return int(self.identity[BEGINS][0])


def whole_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Of a part's identity what all parts have in common."""
    return {name: value for name, value in identity.items() if name not in (PART, BEGINS, ENDS, FILE_STATES)}


def finished_parts(directory: Path, name: str | None = None) -> list[FinishedPart]:
    """The parts of the dataset in `directory`, in order, if each is there and finished, and they fit together. Of those
    at a remote, which are here but for their shards, `name` is the remote's.

    Raises `OutputError`, naming the first one that is not.
    """
    folder = directory / PARTS_FOLDER
    matches = [PART_NAME.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ())]
    counts = sorted({int(match[1]) for match in matches if match is not None})
    if not counts and (there := pushed_to(directory)):
        raise NoParts(f"{directory} holds no parts any more, they are merged: the dataset lies at {there}")
    if not counts:
        out = f"--out {directory}" if name is None else f"--out DIR --push {name}"
        raise NoParts(
            f"{name or directory} holds no parts: `shardkit tokenize SRC --part 0/N {out}` makes the first of N"
        )
    if len(counts) > 1:
        where = folder if name is None else f"{name}/{PARTS_FOLDER}"
        raise OutputError(
            f"{where} holds some of {' and some of '.join(map(str, counts))} parts: remove those that do not belong "
            "to the dataset, and run the same command again"
        )
    parts: list[FinishedPart] = []
    for index in range(counts[0]):
        parts.append(_finished(directory, name, index, counts[0]))
        _check_follows(parts)
    return parts


def _finished(directory: Path, name: str | None, index: int, count: int) -> FinishedPart:
    folder, where = part_folder(directory, index, count), name or directory
    place = str(folder) if name is None else f"{name}/{PARTS_FOLDER}/{folder.name}"
    again = f"run `shardkit tokenize` with --part '{index}/{count}' again"
    if not (folder / MANIFEST_NAME).exists() and (there := pushed_to(folder)):
        there = there.removesuffix(f"/{PARTS_FOLDER}/{folder.name}")
        raise OutputError(f"part {index}/{count} of {where} is at {there}: `shardkit merge {there} --out OUT`")
    if not (folder / MANIFEST_NAME).exists():
        state = "is not finished" if folder.is_dir() else "is missing"
        raise OutputError(f"part {index}/{count} of {where} {state}: {again}")
    try:
        manifest, journal = Manifest.load(folder), read_local(folder)
    except (ManifestError, OutputError) as error:
        raise OutputError(f"part {index}/{count} of {where} cannot be read ({error})") from None
    if journal is None or tuple(journal.shards) != manifest.shards or manifest.source is None:
        again = f"{again}, and --overwrite" if name is None else REMADE_THERE
        raise OutputError(f"{place}/{JOURNAL_FILE} does not name the shards beside it: {again}")
    return FinishedPart(index=index, folder=folder, place=place, identity=journal.identity, manifest=manifest)


def _check_follows(parts: list[FinishedPart]) -> None:
    """Raise `OutputError` if the last of `parts` is of another dataset than the first, or does not begin where the one
    before it ends."""
    first, last = parts[0], parts[-1]
    ours, theirs = whole_identity(first.identity), whole_identity(last.identity)
    if differ := differences(theirs, ours, f"in part {first.index}"):
        raise OutputError(
            f"{last.place} is of another run than {first.folder.name} ({'; '.join(differ)}): remove the wrong ones, "
            "and tokenize those parts again"
        )
    begins = last.identity.get(BEGINS)
    if begins != ([0, 0, 0] if last is first else parts[-2].identity.get(ENDS)):
        again = "tokenize it again with --overwrite" if last.place == str(last.folder) else REMADE_THERE
        raise OutputError(
            f"{last.place} does not begin where the part before it ends: it was made by another version, or from a "
            f"source that has changed; {again}"
        )
