"""What a source is: an ordered list of files (`Source`) in the input formats (`formats.py`), and the pieces of them
that workers read (`Chunk`). How each format is cut is in `chunks.py`, how it is read in `texts.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError
from shardkit.sources.choice import Choice, choice
from shardkit.sources.formats import kind_of, packing_of

PIPE = "a pipe"
MAX_ROW_BYTES = 256 << 20  # a row is held in memory; one with no end would fill it


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """What a part of a run reads of a file that it shares with others: chunks that begin in [`start`, `stop`), counted
    as chunks count; `stop` is None at the file's end. `bytes` is its share of the file's."""

    start: int
    stop: int | None
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A file to read: `path` names it in errors and manifests, `url` opens it (a local path, or an address of the
    Hub, http(s) or what fsspec reads, with the password or signature that this takes: it is never recorded or printed).

    `format` is what its name says (`formats.py`), or "txt.separated" (text with a separator, packed or not),
    "json.values" (JSON that is no lines), "docstrings" (the built-in sample) or "texts" (an iterable, with an empty
    `url`). A pipe, which is read once, has the url "-" or the path of one, and no size. `version` tells it from another
    file of that name and size (see `file_version.py`); it is empty where nothing does, or where nothing needs to: `url`
    names a commit. `oid` is the hash that the Hub states: SHA-256 (64 hex digits), or that of git, SHA-1 (40).
    Where only a `stretch` of the file is read, `bytes` is the size of all of it.
    """

    path: str
    url: str = field(repr=False)
    bytes: int
    format: str
    version: str = ""
    oid: str = ""
    stretch: Stretch | None = None

    @property
    def weight(self) -> int:
        """Bytes of it that are read."""
        return self.bytes if self.stretch is None else self.stretch.bytes

    def weight_of(self, size: int) -> int:
        """Bytes of it that `size` bytes of its text took, about."""
        return min(self.bytes, size // 3 if self.packing else size)

    @property
    def kind(self) -> str:
        """What the file holds, unpacked: its `format` without the packing."""
        return kind_of(self.format)

    @property
    def packing(self) -> str:
        """How its bytes are packed, as in `PACKINGS`; empty if they are not."""
        return packing_of(self.format)

    @property
    def is_read_front_to_back(self) -> bool:
        """Whether one process reads all of it, from its beginning; its data travel in the chunks."""
        if self.kind == "jsonl":
            return bool(self.packing) or self.is_pipe
        return self.kind in ("json", "json.values", "csv", "tsv", "arrow", "txt.separated") or self.is_pipe

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once."""
        return self.version == PIPE

    @property
    def is_remote(self) -> bool:
        """True if `url` is an address, and no path of this machine."""
        return "://" in self.url

    @property
    def state(self) -> str:
        """Size and version in words: what must stay the same while the file is read, and from run to run."""
        return self.state_with(self.bytes, self.version)

    @staticmethod
    def state_with(size: int | None, version: str) -> str:
        """The `state` of a file of that size and version."""
        return f"{size} bytes, {version}" if version else f"{size} bytes"


Piece = tuple[int, bytes | bytearray | memoryview]  # where in the file, and the bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """Bytes of a chunk's remote file that were fetched ahead: `pieces` in the order of the file, and the last ones of a
    parquet file, which hold its `footer`."""

    pieces: tuple[Piece, ...] = ()
    footer: Piece | None = None

    def find(self, start: int, stop: int) -> memoryview | bytes | None:
        """The bytes `[start, stop)` of the file, if they are here: a view of them if they lie in one piece."""
        parts: list[memoryview] = []
        at = start
        for first, data in (*self.pieces, *((self.footer,) if self.footer else ())):
            if first <= at < first + len(data):
                parts.append(memoryview(data)[at - first : stop - first])
                at += len(parts[-1])
                if at >= stop:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        return None

    @property
    def size(self) -> int:
        """Bytes of all `pieces`."""
        return sum(len(data) for _, data in self.pieces)

    def is_whole(self, size: int) -> bool:
        """Whether the `pieces` are all of a file of `size` bytes, each byte once."""
        at = 0
        for first, data in self.pieces:
            if first != at:
                return False
            at += len(data)
        return at == size

    def rest(self, start: int) -> bytes:
        """The bytes from `start` to the end of the piece that holds it; none if no piece does."""
        return next(
            (bytes(data[start - first :]) for first, data in self.pieces if first <= start < first + len(data)), b""
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A run of rows of one file, 8 to 64 MB of text: the unit that a worker reads and encodes. Or a file that is given
    out whole (`is_whole_file`), from row `start` on, which the worker divides into such runs.

    `file` is the file's number in the source. `start` and `stop` count row groups (parquet), bytes (jsonl) or rows (all
    formats that are read front to back; their data travels in `payload`; of a whole file `stop` is -1). `part` is the
    first row of a piece of a giant row group. `first_row`, of parquet, is the number of the chunk's first row in the
    file. `weight` is the chunk's share of the file's bytes, for progress. `digest`, of an iterable or a pipe, is a hash
    of its texts or bytes up to the chunk's end. `fetched` are bytes of a remote file that the worker need not fetch.
    `unread_rows`, if there are any, are all that the chunk has: rows of which the file's footer says that none is
    chosen.
    """

    file: int
    start: int
    stop: int
    weight: int
    input: InputFile
    part: int = 0
    first_row: int = 0
    unread_rows: int = 0
    digest: str = ""
    payload: bytes | tuple[str | None, ...] | None = field(default=None, repr=False)
    fetched: Fetched | None = field(default=None, repr=False)

    @property
    def is_whole_file(self) -> bool:
        """Whether it is all the rest of a file that is read front to back."""
        return self.payload is None and self.stop < self.start and self.input.is_read_front_to_back

    @property
    def where(self) -> str:
        """The chunk in words, for error messages."""
        if self.is_whole_file:
            return self.input.path
        unit = {"parquet": "row groups", "jsonl": "bytes"}.get(self.input.format, "rows")
        return f"{self.input.path}, {unit} {self.start}-{self.stop}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How bytes become documents; the same for every chunk of a run. With `columns` a row of these stands in the place
    of its text (`whole_rows.py`)."""

    text_field: str = "text"
    columns: tuple[str, ...] = ()
    separator: str | None = None
    skip_bad_rows: bool = False
    where: str | None = None
    sample: float | None = None

    @property
    def choice(self) -> Choice:
        """Which rows are read."""
        return choice(self.where, self.sample)

    @property
    def document_columns(self) -> tuple[str, ...]:
        """The columns that a document is made of."""
        return self.columns or (self.text_field,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An ordered list of files, or (`texts`) any iterable of documents, which a resumed run reads from its start."""

    info: SourceInfo
    files: tuple[InputFile, ...]
    options: ReadOptions
    texts: Iterable[Any] | None = field(default=None, repr=False)


def check_row_bytes(file: InputFile, which: str, size: int) -> None:
    """Raise `SourceError` if a row, of which `size` bytes are known, is longer than a row may be."""
    if size > MAX_ROW_BYTES:
        raise SourceError(
            f"{file.path}, {which}: no end of the row within {MAX_ROW_BYTES:,} bytes, the most that a row may have; "
            "split it, or check what stands between two rows (a line end in jsonl, --separator in text)"
        )


def can_be_read_again(texts: object) -> bool:
    """Whether an iterable is known to give its items each time anew, as lists, arrays, tables and datasets do."""
    texts = _inside_bar(texts)
    return hasattr(texts, "__len__") and hasattr(texts, "__getitem__") and not isinstance(texts, Iterator)


def is_read_once(texts: object) -> bool:
    """Whether an iterable is known to give its items once, as generators do."""
    return isinstance(_inside_bar(texts), Iterator)


def _inside_bar(texts: object) -> object:
    """What a bar of tqdm draws: the bar has a length, and is no iterator, also where that is a generator."""
    while type(texts).__module__.partition(".")[0] == "tqdm" and hasattr(texts, "iterable"):
        texts = texts.iterable
    return texts
