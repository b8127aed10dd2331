"""`--where`: which rows are read, by what is in their columns. A small language, written as Python writes it:

    score >= 3 and language == "en"        meta.source in ("web", "books")        not (0.2 < p < 0.8)
    date is not null                       is_english                             col("a name with spaces") != "x"

Python's parser reads it, and nothing of it is ever run as Python: what is not listed here is refused. A value that is
missing makes a comparison neither true nor false, as in SQL and pyarrow, and a row is read where the whole is true.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from shardkit.errors import UsageError

Value = int | float | str | bool
_LONGEST, _DEEPEST = 10_000, 100  # characters of an expression; levels of what is within something else
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_NAMES: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Is: "is",
    ast.IsNot: "is not",
}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda value, among: value in among,
    "not in": lambda value, among: value not in among,
}
_EXPECTED = 'expected comparisons of columns, as in: score >= 3 and language == "en"'


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column against `values` (one; several for `in` and `not in`; none for `is null` and `is not null`)."""

    column: str
    op: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """`parts` joined by `op`, "and" or "or"; or the opposite of the one part: "not"."""

    op: str
    parts: tuple[Comparison | Joined, ...]


@dataclass(frozen=True, slots=True)
class Where:
    """An expression: the `columns` that it asks for, which rows it keeps, and which it cannot keep."""

    text: str
    columns: tuple[str, ...]
    root: Comparison | Joined

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All that it compares."""
        return tuple(_comparisons(self.root))

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether the row with these values of `columns` is read. Raises `ValueError` for a value that cannot be
        compared so."""
        return _value_of(self.root, row) is True


@lru_cache(maxsize=8)
def parse_where(text: str) -> Where:
    """The expression that `text` says. Raises `UsageError`, which says what is expected."""
    if len(text) > _LONGEST:
        raise UsageError(f"--where has {len(text):,} characters: expected at most {_LONGEST:,}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        root = _read(tree)
    except SyntaxError as error:
        why = str(error.msg).partition(". ")[0]
        raise UsageError(f"--where {text!r}: {why}{_hint(text)}; {_EXPECTED}") from None
    except _NotAllowed as error:
        raise UsageError(f"--where {text!r}: {error}; {_EXPECTED}") from None
    except (RecursionError, MemoryError, ValueError):  # what else the parser raises: nested too deep, a NUL
        raise UsageError(f"--where: it is nested too deep, or holds a NUL; {_EXPECTED}") from None
    return Where(text, tuple(dict.fromkeys(test.column for test in _comparisons(root))), root)


class _NotAllowed(Exception):
    """A part of the expression that is none of the language."""


def _hint(text: str) -> str:
    words = {"AND", "OR", "NOT", "&&", "||"} & set(text.split())
    if words:
        return " (and, or, not are written so)"
    return " (equality is written ==)" if "=" in text.replace("==", "").replace("<=", "").replace(">=", "") else ""


def _read(node: ast.expr, depth: int = 0) -> Comparison | Joined:
    if depth > _DEEPEST:
        raise _NotAllowed("nested too deep")
    if isinstance(node, ast.BoolOp):
        op = "and" if isinstance(node.op, ast.And) else "or"
        return Joined(op, tuple(_read(part, depth + 1) for part in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Joined("not", (_read(node.operand, depth + 1),))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        tests = [_compared(sides[i], _NAMES[type(op)], sides[i + 1]) for i, op in enumerate(node.ops)]
        return tests[0] if len(tests) == 1 else Joined("and", tuple(tests))
    if (column := _column(node)) is not None:
        return Comparison(column, "==", (True,))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        raise _NotAllowed("& and | are written `and` and `or`")
    raise _NotAllowed(f"{ast.unparse(node)!r} is no comparison")


def _compared(left: ast.expr, op: str, right: ast.expr) -> Comparison:
    column = _column(left)
    if op in ("is", "is not"):
        if column is None or not _is_null(right):
            raise _NotAllowed("`is` is for `is null` and `is not null`")
        return Comparison(column, f"{op} null")
    if op in ("in", "not in"):
        if column is None or not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise _NotAllowed(f'`{op}` is for a column and a list, as in: language {op} ("en", "de")')
        values = tuple(map(_literal, right.elts))
        if len({sort_of(value) for value in values}) > 1:
            raise _NotAllowed("a list holds values of several kinds")
        return Comparison(column, op, values)
    other = _column(right)
    if (column is None) == (other is None):
        raise _NotAllowed(f"{ast.unparse(left)} {op} {ast.unparse(right)} is not a column and a value")
    if column is None:
        left, right, column, op = right, left, other, _MIRRORED[op]
    if _is_null(right):
        raise _NotAllowed(f"write `{column} is null` or `{column} is not null`")
    return Comparison(str(column), op, (_literal(right),))


def _column(node: ast.expr) -> str | None:
    """The column that `node` names, if it is a name, dotted or not, or `col("any name")`."""
    if isinstance(node, ast.Name):
        return None if node.id in ("null", "true", "false") else node.id
    if isinstance(node, ast.Attribute):
        before = _column(node.value)
        return None if before is None else f"{before}.{node.attr}"
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id, len(node.args), len(node.keywords)) == ("col", 1, 0)
        and isinstance(node.args[0], ast.Constant)
    ):
        return str(node.args[0].value)
    return None


def _is_null(node: ast.expr) -> bool:
    return (isinstance(node, ast.Constant) and node.value is None) or (isinstance(node, ast.Name) and node.id == "null")


def _literal(node: ast.expr) -> Value:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool):
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise _NotAllowed(f"{ast.unparse(node)} is no finite number")
        return node.value
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return node.id == "true"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand)
        if not isinstance(value, bool | str):
            return -value if isinstance(node.op, ast.USub) else value
    raise _NotAllowed(f"{ast.unparse(node)} is neither a column nor text, a number, true or false")


def _comparisons(node: Comparison | Joined) -> Iterator[Comparison]:
    if isinstance(node, Comparison):
        yield node
    else:
        for part in node.parts:
            yield from _comparisons(part)


def sort_of(value: Any) -> str:
    """In words, what a value is: those of the same sort are compared with one another."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float | Decimal):
        return "a number"
    return "text" if isinstance(value, str) else f"a {type(value).__name__}"


def _value_of(node: Comparison | Joined, row: Mapping[str, Any]) -> bool | None:
    """True, False, or None: neither."""
    if isinstance(node, Comparison):
        return _outcome(node, row[node.column])
    if node.op == "not":
        value = _value_of(node.parts[0], row)
        return None if value is None else not value
    ends = node.op == "or"
    found: bool | None = not ends
    for part in node.parts:
        value = _value_of(part, row)
        if value is ends:
            return ends
        found = None if value is None else found
    return found


def _outcome(test: Comparison, value: Any) -> bool | None:
    if not test.values:
        return (value is None or (isinstance(value, TextValue) and not value)) == (test.op == "is null")
    if isinstance(value, TextValue):
        value = value.as_sort(sort_of(test.values[0]), test.column)
    if value is None:
        return None
    if (sort := sort_of(value)) != (expected := sort_of(test.values[0])):
        raise ValueError(f"{test.column!r} is {sort}, --where compares it with {expected}")
    return COMPARE[test.op](value, test.values if test.op in ("in", "not in") else test.values[0])


class TextValue(str):
    """A value of a format that has text only (csv): it is what it is compared with, and missing where it is empty."""

    __slots__ = ()

    def as_sort(self, sort: str, column: str) -> Value | None:
        """The value as a number, or as true or false; None for a missing one. Raises `ValueError` if it is none."""
        if sort == "text":
            return str(self)
        if not self:
            return None
        if sort == "true or false" and self.lower() in ("true", "false"):
            return self.lower() == "true"
        for number in (int, float) if sort == "a number" and "_" not in self else ():
            with suppress(ValueError):
                return number(self)
        raise ValueError(f"{column!r} is {str(self)[:40]!r}, --where compares it with {sort}")
