"""Parquet files that are open: their footers and columns, over a network too, cached for the next chunk."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import SourceError
from shardkit.network import Result
from shardkit.sources.ranges import AheadFile, DamagedSource, RangeFile, checked_read
from shardkit.sources.source import Fetched, InputFile, Piece


def checked_footer(
    file: InputFile,
    action: Callable[[Piece | None], Result],
    footer: Piece | None,
    blame: type[SourceError] = DamagedSource,
) -> Result:
    """`action(footer)`, which asks for no more than the footer; a remote one is read again before it gets the
    `blame`."""
    try:
        return checked_read(file, lambda: action(footer))
    except blame:
        if not file.is_remote:
            raise
        close_parquet_files()
        return checked_read(file, lambda: action(None))


def close_parquet_files() -> None:
    """Have the next chunk open its file anew."""
    open_footer.cache_clear()
    _open_local.cache_clear()


@lru_cache(maxsize=4)
def open_footer(file: InputFile, footer: Piece | None) -> pq.ParquetFile:
    """The file, open for what its footer says, cached for its next chunk. The `footer` of a remote one may be at
    hand."""
    return pq.ParquetFile(
        pa.PythonFile(RangeFile(file, Fetched(footer=footer)), mode="r") if file.is_remote else file.url
    )


def open_column(
    file: InputFile, dictionaries: tuple[str, ...], raw: RangeFile | None, footer: Piece | None = None
) -> pq.ParquetFile:
    """The file, open for its rows. Of the columns `dictionaries` a dictionary is left as one; `raw` gives the bytes of
    a remote file. Pages are checked against their checksums, where the file has them."""
    if not file.is_remote:
        return _open_local(file, dictionaries)
    raw = raw or RangeFile(file)
    metadata = open_footer(file, footer).metadata
    # without a buffer size, a giant row group would be read whole before its first batch
    buffer_bytes = 1 << 20 if isinstance(raw, AheadFile) else 0
    return pq.ParquetFile(
        pa.PythonFile(raw, mode="r"),
        metadata=metadata,
        read_dictionary=list(dictionaries),
        pre_buffer=False,
        buffer_size=buffer_bytes,
        page_checksum_verification=True,
    )


@lru_cache(maxsize=4)
def _open_local(file: InputFile, dictionaries: tuple[str, ...]) -> pq.ParquetFile:
    return pq.ParquetFile(
        file.url,
        metadata=open_footer(file, None).metadata,
        read_dictionary=list(dictionaries),
        pre_buffer=False,  # which would read whole row groups before their first row
        buffer_size=1 << 20,
        page_checksum_verification=True,
    )
