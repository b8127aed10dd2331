"""The input formats, as a file's name says them: what it holds (`KINDS`), and how that is packed (`PACKINGS`)."""

from __future__ import annotations

import re

# What a file holds, by its name's ending. Of JSON, whether it is lines or an array is found by its content.
KINDS = {
    "parquet": "parquet",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "csv": "csv",
    "tsv": "tsv",
    "arrow": "arrow",
    "feather": "arrow",
    "txt": "txt",
    "md": "txt",
    "html": "txt",
}
PACKINGS = ("gz", "zst", "bz2", "xz")
_PACKED_KINDS = ("jsonl", "json", "csv", "tsv", "txt")
NOTES = ("md", "html")  # what is often beside data, and about them: not one of several kinds unless it is named
EXPECTED = ", ".join(f".{ending}" for ending in KINDS) + f"; of text also with .{', .'.join(PACKINGS)} after it"
_NAME = re.compile(rf"\.({'|'.join(KINDS)})(?:\.({'|'.join(PACKINGS)}))?$", re.IGNORECASE)


def format_of(path: str) -> str | None:
    """The format that a file's name says, as `kind` or `kind.packing`; None where it says none."""
    found = _NAME.search(path)
    if found is None:
        return None
    kind, packing = KINDS[found[1].lower()], (found[2] or "").lower()
    if packing and kind not in _PACKED_KINDS:
        return None
    return f"{kind}.{packing}" if packing else kind


def family_of(path: str) -> str:
    """Which files of a folder belong together, by their name's ending: packed or not, `jsonl` with `ndjson`, but a
    README.md is not one of the .txt files, nor an index.html, nor a config.json one of the .jsonl files."""
    found = _NAME.search(path)
    ending = found[1].lower() if found else ""
    return ending if KINDS.get(ending) == "txt" else KINDS.get(ending, "")


def packing_of(format: str) -> str:
    """How the bytes of a file of that `format` are packed; empty if they are not."""
    last = format.rpartition(".")[2]
    return last if last in PACKINGS else ""


def kind_of(format: str) -> str:
    """What is in a file of that `format`, unpacked: one of `KINDS`, or what `InputFile.format` says beside those."""
    return format.removesuffix(f".{packing_of(format)}") if packing_of(format) else format
