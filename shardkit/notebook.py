"""How a result looks in a notebook's cell: a small table, or lines, in the colours of the notebook, dark or
light."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from shardkit.redaction import printable

Row = Sequence[object]


def html_table(title: str, rows: Iterable[Row], head: Row = ()) -> str:
    """An HTML table under `title`: `rows`, and above them `head`. Numbers are on the right, all text is escaped."""
    lines = [_line(head, "th")] if head else []
    lines += [_line(row, "td") for row in rows]
    return f"<div><b>{_text(title)}</b><table>{''.join(lines)}</table></div>"


def html_lines(text: str) -> str:
    """Lines as they stand in a console, escaped."""
    return f"<pre>{html.escape(printable(text))}</pre>"


def _line(row: Row, tag: str) -> str:
    side = {True: "right", False: "left"}
    cells = (f'<{tag} style="text-align: {side[isinstance(cell, int)]}">{_text(cell)}</{tag}>' for cell in row)
    return f"<tr>{''.join(cells)}</tr>"


def _text(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else html.escape(printable(str(cell), lines=False))
