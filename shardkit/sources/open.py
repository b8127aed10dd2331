"""How the user's name for a source is understood: `sample`, a path, a glob, a URL, a Hub dataset, or an iterable.

The files of a path or URL are found in `listing.py`, those of a Hub dataset in `hub.py`, the built-in sample is in
`sample.py`. The formats are listed in `source.py`, cut into chunks in `chunks.py` and read in `texts.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardkit.arguments import check_texts, place_text
from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import ShardkitWarning, SourceError, UsageError
from shardkit.hub_address import parse_address, parse_short
from shardkit.redaction import public_address
from shardkit.sources.listing import local_files, url_files
from shardkit.sources.source import InputFile, ReadOptions, Source, format_of

DEFAULT_SOURCE = "HuggingFaceFW/fineweb-edu"
DEFAULT_CONFIG = "sample-10BT"


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

    `source` is "sample", a local file, folder or glob, a URL that fsspec reads, a Hub dataset id, an address on the Hub
    (of a dataset, or of a file, folder or glob in it: `hub_address.py`), a list of local paths, or any iterable of
    texts or of rows with a `text_field` (a `datasets.Dataset`). A list (or tuple) is one of paths if its first item is
    a `Path`, or if every item is a string that ends as a file name in `FORMATS` does.

    Of a folder, files of one kind are read: parquet, jsonl (compressed or not) or txt, whichever has the most bytes.
    All others but hidden ones are named in a warning; a glob or a list of paths reads any kinds together.

    Warns (`ShardkitWarning`) of an option that changes nothing for such a source.

    Raises `SourceError` if it does not exist or has no files to read, `AuthError` if it may not be read, `UsageError`
    if it is none of these.
    """
    if type(split).__module__.partition(".")[0] == "datasets":  # its `Split.TRAIN`
        split = str(split)
    check_texts(name=name, split=split, revision=revision, text_field=text_field, separator=separator)
    options = ReadOptions(text_field=text_field, separator=separator, skip_bad_rows=bool(skip_bad_rows))
    if isinstance(source, str | os.PathLike):
        opened = _from_name(place_text(source), name, split, revision, options)
    else:
        paths = _paths_in(source)
        opened = _from_iterable(source, options) if paths is None else _from_paths(paths, options)
    of_hub = {"--name": name is not None, "--split": split != "train", "--revision": revision is not None}
    _warn_of_unused(opened, [flag for flag, given in of_hub.items() if given])
    return _checked(opened)


def _from_name(text: str, name: str | None, split: str, revision: str | None, options: ReadOptions) -> Source:
    if text == "sample":
        from shardkit.sources.sample import sample_source

        return sample_source(options)
    address = parse_address(text) if "://" in text else None
    if address is None and "://" in text:
        return Source(info=_info(public_address(text), options), files=url_files(text), options=options)
    if address is None and _is_local_name(text):
        identity = Path(os.path.abspath(_path(text))).name or "files"  # the same from whichever folder it is named
        return Source(info=_info(identity, options), files=local_files(_path(text)), options=options)
    address = address or parse_short(text)
    if address is None:
        raise UsageError(
            f"cannot tell what source {text!r} is: no such local path, and not a Hub dataset id (user/name), a URL, or "
            "`sample`"
        )
    from shardkit.sources.hub import hub_files, hub_source

    revision = address.revision_with(revision)
    if address.path:
        if name is not None or split != "train":
            raise UsageError(
                f"{address.url} names files, --name and --split choose among those of a whole dataset: give one"
            )
        return hub_files(address.name, address.path, revision=revision, options=options)
    if name is None and address.name == DEFAULT_SOURCE:
        name = DEFAULT_CONFIG
    return hub_source(address.name, name=name, split=split, revision=revision, options=options)


def _is_local_name(text: str) -> bool:
    return (
        os.path.exists(text)
        or any(c in text for c in "*?[")
        or text.startswith(("/", "./", "../", "~", "."))
        or format_of(text) is not None
        or "\\" in text
    )


def _from_paths(names: list[str], options: ReadOptions) -> Source:
    """The files of a list of names, in its order; local ones are named relative to the folder that they share."""
    if remote := [name for name in names if "://" in name]:
        raise UsageError(f"{remote[0]} stands in a list of files: expected local paths there, give a URL by itself")
    files = [replace(file, url=os.path.abspath(file.url)) for name in names for file in local_files(_path(name))]
    base = Path(os.path.commonpath([os.path.dirname(file.url) for file in files]))
    named = tuple(replace(file, path=Path(file.url).relative_to(base).as_posix()) for file in files)
    return Source(info=_info(base.name or "files", options), files=named, options=options)


def _paths_in(source: Iterable[Any]) -> list[str] | None:
    """The names in a list of files; None if `source` is no such list, but texts."""
    if not isinstance(source, list | tuple) or not source:
        return None
    if isinstance(source[0], os.PathLike):
        if bad := [item for item in source if not isinstance(item, str | os.PathLike)]:
            raise UsageError(f"a list of paths holds a {type(bad[0]).__name__}: expected paths only")
        return [os.fspath(item) for item in source]
    return list(source) if all(_is_file_name(item) for item in source) else None


def _is_file_name(item: Any) -> bool:
    return isinstance(item, str) and len(item) < 4096 and "\n" not in item and format_of(item) is not None


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user


def _from_iterable(texts: Iterable[Any], options: ReadOptions) -> Source:
    texts = _text_column(texts, options.text_field)
    if isinstance(texts, bytes) or not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) == 0:
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


def _text_column(texts: Any, column: str) -> Any:
    """The column of a table of pandas, polars or pyarrow, which itself is an iterable of its columns; else `texts`."""
    kind = type(texts)
    if kind.__module__.partition(".")[0] not in ("pandas", "polars", "pyarrow"):
        return texts
    names = getattr(texts, "column_names", None) if kind.__module__.startswith("pyarrow") else None
    names = getattr(texts, "columns", None) if names is None else names
    if names is None:
        return texts  # one column
    named = list(map(str, names))
    if named.count(column) != 1:
        has = f"{named.count(column)} columns" if column in named else "no column"
        raise SourceError(
            f"the {kind.__name__} has {has} {column!r}: expected one of {', '.join(named)} (--text-field)"
        )
    return texts[column]


def _checked(source: Source) -> Source:
    """`source`, if its files can hold what they should, and with the separator known to them."""
    for file in source.files:
        if file.bytes == 0 and file.format in ("jsonl.gz", "jsonl.zst"):
            raise SourceError(
                f"{file.path} has no bytes, and even an empty {file.format} file has some: it was not written or sent "
                "to its end; fetch or make it again, or remove it"
            )
    separator = source.options.separator
    if separator is None or source.texts is not None:
        return source
    if separator == "":
        raise UsageError("--separator is empty: expected the text that stands between two documents")
    if bad := [f for f in source.files if f.format != "txt"]:
        raise UsageError(f"--separator is for .txt files, {bad[0].path} is {bad[0].format}")
    return replace(source, files=tuple(replace(file, format="txt.separated") for file in source.files))


def _warn_of_unused(source: Source, of_hub: list[str]) -> None:
    """Warn (`ShardkitWarning`) of options that were given and change nothing: those `of_hub` are of Hub datasets."""
    unused = {flag: "no Hub dataset" for flag in of_hub if source.info.revision is None}
    if source.options.text_field != "text" and all(file.format in ("txt", "docstrings") for file in source.files):
        unused["--text-field"] = "plain text"
    for flag, why in unused.items():
        warnings.warn(f"{flag} changes nothing: {source.info.id} is {why}", ShardkitWarning, stacklevel=4)


def _info(identity: str, options: ReadOptions) -> SourceInfo:
    return SourceInfo(id=identity, text_field=options.text_field)
