"""How the user's name for a source is understood: `sample`, a path, a glob, a URL, a Hub dataset id, or an iterable.

The Hub is in `hub.py`, the built-in sample in `sample.py`; formats are listed in `source.py`, read in `chunks.py`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError, UsageError
from shardkit.network import open_filesystem, with_retries
from shardkit.redaction import public_address
from shardkit.sources.source import FORMATS, InputFile, ReadOptions, Source, format_of

DEFAULT_SOURCE = "HuggingFaceFW/fineweb-edu"
DEFAULT_CONFIG = "sample-10BT"
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def open_source(
    source: str | os.PathLike[str] | Iterable[Any],
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    text_field: str = "text",
    separator: str | None = None,
    skip_bad_rows: bool = False,
) -> Source:
    """List the files of `source`.

    `source` is "sample", a local file, folder or glob, a URL that fsspec reads, a Hub dataset id, or any iterable of
    texts or of rows with a `text_field` (a `datasets.Dataset`).

    Raises `SourceError` if it does not exist or has no files to read, `AuthError` if it may not be read, `UsageError`
    if it is none of these.
    """
    options = ReadOptions(text_field=text_field, separator=separator, skip_bad_rows=skip_bad_rows)
    if not isinstance(source, str | os.PathLike):
        return _from_iterable(source, options)
    text = os.fspath(source)
    if text == "sample":
        from shardkit.sources.sample import sample_source

        return sample_source(options)
    if "://" in text and not text.startswith("hf://datasets/"):
        return _from_url(text, options)
    if _is_local_name(text):
        return _from_files(text, options)
    if text.startswith("hf://datasets/"):
        text = text.removeprefix("hf://datasets/")
    if not _HUB_ID.match(text):
        raise UsageError(
            f"cannot tell what source {text!r} is: no such local path, and not a Hub dataset id (user/name), a URL, or "
            "`sample`"
        )
    from shardkit.sources.hub import hub_source

    if name is None and text == DEFAULT_SOURCE:
        name = DEFAULT_CONFIG
    return hub_source(text, name=name, split=split, revision=revision, options=options)


def natural_key(path: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that counts: `part-2` before `part-10`. Depends on the name alone, not on the machine."""
    parts = re.split(r"([0-9]+)", path)  # every second one is digits
    return [(0, int(part)) if at % 2 else (1, part) for at, part in enumerate(parts) if part], path


def _is_local_name(text: str) -> bool:
    return (
        os.path.exists(text)
        or any(c in text for c in "*?[")
        or text.startswith(("/", "./", "../", "~", "."))
        or format_of(text) is not None
        or "\\" in text
    )


def _from_files(text: str, options: ReadOptions) -> Source:
    path = Path(os.path.expanduser(text))  # Path.expanduser raises for an unknown user
    if max(map(len, path.parts), default=0) > 255:
        raise SourceError(f"no such file or folder: {text[:80]}... (a name of more than 255 characters)")
    base, paths = _local_files(path)
    if bad := [p for p in paths if format_of(p.name) is None]:
        raise SourceError(f"{bad[0]} has a name that says no known format: expected {', '.join(FORMATS)}")
    names = sorted((p.relative_to(base).as_posix() for p in paths), key=natural_key)
    if bad_name := next((n for n in names if not _is_utf8(n)), None):
        raise SourceError(f"{bad_name!r} is a file name that is not UTF-8: rename it, a manifest could not name it")
    files = tuple(
        InputFile(path=n, url=str(base / n), bytes=(base / n).stat().st_size, format=str(format_of(n))) for n in names
    )
    identity = Path(os.path.abspath(path)).name or "files"  # the same from whichever folder it is named
    return Source(info=_info(identity, options), files=_with_separator(files, options), options=options)


def _local_files(path: Path) -> tuple[Path, list[Path]]:
    """The files that a local file, folder or glob names, and the folder that their names are relative to."""
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and format_of(p.name)]
        if files := [p for p in files if not _is_hidden(p.relative_to(path))]:
            return path, files
        raise SourceError(f"{path} holds no files to read: expected {', '.join(FORMATS)}")
    if path.is_file():
        return path.parent, [path]
    files = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file() and not _is_in_a_link_loop(p)]
    if not files:
        raise SourceError(f"no such file or folder: {path} (looked from {Path.cwd()})")
    return Path(os.path.commonpath([p.parent for p in files])), files


def _from_url(url: str, options: ReadOptions) -> Source:
    shown = public_address(url)

    def list_files() -> dict[str, int | None]:
        paths = filesystem.glob(root) if any(c in url for c in "*[") else [root]
        if len(paths) == 1 and _format_at(paths[0]) is None:
            paths = filesystem.find(root) or [filesystem.info(root)["name"]]  # which says why there is nothing
        return {p: filesystem.size(p) for p in paths if _format_at(p)}

    try:
        filesystem, root = open_filesystem(url, error=SourceError)
    except (ValueError, ImportError) as error:
        raise SourceError(f"cannot open {shown}: {error}") from error
    sizes = with_retries(list_files, shown, "list the source", error=SourceError)
    if not sizes:
        raise SourceError(f"{shown} holds no files to read: expected {', '.join(FORMATS)}")
    if unsized := [path for path, size in sizes.items() if size is None]:
        raise SourceError(f"the server does not say how long {unsized[0]} is: download it first, and give the file")
    host = url.rstrip("/").removesuffix(root)  # and who logs in there; no driver gives that back
    files = tuple(
        InputFile(
            path=public_address(path).rsplit("/", 1)[-1],
            url=host + path if url.rstrip("/").endswith(root) else filesystem.unstrip_protocol(path),
            bytes=int(sizes[path] or 0),
            format=str(_format_at(path)),
        )
        for path in sorted(sizes, key=natural_key)
    )
    return Source(info=_info(shown, options), files=_with_separator(files, options), options=options)


def _format_at(path: str) -> str | None:
    """The format of a file on a filesystem: http's paths are whole addresses, with their queries."""
    return format_of(public_address(path))


def _from_iterable(texts: Iterable[Any], options: ReadOptions) -> Source:
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise UsageError(f"source is a {type(texts).__name__}: expected a name, a path, or an iterable of texts")
    if isinstance(texts, Mapping):
        raise UsageError(
            f"source is a {type(texts).__name__} with {', '.join(map(str, list(texts)[:5]))}: give one of its values, "
            'as in `tokenize(dataset["train"], ...)`'
        )
    if isinstance(texts, set | frozenset):
        raise UsageError("source is a set, whose order changes from run to run: give a list")
    file = InputFile(path="texts", url="", bytes=0, format="texts")
    info = SourceInfo(id="texts", text_field=options.text_field)
    return Source(info=info, files=(file,), options=options, texts=texts)


def _with_separator(files: tuple[InputFile, ...], options: ReadOptions) -> tuple[InputFile, ...]:
    if options.separator is None:
        return files
    if options.separator == "":
        raise UsageError("--separator is empty: expected the text that stands between two documents")
    if bad := [f for f in files if f.format != "txt"]:
        raise UsageError(f"--separator is for .txt files, {bad[0].path} is {bad[0].format}")
    return tuple(InputFile(path=f.path, url=f.url, bytes=f.bytes, format="txt.separated") for f in files)


def _info(identity: str, options: ReadOptions) -> SourceInfo:
    return SourceInfo(id=identity, text_field=options.text_field)


def _is_in_a_link_loop(path: Path) -> bool:
    """True for a file reached through a link back to a folder that holds it: `**` follows those until names run out."""
    folders = [os.path.realpath(p) for p in path.parents]
    return len(set(folders)) < len(folders)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
