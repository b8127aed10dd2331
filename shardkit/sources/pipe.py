"""What comes through a pipe: standard input (`-`), or a FIFO, as `<(...)` of a shell. It is read once."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

from shardkit.errors import SourceError, UsageError
from shardkit.sources.formats import format_of
from shardkit.sources.source import PIPE, Chunk, InputFile

STDIN = "-"
FORMATS = ("jsonl", "json", "csv", "tsv", "txt")


def is_pipe(name: str) -> bool:
    """Whether `name` means standard input or a FIFO."""
    return name == STDIN or (os.path.exists(name) and stat.S_ISFIFO(os.stat(name).st_mode))


def pipe_file(name: str, format: str | None) -> InputFile | None:
    """The pipe that `name` means, as a file of that `format`; None if it is none. Raises `UsageError`."""
    if not is_pipe(name):
        if format is not None:
            raise UsageError(f"--format says what comes through a pipe, and {name} is none: its name says its format")
        return None
    kind = format or (format_of(name) if name != STDIN else None)
    if kind not in FORMATS:
        raise UsageError(f"{name} is a pipe: say what comes through it with --format, one of {', '.join(FORMATS)}")
    return InputFile(path="stdin" if name == STDIN else "pipe", url=name, bytes=0, format=str(kind), version=PIPE)


class Pipe(Iterator[Any]):
    """A pipe that is read, its bytes hashed as they come: nothing else says whether a run that goes on is given the
    same ones. A context manager."""

    def __init__(self, file: InputFile) -> None:
        self._raw: IO[bytes] | None = None
        self._file, self._content = file, hashlib.sha256()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._raw is not None and self._file.url != STDIN:
            self._raw.close()

    def __next__(self) -> Any:
        raise TypeError("a pipe is read by its chunks")

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        if self._raw is None:
            self._raw = _standard_input() if self._file.url == STDIN else open(self._file.url, "rb")  # noqa: SIM115
        data = self._raw.read(size)
        self._content.update(data)
        return data

    def noted(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """`chunks`, each with the hash of all that was read for it and those before."""
        for chunk in chunks:
            yield replace(chunk, digest=self._content.hexdigest())


def _standard_input() -> IO[bytes]:
    raw: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    if raw is None or sys.stdin.isatty():
        raise SourceError(f"{STDIN} reads what is piped in, and nothing is: `... | shardkit tokenize {STDIN} ...`")
    return raw
