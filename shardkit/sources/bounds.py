"""What a parquet file's statistics say of `--where`: which of its row groups hold no row that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.sources.choice import Choice
from shardkit.sources.where import COMPARE, Comparison, Joined, Where, sort_of

_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What a file says of a column in some of its rows: how many there are, how many values are missing, the least and
    the largest. None where it does not say."""

    rows: int
    nulls: int | None = None
    least: Any = None
    most: Any = None


def may_keep(where: Where, statistics: Mapping[str, Statistics]) -> bool:
    """Whether a row may be kept of which no more is known than the `statistics` of its columns."""
    return _may_be(where.root, statistics, wanted=True)


def may_keep_group(group: pq.RowGroupMetaData, chosen: Choice) -> bool:
    """Whether `--where` may keep a row of a row group, as far as its statistics say."""
    if chosen.where is None:
        return True
    known: dict[str, Statistics] = {}
    for number in range(group.num_columns):
        column = group.column(number)
        stated = column.statistics if column.path_in_schema in chosen.columns else None
        if stated is None:
            continue
        least = most = None
        with suppress(UnicodeDecodeError, ValueError, pa.ArrowException):  # a bound that was cut within a character
            least, most = (stated.min, stated.max) if stated.has_min_max else (None, None)
        nulls = stated.null_count if stated.has_null_count else None
        known[column.path_in_schema] = Statistics(rows=group.num_rows, nulls=nulls, least=least, most=most)
    return may_keep(chosen.where, known)


def _may_be(node: Comparison | Joined, statistics: Mapping[str, Statistics], *, wanted: bool) -> bool:
    """Whether `node` may be `wanted` (True or False) for a row of which the `statistics` are known."""
    if isinstance(node, Comparison):
        return _test_may_be(node, statistics.get(node.column), wanted=wanted)
    if node.op == "not":
        return _may_be(node.parts[0], statistics, wanted=not wanted)
    parts = (_may_be(part, statistics, wanted=wanted) for part in node.parts)
    return all(parts) if (node.op == "and") == wanted else any(parts)


def _test_may_be(test: Comparison, known: Statistics | None, *, wanted: bool) -> bool:
    if known is None or not known.rows:
        return True
    if not test.values:
        nulls = (test.op == "is null") == wanted
        return known.nulls is None or (known.nulls > 0 if nulls else known.nulls < known.rows)
    if known.nulls == known.rows:
        return False  # all missing: neither true nor false
    sorts = {sort_of(known.least), sort_of(known.most)}
    if sorts != {sort_of(test.values[0])} or not (_is_exact(known.least) and _is_exact(known.most)):
        return True  # also where there is none
    if test.op in ("in", "not in"):
        within = any(known.least <= value <= known.most for value in test.values)
        return within if (test.op == "in") == wanted else True
    if not wanted and isinstance(known.least, float):
        return True  # a NaN, of which statistics say nothing, is in no range: the opposite of a comparison holds
    value: Any = test.values[0]
    op = test.op if wanted else _OPPOSITE[test.op]
    if op == "==":
        return bool(known.least <= value <= known.most)
    if op == "!=":  # of text, a part of the bounds may be all that is known
        return isinstance(known.least, float | str) or not known.least == value == known.most
    return COMPARE[op](known.least if op in ("<", "<=") else known.most, value)


def _is_exact(value: Any) -> bool:
    """Whether a least or largest value is one that other values can be told from by."""
    return not isinstance(value, Decimal) and value == value  # a NaN
