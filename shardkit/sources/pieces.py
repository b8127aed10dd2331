"""A piece of a chunk: its documents, the rows that they came from, and the rows that gave none."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from shardkit.sources.source import ReadOptions

LISTED_BAD_ROWS = 20  # of a piece; more are only counted
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF16 = "UTF-16, and not UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW converts a file)"
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Texts:
    """A piece of a chunk: `texts[i]` came from row `rows[i]` of the piece.

    `read_rows` counts all rows. `bad_rows` of them were passed over; `bad` names the first ones as (row, why). Blank
    lines are neither documents nor bad. `text_bytes` is the documents' size in UTF-8.

    A document that is longer than a piece comes in parts, one a piece: each but the last is `unfinished`, each but the
    first `continued`. Its row is the first part's; to the others it is row -1.
    """

    texts: list[str]
    rows: list[int] | range
    read_rows: int
    bad: list[tuple[int, str]]
    bad_rows: int
    text_bytes: int
    unfinished: bool = False
    continued: bool = False


class BadRow(Exception):
    """A row of the piece that is not text. The pipeline, which knows the piece's first row, makes a `SourceError`."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(row, why)
        self.row, self.why = row, why


def convert_rows(
    rows: Iterable[tuple[int, Row]],
    count: int,
    convert: Callable[[Row], str | None],
    options: ReadOptions,
    *,
    surely_bad: Callable[[Row], bool] | None = None,
) -> Texts:
    """The documents of `rows`, which are those of `count` that may hold one. `convert` returns None for a row without
    one, and raises `ValueError` for a bad row, which is skipped or becomes a `BadRow`; `surely_bad` finds some of these
    sooner, where nobody will ask why."""
    texts: list[str] = []
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    bad_rows = 0
    for row, piece in rows:
        if bad_rows >= LISTED_BAD_ROWS and surely_bad is not None and surely_bad(piece):
            bad_rows += 1
            continue
        try:
            text = convert(piece)
        except ValueError as error:
            if not options.skip_bad_rows:
                raise BadRow(row, _why(error)) from error
            bad_rows += 1
            if len(bad) < LISTED_BAD_ROWS:
                bad.append((row, _why(error)))
            continue
        if text is not None:
            texts.append(text)
            good.append(row)
    return Texts(texts, good, count, bad, bad_rows, utf8_size(texts))


def utf8_size(texts: list[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode(errors="replace")) for text in texts)


def no_text(what: str, name: str, kind: str, *, is_chat: bool = False) -> str:
    """Why a field or column `name` of another `kind` gives no document, and what to do: `tokenize` in Python takes any
    texts."""
    if is_chat:
        return (
            f"{what} {name!r} is a chat, not text: in Python, tokenize(SOURCE, OUT, columns=[{name!r}], "
            f"transform=...) calls your function with each row: write its turns there as your model reads them, with "
            f"its tokenizer's apply_chat_template(row[{name!r}], tokenize=False); special tokens in it become text"
        )
    if kind.removeprefix("a ").startswith(("list", "large_list", "fixed_size_list")):
        return (
            f"{what} {name!r} is {kind}, not text: join its parts, in Python, as in tokenize(SOURCE, OUT, "
            f'columns=[{name!r}], transform=lambda row: "\\n".join(row[{name!r}])), or name another with --text-field'
        )
    if kind.removeprefix("a ").startswith(("dict", "struct")):
        return f"{what} {name!r} is {kind}, not text: name a field in it, as in --text-field {name}.text"
    return f"{what} {name!r} is {kind}, not text"


def _why(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(error, 0)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return str(error)


def not_utf8(error: UnicodeDecodeError, before: int) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x} at offset {before + error.start})"
