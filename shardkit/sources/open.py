"""How a user's word for a source is understood: `sample`, a path, a glob, a URL, a Hub dataset id, or an iterable.

The Hub is in `hub.py`, the built-in sample in `sample.py`; how bytes become texts is in `chunks.py`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError, UsageError
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
    """Understand `source`: `sample`, a local file, folder or glob, a URL that fsspec reads, a Hub dataset id, or any
    iterable of texts or of rows with a `text_field` (a `datasets.Dataset`).

    Raises `SourceError` if it does not exist or has no files to read, `UsageError` if it cannot be told what it is.
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
    if _looks_local(text):
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


def _looks_local(text: str) -> bool:
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
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and format_of(p.name) and not _hidden(p.relative_to(path))]
        base = path
        if not found:
            raise SourceError(f"{path} holds no files to read: expected {', '.join(FORMATS)}")
    elif path.is_file():
        found, base = [path], path.parent
        if format_of(path.name) is None:
            raise SourceError(f"{path} has a name that says no known format: expected {', '.join(FORMATS)}")
    else:
        found = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file() and not _looped(p)]
        base = Path(os.path.commonpath([p.parent for p in found])) if found else path
        if not found:
            raise SourceError(f"no such file or folder: {path} (looked from {Path.cwd()})")
        if bad := [p for p in found if format_of(p.name) is None]:
            raise SourceError(f"{bad[0]} has a name that says no known format: expected {', '.join(FORMATS)}")
    names = sorted((p.relative_to(base).as_posix() for p in found), key=natural_key)
    if bad_name := next((n for n in names if not _is_text(n)), None):
        raise SourceError(f"{bad_name!r} is a file name that is not UTF-8: rename it, a manifest could not name it")
    files = tuple(
        InputFile(path=n, url=str(base / n), bytes=(base / n).stat().st_size, format=str(format_of(n))) for n in names
    )
    identity = Path(os.path.abspath(path)).name or "files"  # the same from wherever it is looked at
    return Source(info=_info(identity, options), files=_by_separator(files, options), options=options)


def _from_url(url: str, options: ReadOptions) -> Source:
    import fsspec

    from shardkit.network import retrying

    try:
        fs, root = fsspec.core.url_to_fs(url)
        paths = retrying(lambda: fs.glob(root) if any(c in url for c in "*[") else [root], url, remote=True)
        if len(paths) == 1 and format_of(paths[0]) is None:
            paths = retrying(lambda: fs.find(root), url, remote=True)
        found = sorted((p for p in paths if format_of(p.split("?")[0])), key=natural_key)
        sizes = {p: retrying(partial(fs.size, p), p, remote=True) for p in found}
    except (ValueError, ImportError) as error:
        raise SourceError(f"cannot open {url}: {error}") from error
    if not found:
        raise SourceError(f"{url} holds no files to read: expected {', '.join(FORMATS)}")
    if unsized := [p for p in found if sizes[p] is None]:
        raise SourceError(f"the server does not say how long {unsized[0]} is: download it first, and give the file")
    files = tuple(
        InputFile(
            path=p.rsplit("/", 1)[-1], url=fs.unstrip_protocol(p), bytes=int(sizes[p]),
            format=str(format_of(p.split("?")[0])),
        )
        for p in found
    )  # fmt: skip
    return Source(info=_info(url, options), files=_by_separator(files, options), options=options)


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


def _by_separator(files: tuple[InputFile, ...], options: ReadOptions) -> tuple[InputFile, ...]:
    if options.separator is None:
        return files
    if options.separator == "":
        raise UsageError("--separator is empty: expected the text that stands between two documents")
    if bad := [f for f in files if f.format != "txt"]:
        raise UsageError(f"--separator is for .txt files, {bad[0].path} is {bad[0].format}")
    return tuple(InputFile(path=f.path, url=f.url, bytes=f.bytes, format="txt.separated") for f in files)


def _info(identity: str, options: ReadOptions) -> SourceInfo:
    return SourceInfo(id=identity, text_field=options.text_field)


def _looped(path: Path) -> bool:
    """True for a file reached through a link back to a folder that holds it: `**` follows those until names run out."""
    folders = [os.path.realpath(p) for p in path.parents]
    return len(set(folders)) < len(folders)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
