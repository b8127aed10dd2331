"""How the user's name for a source is understood: `sample`, a path, a glob, a URL, a Hub dataset, or an iterable.

The files of a path or URL are found in `listing.py`, those of a Hub dataset in `hub.py`, a pipe is in `pipe.py`, an
iterable in `iterables.py`, the built-in sample in `sample.py`. The formats are listed in `formats.py`, cut into chunks
in `chunks.py` and read in `texts.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardkit.arguments import check_texts, place_text
from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError, UsageError
from shardkit.hub_address import HubAddress, parse_address, parse_short
from shardkit.redaction import public_address
from shardkit.sources.asked import Asked, checked_source
from shardkit.sources.choice import share
from shardkit.sources.formats import format_of
from shardkit.sources.iterables import iterable_source
from shardkit.sources.listing import Included, local_files, saved_splits, url_files
from shardkit.sources.pipe import Pipe, pipe_file
from shardkit.sources.source import InputFile, ReadOptions, Source

DEFAULT_SOURCE = "HuggingFaceFW/fineweb-edu"
DEFAULT_CONFIG = "sample-10BT"


class SourceNames(tuple[str, ...]):
    """Several names of sources, as of a command line: a list of other strings may be texts."""


def named(sources: Sequence[str]) -> str | SourceNames:
    """What a command line names: one source (the default one, if none), or several."""
    return (sources[0] if sources else DEFAULT_SOURCE) if len(sources) < 2 else SourceNames(sources)


def open_source(
    source: str | os.PathLike[str] | Iterable[Any],
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    include: str | None = None,
    format: str | None = None,
    text_field: str = "text",
    columns: Sequence[str] = (),
    separator: str | None = None,
    skip_bad_rows: bool = False,
    where: str | None = None,
    sample: float | None = None,
) -> Source:
    """List the files of `source`.

    `source` is "sample", a local file, folder or glob, a URL that fsspec reads, a Hub dataset id, an address on the Hub
    (of a dataset, or of a file, folder or glob in it: `hub_address.py`), "-" or a FIFO (of that `format`), a list of
    names, or any iterable of texts or of rows with a `text_field` (a `datasets.Dataset`). A list (or tuple) is one of
    names if it is a `SourceNames`, if its first item is a `Path`, or if every item is a string that ends as the name of
    a file of a known format does, or begins with `hf://`.

    Of a folder, files of one kind are read: parquet, jsonl (compressed or not), txt or another, whichever has the most
    bytes. All others but hidden ones are named in a warning; a glob or a list of names reads any kinds together. Of the
    files, only those are read whose name `include`, a glob, means. With `columns` a document is a row of these
    (`whole_rows.py`), and not the text of its `text_field`.

    Warns (`ShardkitWarning`) of an option that changes nothing for such a source, of a pipe, which is read once, and of
    a text file that seems to hold several documents.

    Raises `SourceError` if it does not exist or has no files to read, `AuthError` if it may not be read, `UsageError`
    if it is none of these.
    """
    if type(split).__module__.partition(".")[0] == "datasets":  # its `Split.TRAIN`
        split = str(split)
    check_texts(name=name, split=split, revision=revision, include=include, format=format)
    check_texts(text_field=text_field, separator=separator, where=where)
    options = ReadOptions(
        text_field=text_field,
        columns=tuple(columns),
        separator=separator,
        skip_bad_rows=bool(skip_bad_rows),
        where=where,
        sample=None if sample is None else share(sample),
    )
    _ = options.choice  # raises for what it does not understand
    asked = Asked(name=name, split=split, revision=revision, include=include, format=format)
    if isinstance(source, str | os.PathLike):
        opened = _from_name(place_text(source), asked, options)
    else:
        names = _names_in(source)
        opened = iterable_source(source, options) if names is None else _from_names(names, asked, options)
    return checked_source(opened, asked)


def _from_name(text: str, asked: Asked, options: ReadOptions) -> Source:
    if text == "sample":
        from shardkit.sources.sample import sample_source

        return sample_source(options)
    if "://" not in text and (pipe := pipe_file(os.path.expanduser(text), asked.format)) is not None:
        return Source(info=_info(pipe.path, options), files=(pipe,), options=options, texts=Pipe(pipe))
    included = Included(asked.include)
    stated = {} if asked.include is None else {"include": asked.include}
    address = parse_address(text) if "://" in text else None
    if address is None and "://" in text:
        found = Source(info=_info(public_address(text), options), files=url_files(text, included), options=options)
    elif address is None and _is_local_name(text):
        found = _from_path(_path(text), asked, options, included)
    else:
        address = address or parse_short(text)
        if address is None:
            raise UsageError(
                f"cannot tell what source {text!r} is: no such local path, and not a Hub dataset id (user/name), a "
                "URL, or `sample`"
            )
        found = _from_hub(address, asked, options, included)
    if not found.files:
        raise included.nothing_found(found.info.id)
    return replace(found, info=replace(found.info, options={**found.info.options, **stated}))


def _from_path(path: Path, asked: Asked, options: ReadOptions, included: Included) -> Source:
    identity = Path(os.path.abspath(path)).name or "files"  # the same from whichever folder it is named
    info, splits = _info(identity, options), saved_splits(path)
    if splits:
        if asked.split not in splits:
            raise SourceError(f"{path} has no split {asked.split!r}: expected one of {', '.join(splits)} (--split)")
        path, info = path / asked.split, replace(info, split=asked.split)
    return Source(info=info, files=local_files(path, included), options=options)


def _from_hub(address: HubAddress, asked: Asked, options: ReadOptions, included: Included) -> Source:
    from shardkit.sources.hub import hub_files, hub_source

    name, revision = asked.name, address.revision_with(asked.revision)
    how: Any = {"revision": revision, "options": options, "included": included}
    if address.path:
        if name is not None or asked.split != "train":
            raise UsageError(
                f"{address.url} names files, --name and --split choose among those of a whole dataset: give one"
            )
        return hub_files(address.name, address.path, **how)
    if name is None and address.name == DEFAULT_SOURCE:
        name = DEFAULT_CONFIG
    return hub_source(address.name, name=name, split=asked.split, **how)


def _is_local_name(text: str) -> bool:
    return (
        os.path.exists(text)
        or any(c in text for c in "*?[")
        or text.startswith(("/", "./", "../", "~", "."))
        or format_of(text.rstrip("/")) is not None
        or (text.endswith("/") and parse_short(text) is None)
        or "\\" in text
    )


def _from_names(names: list[str], asked: Asked, options: ReadOptions) -> Source:
    """The files of several sources, in this order. Local ones are named relative to the folder that they share, those
    of the Hub and of URLs by their dataset or address."""
    parts = [_from_name(name, asked, options) for name in names]
    if pipes := [name for name, part in zip(names, parts, strict=True) if part.texts is not None]:
        raise UsageError(f"{pipes[0]} is a pipe among several sources: expected it alone")
    local = [replace(file, url=os.path.abspath(file.url)) for file in _local(parts)]
    base = Path(os.path.commonpath([os.path.dirname(file.url) for file in local])) if local else Path()
    files: list[InputFile] = []
    for part in parts:
        if _is_local(part):
            here = [replace(file, url=os.path.abspath(file.url)) for file in part.files]
            files += [replace(file, path=Path(file.url).relative_to(base).as_posix()) for file in here]
        else:
            files += [replace(file, path=f"{part.info.id}/{file.path}") for file in part.files]
    if len(local) == len(files):
        info = _info(base.name or "files", options)
        stated: dict[str, Any] = {} if asked.include is None else {"include": asked.include}
    else:
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        info, stated = _info(f"{parts[0].info.id}{more}", options), {"sources": [_stated(part.info) for part in parts]}
    return Source(info=replace(info, options=stated), files=tuple(files), options=options)


def _is_local(source: Source) -> bool:
    return source.info.id != "sample" and not any(file.is_remote for file in source.files)


def _local(parts: list[Source]) -> list[InputFile]:
    return [file for part in parts if _is_local(part) for file in part.files]


def _stated(info: SourceInfo) -> dict[str, Any]:
    """One of several sources, as a manifest has it."""
    named = {"id": info.id, "config": info.config, "split": info.split, "revision": info.revision, **info.options}
    return {name: value for name, value in named.items() if value is not None}


def _names_in(source: Iterable[Any]) -> list[str] | None:
    """The names in a list of sources; None if `source` is no such list, but texts."""
    if isinstance(source, SourceNames):
        return [place_text(name) for name in source]
    if not isinstance(source, list | tuple) or not source:
        return None
    if isinstance(source[0], os.PathLike):
        if bad := [item for item in source if not isinstance(item, str | os.PathLike)]:
            raise UsageError(f"a list of paths holds a {type(bad[0]).__name__}: expected paths only")
        return [os.fspath(item) for item in source]
    return list(source) if all(_is_file_name(item) for item in source) else None


def _is_file_name(item: Any) -> bool:
    if not isinstance(item, str) or len(item) >= 4096 or "\n" in item:
        return False
    return format_of(item) is not None or item.startswith("hf://")


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user


def _info(identity: str, options: ReadOptions) -> SourceInfo:
    return SourceInfo(id=identity, text_field=options.text_field)
