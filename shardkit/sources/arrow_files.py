"""Arrow's own files (.arrow, .feather, what `datasets` saves): read front to back, as streams, which both of its forms
are; one with random access has a few bytes before the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from shardkit.errors import SourceError
from shardkit.sources.columns import check_columns, payload_of, texts_in
from shardkit.sources.ranges import Rest, checked_read
from shardkit.sources.source import Chunk, InputFile, ReadOptions

_MARK, _STREAM_AT = b"ARROW1", 8
_OLD_FEATHER = b"FEA1"


def iter_arrow_chunks(
    file: InputFile, number: int, start: int, chunk_bytes: int, stream: Any, options: ReadOptions
) -> Iterator[Chunk]:
    """The chunks of the file that `stream` reads, from row `start` on."""
    head = checked_read(file, lambda: stream.read(_STREAM_AT))
    if head.startswith(_OLD_FEATHER):
        raise SourceError(
            f"{file.path} is Feather of version 1: write it again, with "
            'pyarrow.feather.write_feather(pyarrow.feather.read_table("OLD"), "NEW")'
        )
    rest = stream if head.startswith(_MARK) else Rest(head, stream)
    reader = checked_read(file, lambda: pa.ipc.open_stream(pa.PythonFile(rest, mode="r")))
    check_columns(file, reader.schema, options)
    row = 0
    while (batch := checked_read(file, lambda: _next(reader))) is not None:
        if row + len(batch) <= start:
            row += len(batch)
            continue
        at = 0
        for texts in texts_in(file, batch, options, chunk_bytes, "the table", row):
            rows = batch.slice(at, len(texts))
            at += len(texts)
            row += len(texts)
            if row > start:
                yield Chunk(
                    file=number,
                    start=row - len(texts),
                    stop=row,
                    first_row=row - len(texts),
                    weight=file.weight_of(texts.nbytes),
                    input=file,
                    payload=payload_of(rows, texts, options),
                )


def _next(reader: pa.RecordBatchStreamReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
