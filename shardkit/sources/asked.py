"""What is asked of a source beside its name, and whether that goes together with what it is."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace

from shardkit.errors import ShardkitWarning, SourceError, UsageError
from shardkit.sources.ranges import checked_read, read_range
from shardkit.sources.source import Source

_ENDOFTEXT = "<|endoftext|>"
_AT_A_LINES_END = re.compile(rb"(?:^|\n)<\|endoftext\|>|<\|endoftext\|>(?:\r?\n|$)")
_LOOKED_AT, _LOOKED_INTO = 256 << 10, 16  # bytes of a text file, and so many files
_LONG = 4 << 20  # a text file on a server that is worth another request
_TABLES = ("parquet", "jsonl", "json", "csv", "tsv", "arrow")
_WITHOUT_FIELDS = ("txt", "txt.separated", "docstrings")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is said of a source beside its name: which of its files are meant, and what comes through a pipe."""

    name: str | None = None
    split: str = "train"
    revision: str | None = None
    include: str | None = None
    format: str | None = None


def checked_source(source: Source, asked: Asked) -> Source:
    """`source`, if its files can hold what they should, and with the separator known to them.

    Warns (`ShardkitWarning`) of what was asked for and changes nothing, of a pipe, which is read once, and of a text
    file that seems to hold several documents. Raises `UsageError` or `SourceError`.
    """
    source = _checked(source)
    _warn_of_unused(source, asked)
    _warn_of_separators(source)
    return source


def _checked(source: Source) -> Source:
    """`source`, if its files can hold what they should, and with the separator known to them."""
    for file in source.files:
        if file.bytes == 0 and (file.packing or file.kind == "arrow") and not file.is_pipe:
            raise SourceError(
                f"{file.path} has no bytes, and even an empty {file.format} file has some: it was not written or sent "
                "to its end; fetch or make it again, or remove it"
            )
    if source.options.where is not None and (bad := [f for f in source.files if f.kind not in _TABLES]):
        raise UsageError(f"--where asks for columns, and {bad[0].path} has none: expected {', '.join(_TABLES)}")
    if source.options.columns and (bad := [f for f in source.files if f.kind not in (*_TABLES, "texts")]):
        raise UsageError(f"columns asks for columns, and {bad[0].path} has none: expected {', '.join(_TABLES)}")
    separator = source.options.separator
    if separator is None or all(file.kind == "texts" for file in source.files):
        return source
    if separator == "":
        raise UsageError("--separator is empty: expected the text that stands between two documents")
    if bad := [f for f in source.files if f.kind != "txt"]:
        raise UsageError(f"--separator is for text files, {bad[0].path} is {bad[0].format}")
    separated = (replace(f, format=f"txt.separated.{f.packing}".rstrip(".")) for f in source.files)
    return replace(source, files=tuple(separated))


def _warn_of_unused(source: Source, asked: Asked) -> None:
    """Warn (`ShardkitWarning`) of options that were given and change nothing, and of what a pipe is."""
    info, unused = source.info, dict[str, str]()
    if info.revision is None and "sources" not in info.options:
        of_hub = {
            "--name": asked.name,
            "--split": asked.split != "train" and not info.split,
            "--revision": asked.revision,
        }
        unused = {flag: "no Hub dataset" for flag, given in of_hub.items() if given}
    if source.options.text_field != "text" and all(file.kind in _WITHOUT_FIELDS for file in source.files):
        unused["--text-field"] = "plain text"
    if source.files[0].kind in ("texts", "docstrings") or source.files[0].is_pipe:
        unused |= {"--include": "no folder or dataset"} if asked.include is not None else {}
    for flag, why in unused.items():
        warnings.warn(f"{flag} changes nothing: {info.id} is {why}", ShardkitWarning, stacklevel=5)
    if source.files[0].is_pipe:
        warnings.warn(
            f"{info.id} is read once: a run that is stopped goes on only if the same bytes are piped in again",
            ShardkitWarning,
            stacklevel=5,
        )


def _warn_of_separators(source: Source) -> None:
    """Warn (`ShardkitWarning`) of a text file that has ends of text in it: it is read as one document, in which these
    are words. A few files are looked into, and of remote ones a long one."""
    texts = [file for file in source.files if file.kind == "txt" and not file.is_pipe and not file.packing]
    local = [file for file in texts if not file.is_remote][:_LOOKED_INTO]
    for file in local or [file for file in texts if file.bytes > _LONG][:1]:
        head = checked_read(file, lambda: read_range(file, 0, min(file.bytes, _LOOKED_AT)))  # noqa: B023 (called now)
        if _AT_A_LINES_END.search(head):
            warnings.warn(
                f"{file.path} has {_ENDOFTEXT} in it, and is read as one document, in which that is plain text: if it "
                f"stands between documents, give --separator '{_ENDOFTEXT}'",
                ShardkitWarning,
                stacklevel=5,
            )
            return
