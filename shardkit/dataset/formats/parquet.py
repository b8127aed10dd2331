"""Parquet with a row for each document: `input_ids`, a list of its ids without EOT, and `document`, its number.

`datasets.load_dataset` reads such a folder, and the Hub's viewer shows it: `SPLIT-00000.parquet`, and a `README.md`
whose `configs:` name the splits. A document that goes on in the next split has a row in each, of the same number. Files
of others need a column of lists of whole numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.bin_files import TokenType
from shardkit.dataset.formats.eot import cut
from shardkit.dataset.formats.interface import Blocks, Given, Reading, Shape
from shardkit.dataset.formats.raw_tokens import as_ids
from shardkit.dataset.shards import TOKENS_PER_SHARD
from shardkit.errors import ShardError, SourceError, UsageError
from shardkit.files import atomic_write, write_error

_NAME = re.compile(r"(?P<split>[a-z]+)-[0-9]{5,}.*\.parquet")
_COLUMNS = ("input_ids", "tokens", "token_ids", "ids")
_GROUP_TOKENS = 1 << 20  # of a row group, and so about what is in memory at a time
_READ_ROWS = 256


def recognizes(path: Path) -> bool:
    """A `.parquet` file, or a folder of them."""
    return bool(_files(path))


def _files(path: Path) -> list[tuple[str, Path]]:
    """Each file with its split; val first."""
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    named = [(match["split"] if (match := _NAME.fullmatch(p.name)) else "train", p) for p in paths]
    named = [("val" if split == "validation" else split, p) for split, p in named if p.suffix == ".parquet"]
    return sorted(named, key=lambda item: (item[0] != "val", item[0], item[1].name))


def read(path: Path, given: Given) -> Reading:
    """The rows as documents. Raises `ShardError`; `UsageError` without an EOT or such a column."""
    eot_id, files = given.eot_of(str(path)), _files(path)
    if (lengths := given.lengths) is not None:
        splits = list(lengths)
        files = sorted((item for item in files if item[0] in lengths), key=lambda item: splits.index(item[0]))
        if not files:
            raise ShardError(f"{path} has no file of the splits that its shardkit.json names: convert it again")
    _column(_open(files[0][1]), files[0][1])
    tokens = sum(lengths.values()) if lengths else 0
    dtype, manifest = given.narrowest(), given.manifest
    first = manifest.shards[0].first_document if manifest is not None else 0
    begins_inside = first - 1 if lengths is not None else None  # the number of a document that began before
    blocks = partial(_blocks, files, dtype, eot_id, begins_inside)
    if lengths is not None:
        return Reading(
            dtype=dtype,
            tokens=tokens,
            blocks=lambda: cut(blocks(), lengths, str(path)),
            eot_id=eot_id,
            manifest=manifest,
        )
    return Reading(dtype=dtype, tokens=tokens, blocks=blocks, eot_id=eot_id)


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
        _ = opened.schema_arrow.names  # which need not be text
        return opened
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ShardError(f"{path} is no whole parquet file ({_said(error)}): fetch or make it again") from None


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _column(opened: Any, path: Path) -> str:
    import pyarrow as pa

    schema = opened.schema_arrow
    for name in _COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            if is_list and pa.types.is_integer(kind.value_type):
                return name
    raise UsageError(
        f"{path} has no column of ids ({', '.join(_COLUMNS)}: lists of whole numbers), but {', '.join(schema.names)}: "
        "of text, `shardkit tokenize` makes a dataset"
    )


def _has_numbers(schema: Any) -> bool:
    import pyarrow as pa

    return "document" in schema.names and pa.types.is_int64(schema.field("document").type)


def _blocks(files: list[tuple[str, Path]], dtype: TokenType, eot_id: int, begins_inside: int | None) -> Blocks:
    """The rows, each after an EOT, unless it goes on with the document before, as the numbers say in files of ours."""
    before = begins_inside
    for split, path in files:
        opened = _open(path)
        column = _column(opened, path)
        numbered = begins_inside is not None and _has_numbers(opened.schema_arrow)
        for batch in _batches(opened, [column, "document"] if numbered else [column], path):
            rows = batch.column(column)
            if not len(rows):
                continue
            offsets = rows.offsets.to_numpy().astype(np.int64)
            if rows.null_count or rows.values.null_count:
                raise ShardError(f"{path} holds a row, or an id, that is null: leave such rows out first")
            ids = as_ids(rows.values.to_numpy()[offsets[0] : offsets[-1]], dtype, path)
            numbers = batch.column("document") if numbered else None
            goes_on = numbers is not None and numbers[0].as_py() == before
            yield split, _with_eot(ids, offsets - offsets[0], eot_id, goes_on=goes_on)
            before = numbers[-1].as_py() if numbers is not None else None


def _batches(opened: Any, columns: list[str], path: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from opened.iter_batches(batch_size=_READ_ROWS, columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ShardError(f"{path} is damaged ({_said(error)}): fetch or make it again") from None


def _with_eot(
    ids: NDArray[np.unsignedinteger], offsets: NDArray[np.int64], eot_id: int, *, goes_on: bool
) -> NDArray[np.unsignedinteger]:
    """Rows that begin at `offsets` (their end is the last of these), with one EOT before each, and none of their own at
    either end."""
    starts, ends = offsets[:-1], offsets[1:]
    full = ends > starts
    keep = np.ones(len(ids), bool)
    for edge in (starts[full], ends[full] - 1):
        keep[edge[ids[edge] == eot_id]] = False
    place = np.concatenate([[0], np.cumsum(keep)])[starts]
    return np.insert(ids[keep], place[1:] if goes_on else place, ids.dtype.type(eot_id))


def write(reading: Reading, blocks: Blocks, folder: Path, shape: Shape) -> None:
    """A file for every so many tokens of a split. Raises `OutputError`, `UsageError` without an EOT."""
    if reading.eot_id is None:
        raise UsageError("a row is a document: give --tokenizer NAME or --eot-id NUMBER to find them")
    manifest, writer = reading.manifest, None
    most = shape.shard_tokens or (manifest.tokens_per_shard if manifest is not None else TOKENS_PER_SHARD)
    number = manifest.shards[0].first_document if manifest is not None else 0
    try:
        for split, block in blocks:
            if writer is None or writer.split != split:
                if writer is not None:
                    number = writer.finish()
                writer = _RowWriter(folder, split, number, reading, most)
            writer.write(block)
        if writer is not None:
            writer.finish()
    finally:
        if writer is not None:
            writer.close()
    atomic_write(folder / "README.md", _card({path.name.rpartition("-")[0] for path in folder.glob("*.parquet")}))


def _card(splits: set[str]) -> str:
    files = "".join(f"  - split: {split}\n    path: {split}-*.parquet\n" for split in sorted(splits))
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"


class _RowWriter:
    """Writes the rows of one split; `number` is that of the next document."""

    def __init__(self, folder: Path, split: str, number: int, reading: Reading, most: int) -> None:
        import pyarrow as pa

        self.split = split
        self._folder, self._number, self._most = folder, number, most
        self._eot_id = reading.eot_id
        self._ids = pa.from_numpy_dtype(reading.dtype)
        self._schema = pa.schema([("document", pa.int64()), ("input_ids", pa.list_(self._ids))])
        self._values: list[NDArray[np.unsignedinteger]] = []
        self._starts: list[NDArray[np.int64]] = []
        self._held = self._rows = self._in_file = 0
        self._began = self._begins_inside = False
        self._flush_at = _GROUP_TOKENS
        self._files = count()
        self._file: Any = None

    def write(self, block: NDArray[np.unsignedinteger]) -> None:
        """Append tokens of the split."""
        at = np.flatnonzero(block == self._eot_id)
        starts = at - np.arange(len(at)) + self._held
        if not self._began and len(block):
            self._began = True
            if not len(at) or at[0]:  # the document began in the split before
                self._begins_inside = True
                starts = np.concatenate([[0], starts])
        values = block[block != self._eot_id]
        self._values.append(values)
        self._starts.append(starts)
        self._held += len(values)
        self._rows += len(starts)
        if self._held + self._rows >= self._flush_at:
            self._flush(is_end=False)
            self._flush_at = max(_GROUP_TOKENS, 2 * self._held)  # one long document is laid together few times

    def finish(self) -> int:
        """Write what is left; the number of the next document."""
        self._flush(is_end=True)
        self.close()
        return self._number

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _flush(self, *, is_end: bool) -> None:
        """Write the documents that have ended."""
        import pyarrow as pa

        if not self._starts:
            return
        values, starts = np.concatenate(self._values), np.concatenate(self._starts)
        ends = np.append(starts[1:], len(values))
        rows = len(starts) if is_end else len(starts) - 1
        if rows and int(ends[rows - 1]) > np.iinfo(np.int32).max:
            raise SourceError("a document has more than 2,147,483,647 tokens: no row of parquet takes it")
        if rows > 0:
            first = self._number - self._begins_inside
            offsets = pa.array(np.append(starts[:rows], ends[rows - 1]).astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, pa.array(values[: ends[rows - 1]], self._ids))
            numbers = pa.array(np.arange(first, first + rows, dtype=np.int64))
            self._put(pa.table([numbers, lists], schema=self._schema), int(ends[rows - 1]))
            self._number, self._begins_inside = first + rows, False
        left = starts[rows:]
        self._values = [values[left[0] :]] if len(left) else []
        self._starts, self._rows = ([left - left[0]] if len(left) else []), len(left)
        self._held = len(self._values[0]) if self._values else 0

    def _put(self, table: Any, tokens: int) -> None:
        import pyarrow.parquet as pq

        path = self._folder / f"{self.split}-{next(self._files):05d}.parquet" if self._file is None else None
        try:
            if path is not None:
                self._file, self._in_file = pq.ParquetWriter(path, self._schema, compression="zstd"), 0
            self._file.write_table(table, row_group_size=len(table))
            self._in_file += tokens
            if self._in_file >= self._most:
                self.close()
        except OSError as error:
            raise write_error(error, path or self._folder, table.nbytes) from None
