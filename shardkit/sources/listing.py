"""The files that a path, a glob or a URL stands for. Of a folder, files of one kind are read; a warning names the
others, so that nothing is left out in silence.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardkit.dataset.bin_files import bin_files
from shardkit.dataset.folder import shard_files
from shardkit.dataset.typed_json import parse_json
from shardkit.errors import ShardkitWarning, SourceError, UsageError, missing_package
from shardkit.files import read_small_file
from shardkit.network import open_filesystem, with_retries
from shardkit.redaction import public_address
from shardkit.sources.file_version import local_version, stated_version
from shardkit.sources.formats import EXPECTED, KINDS, NOTES, family_of, format_of
from shardkit.sources.source import InputFile

_NAMED = 5  # files left out that are named one by one
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # in a folder that `datasets` saved
_BESIDE_TOKENS = {"manifest.json", "shardkit.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
_ORDER = list(dict.fromkeys(map(family_of, (f"x.{ending}" for ending in KINDS))))  # of equal bytes, the first one


class Included:
    """Which names `--include`, a glob, means: all without it. A pattern without a slash is one of the last part of a
    name."""

    def __init__(self, pattern: str | None = None) -> None:
        self._pattern, self._wanted = pattern, None
        if pattern is not None:
            from fsspec.utils import glob_translate

            self._wanted = re.compile(glob_translate(pattern))
        self._others: dict[str, None] = {}  # that could be read, and are not meant

    def __call__(self, name: str) -> bool:
        """Whether a file of that name is one to read."""
        if self._wanted is None or self._pattern is None or self._wanted.match(name):
            return True
        if "/" not in self._pattern and self._wanted.match(name.rpartition("/")[2]):
            return True
        if _format_behind(name) is not None:
            self._others[name] = None
        return False

    def nothing_found(self, where: str) -> SourceError:
        """The error where no file is to be read: what else there is at `where`, or what could have been."""
        if not self._others:
            return SourceError(f"{where} holds no files to read: expected {EXPECTED}")
        names = sorted(self._others, key=natural_key)
        shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
        return SourceError(f"--include {self._pattern!r} means none of the files of {where}: there are {shown}")


def natural_key(path: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that counts: `part-2` before `part-10`. Depends on the name alone, not on the machine."""
    parts = re.split(r"([0-9]+)", path)  # every second one is digits
    return [(0, int(part)) if at % 2 else (1, part) for at, part in enumerate(parts) if part], path


def local_files(path: Path, included: Included | None = None) -> tuple[InputFile, ...]:
    """The files of a local file, folder or glob that are `included` (named relative to the folder that they share), in
    natural order."""
    if max(map(len, path.parts), default=0) > 255:
        raise SourceError(f"no such file or folder: {str(path)[:80]}... (a name of more than 255 characters)")
    base, paths = _local_paths(path, included or Included())
    if bad := [p for p in paths if format_of(p.name) is None]:
        raise SourceError(f"{bad[0]} has a name that says no known format: expected {EXPECTED}")
    return tuple(_local_file(base, p) for p in sorted(paths, key=lambda p: natural_key(p.relative_to(base).as_posix())))


def is_dataset_of_tokens(folder: Path) -> bool:
    """Whether it holds shards of tokens and no text: what else there is to read are the files that belong to them."""
    if not folder.is_dir() or not (shard_files(folder) or bin_files(folder)):
        return False
    return not {name for name in _names_below(folder) if format_of(name)} - _BESIDE_TOKENS


def saved_splits(folder: Path) -> list[str]:
    """The splits in a folder that `DatasetDict.save_to_disk` made, each a folder in it; none if it is none."""
    try:
        splits = parse_json(read_small_file(folder / _SAVED_SPLITS))["splits"]
        return [str(split) for split in splits]
    except OSError:
        return []
    except (ValueError, KeyError, TypeError):
        raise SourceError(f"{folder / _SAVED_SPLITS} does not list the splits: save the dataset again") from None


def _saved_files(folder: Path) -> list[str] | None:
    """The files of a dataset that `Dataset.save_to_disk` made in a folder: others there (caches) are none of it. None
    if it is no such folder."""
    try:
        state = parse_json(read_small_file(folder / _SAVED))
        names = [str(file["filename"]) for file in state["_data_files"]]
        is_whole = not state.get("_indices_data_files") and all((folder / name).is_file() for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no state.json, or one of somebody else's
    if not is_whole or any(Path(name).name != name for name in names):
        raise SourceError(
            f"{folder / _SAVED} names files that are not there, or an order of rows: save the dataset again"
        )
    return names


def url_files(url: str, included: Included) -> tuple[InputFile, ...]:
    """The files of a URL that fsspec reads (a file, a folder or a glob) that are `included`, in natural order."""
    from fsspec.implementations.local import LocalFileSystem

    shown = public_address(url)

    def list_files() -> dict[str, Mapping[str, Any]]:
        paths = filesystem.glob(root) if any(c in url for c in "*[") else [root]
        is_folder = len(paths) == 1 and _format_behind(paths[0]) is None
        if is_folder:
            paths = filesystem.find(root) or [filesystem.info(root)["name"]]  # which says why there is nothing
        details = {p: filesystem.info(p) for p in paths if _format_behind(p)}
        others = [p for p in paths if p not in details]
        if is_folder:
            above = root.rstrip("/") + "/"
            named = {p.removeprefix(above): p for p in details if included(p.removeprefix(above))}
            sizes = {name: details[p]["size"] or 0 for name, p in named.items()}
            rest = [p.removeprefix(above) for p in others if included(p.removeprefix(above))]
            chosen = of_one_kind(shown, sizes, rest)
            return {named[name]: details[named[name]] for name in chosen}
        warn_of_others(shown, "files of known formats", others)
        wanted = [p for p in details if included(public_address(p).rpartition("/")[2])]
        return {p: details[p] for p in without_notes(shown, wanted)}

    try:
        filesystem, root = open_filesystem(url, error=SourceError)
    except (ValueError, ImportError) as error:
        raise missing_package(error, shown) or SourceError(f"cannot open {shown}: {error}") from None
    found = with_retries(list_files, shown, "list the source", error=SourceError)
    if not found:
        raise included.nothing_found(shown)
    if unsized := [path for path, info in found.items() if info["size"] is None]:
        raise SourceError(f"the server does not say how long {unsized[0]} is: download it first, and give the file")
    is_local = isinstance(filesystem, LocalFileSystem)
    host = url.rstrip("/").removesuffix(root)  # and who logs in there; no driver gives that back
    is_whole = url.rstrip("/").endswith(root)
    return tuple(
        InputFile(
            path=public_address(path).rsplit("/", 1)[-1],
            url=path if is_local else host + path if is_whole else filesystem.unstrip_protocol(path),
            bytes=int(found[path]["size"]),
            format=str(_format_behind(path)),
            version=local_version(os.stat(path)) if is_local else stated_version(found[path]),
        )
        for path in sorted(found, key=natural_key)
    )


def _local_file(base: Path, path: Path) -> InputFile:
    name, status = path.relative_to(base).as_posix(), path.stat()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(
            f"{name!r} is a file name that is not UTF-8: rename it, a manifest could not name it"
        ) from None
    return InputFile(
        path=name,
        url=str(path),
        bytes=status.st_size,
        format=str(format_of(name)),
        version=local_version(status),
    )


def _local_paths(path: Path, included: Included) -> tuple[Path, list[Path]]:
    """The paths that a local file, folder or glob names, and the folder that their names are relative to."""
    if path.is_dir():
        if is_dataset_of_tokens(path):
            raise UsageError(f"{path} is a dataset of tokens, not a source of text: `shardkit info {path}` looks at it")
        saved = _saved_files(path)
        names = [name for name in (_names_below(path) if saved is None else saved) if included(name)]
        sizes = {name: (path / name).stat().st_size for name in names if format_of(name) and (path / name).is_file()}
        if not sizes:
            raise included.nothing_found(str(path))
        return path, [path / name for name in of_one_kind(str(path), sizes, [n for n in names if n not in sizes])]
    if path.is_file():
        return path.parent, [path] if included(path.name) else []
    found = [p for p in map(Path, glob.glob(str(path), recursive=True)) if not p.is_dir() and not _is_in_a_link_loop(p)]
    files = [p for p in found if p.is_file()]
    if not files:
        raise SourceError(
            f"no such file or folder: {path} (looked from {Path.cwd()}); files of a Hub dataset are written "
            "hf://datasets/user/name/path"
        )
    warn_of_others(str(path), "whole files", [str(p) for p in found if not p.is_file()])
    base = Path(os.path.commonpath([p.parent for p in files]))
    names = [p.relative_to(base).as_posix() for p in files]
    return base, [base / name for name in without_notes(str(path), [name for name in names if included(name)])]


def _names_below(folder: Path) -> list[str]:
    """What is in a folder and below, by name relative to it: files, and links to folders, which are not followed.

    Hidden files and folders are no part of it.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"cannot list {error.filename}: {error.strerror}") from None

    names: list[str] = []
    for at, folders, files in os.walk(folder, onerror=refuse):
        here = Path(at)
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in files if not name.startswith(".")]
        shown += [name for name in folders if (here / name).is_symlink()]
        names += [(here / name).relative_to(folder).as_posix() for name in shown]
    return names


def of_one_kind(where: str, sizes: Mapping[str, int], others: Iterable[str]) -> list[str]:
    """The names of one kind, of those in `sizes`: parquet, jsonl (compressed or not), txt or another, whichever has the
    most bytes. The rest and the `others` are named in a warning."""
    kinds: dict[str, list[str]] = {}
    for name in sizes:
        kinds.setdefault(_kind(name), []).append(name)
    if not kinds:
        return []
    bytes_of = {kind: sum(sizes[name] for name in names) for kind, names in kinds.items()}
    kind = max(kinds, key=lambda kind: (kind not in NOTES, bytes_of[kind], -_ORDER.index(kind)))
    rest = sorted((name for name in sizes if _kind(name) != kind), key=lambda name: (-sizes[name], name))
    warn_of_others(where, f"its {kind} files", [*rest, *sorted(others)])
    return kinds[kind]


def without_notes(where: str, names: list[str]) -> list[str]:
    """The names of a glob's files, of any kinds, but for a README.md (or page) beside data, which a warning names."""
    notes = [name for name in names if _kind(name) in NOTES]
    if len(notes) == len(names):
        return names
    warn_of_others(where, "data files", notes)
    return [name for name in names if name not in notes]


def _kind(name: str) -> str:
    return family_of(public_address(name))


def _format_behind(path: str) -> str | None:
    return format_of(public_address(path))  # http's paths are whole addresses, with their queries


def warn_of_others(where: str, read: str, names: list[str]) -> None:
    if not names:
        return
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
    warnings.warn(
        f"{where}: only {read} are read, not {shown}; a glob, or a list of paths, names files of several kinds",
        ShardkitWarning,
        stacklevel=2,
    )


def _is_in_a_link_loop(path: Path) -> bool:
    """True for a file reached through a link back to a folder that holds it: `**` follows those until names run out."""
    folders = [os.path.realpath(p) for p in path.parents]
    return len(set(folders)) < len(folders)
