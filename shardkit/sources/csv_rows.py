"""Comma- or tab-separated files: read front to back by one process, since only what comes before tells whether a line
end is within quotes. The first row names the columns. Values are text, and what `--where` compares them with.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from shardkit.errors import SourceError
from shardkit.sources.pieces import UTF16, Texts, convert_rows
from shardkit.sources.ranges import checked_read
from shardkit.sources.source import MAX_ROW_BYTES, Chunk, InputFile, ReadOptions, check_row_bytes
from shardkit.sources.where import TextValue
from shardkit.sources.whole_rows import row_text

_MOST_ROWS = 1 << 16  # of a chunk
_BLOCK_BYTES = 1 << 20
_NO_NUL = sys.version_info < (3, 11)  # whose csv takes a NUL for an error
_FOR_NUL = "\udc00"  # which stands for no byte


def iter_csv_chunks(
    file: InputFile, number: int, start: int, chunk_bytes: int, stream: Any, options: ReadOptions
) -> Iterator[Chunk]:
    """The chunks of the file that `stream` reads, from row `start` on (the names are no row). Each row travels as its
    values of the columns that are asked for, or what is wrong with it."""
    rows = _Rows(file, stream)
    names = rows.header()
    own = "columns" if options.columns else "--text-field"
    wanted = [_place(file, names, name, own) for name in options.document_columns]
    wanted += [_place(file, names, name, "--where") for name in options.choice.columns]
    batch: list[tuple[str | None, ...]] = []
    size = row = 0
    for values in rows.after_header():
        if isinstance(values, str):
            batch.append((values, *(None for _ in wanted)))
        elif len(values) != len(names):
            batch.append((f"{len(values)} values, the first row names {len(names)} columns", *(None for _ in wanted)))
        else:
            batch.append((None, *(values[place] for place in wanted)))
            size += sum(len(values[place]) for place in wanted[: len(options.document_columns)])
        row += 1
        if size >= chunk_bytes or len(batch) >= _MOST_ROWS:
            if row > start:
                yield _chunk(file, number, row, batch, size)
            batch, size = [], 0
    if batch and row > start:
        yield _chunk(file, number, row, batch, size)


def csv_texts(chunk: Chunk, options: ReadOptions) -> Texts:
    """The documents of a chunk's rows."""
    columns = pa.ipc.open_stream(chunk.payload).read_all().columns
    whys, *values = (column.to_pylist() for column in columns)
    chosen, own = options.choice, len(options.document_columns)
    of_document = dict(zip(options.document_columns, values[:own], strict=True))
    of_choice = dict(zip(chosen.columns, values[own:], strict=True))

    def text(row: int) -> str | None:
        if whys[row] is not None:
            raise ValueError(whys[row].decode("utf-8", "replace"))
        if not chosen.keeps({name: TextValue(column[row].decode()) for name, column in of_choice.items()}):
            return None
        found = {name: column[row].decode() for name, column in of_document.items()}
        return row_text(found) if options.columns else found[options.text_field]

    sampled = np.flatnonzero(chosen.in_sample(chunk.input.path, chunk.start + np.arange(len(whys)))).tolist()
    return convert_rows(((row, row) for row in sampled), len(whys), text, options)


class _Rows:
    """The rows of a file, by Python's csv in its strict form: a quote that is not closed is an error, not the rest of
    the file."""

    def __init__(self, file: InputFile, stream: Any) -> None:
        csv.field_size_limit(MAX_ROW_BYTES)
        self._file = file
        # what is not UTF-8 stays what it is, and is found with the row that holds it
        self._lines = io.TextIOWrapper(
            _Blocks(_Raw(file, stream), _BLOCK_BYTES),
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="",
        )
        delimiter = "\t" if file.kind == "tsv" else ","
        self._reader = csv.reader(iter(self._line, ""), delimiter=delimiter, strict=True)

    def header(self) -> list[str]:
        """The names of the columns."""
        for values in self.after_header():
            if isinstance(values, list):
                if values[0].startswith(("\udcff\udcfe", "\udcfe\udcff")):
                    raise SourceError(f"{self._file.path}: {UTF16}")
                return values
            raise SourceError(f"{self._file.path}, its first row: {values}")
        raise SourceError(f"{self._file.path} has no rows: expected one that names the columns")

    def after_header(self) -> Iterator[list[str] | str]:
        """The rows that are not blank, or what is wrong with one."""
        while True:
            try:
                values = next(self._reader, None)
            except csv.Error as error:
                yield f"not {self._file.kind} ({error})"
                continue
            if values is None:
                return
            if values:
                yield [value.replace(_FOR_NUL, "\0") for value in values] if _NO_NUL else values

    def _line(self) -> str:
        line = self._lines.readline(MAX_ROW_BYTES + 1)
        check_row_bytes(self._file, f"line {self._reader.line_num + 1:,}", len(line))
        return line.replace("\0", _FOR_NUL) if _NO_NUL else line


class _Blocks(io.BufferedReader):
    """Python's text layer asks for 8 kB at a time; it gets more."""

    def read1(self, size: int = -1) -> bytes:  # noqa: ARG002
        return self.read(_BLOCK_BYTES)


class _Raw(io.RawIOBase):
    """What reads `stream`, in the form that Python's buffers want."""

    def __init__(self, file: InputFile, stream: Any) -> None:
        self._file, self._stream = file, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = checked_read(self._file, lambda: self._stream.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def _place(file: InputFile, names: list[str], name: str, option: str) -> int:
    if names.count(name) == 1:
        return names.index(name)
    if name in names:
        raise SourceError(
            f"{file.path} has {names.count(name)} columns {name!r}: give each its own name in its first row, or name "
            f"another column ({option})"
        )
    named = ", ".join(" ".join(name.split()) for name in names)[:300]  # which may have line ends in them
    raise SourceError(f"{file.path} has no column {name!r}: expected one of {named} ({option})")


def _chunk(file: InputFile, number: int, stop: int, batch: list[tuple[str | None, ...]], size: int) -> Chunk:
    columns = [
        pa.array([None if value is None else value.encode("utf-8", "surrogateescape") for value in values], pa.binary())
        for values in zip(*batch, strict=True)
    ]
    payload = pa.BufferOutputStream()
    table = pa.record_batch(columns, names=[str(place) for place in range(len(columns))])
    with pa.ipc.new_stream(payload, table.schema) as writer:
        writer.write_batch(table)
    weight = file.weight_of(size)
    start = stop - len(batch)
    return Chunk(
        file=number, start=start, stop=stop, weight=weight, input=file, payload=payload.getvalue().to_pybytes()
    )
