"""How a giant row group of parquet is read without holding it: what its text column's dictionary decides.

Read as a dictionary, a column keeps each different text until its end: of texts that differ, the whole row group.
Decoded, a batch is as long as its rows are, which is safe where the longest text of the dictionary is known.
"""

from __future__ import annotations

import pyarrow as pa

_MOST_BYTES = 128 << 20  # that a batch may decode to


def batches_of(rows: int, first: pa.Array | None, has_dictionary: bool) -> tuple[int, bool]:
    """How many rows of the row group to read at a time, at most `rows`, and whether they may be read decoded.

    `first` is the text of its first row, read as a dictionary; `has_dictionary` is what the footer says. All of the
    dictionary comes with it, but where the text is not in there: then that is a dictionary of one, as if there were no
    other.
    """
    values = first.dictionary if isinstance(first, pa.DictionaryArray) else []  # none of a field within others
    if len(values) < 2:
        return rows, not has_dictionary
    import pyarrow.compute as pc

    longest = pc.max(pc.binary_length(values)).as_py() or 1
    return max(1, min(rows, _MOST_BYTES // longest)), True


def encoded(batch: pa.RecordBatch, column: str) -> pa.RecordBatch:
    """A batch that was read decoded, with its texts in a dictionary of its own."""
    if column not in batch.schema.names:  # it is within others
        return batch
    texts = batch.column(column)
    if isinstance(texts, pa.DictionaryArray):  # as the file's own schema says
        return batch
    if pa.types.is_string_view(texts.type):
        texts = texts.cast(pa.string())
    return batch.set_column(batch.schema.get_field_index(column), column, texts.dictionary_encode())
