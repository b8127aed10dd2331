"""Charts as SVG inside a page: bars and lines that take the page's colours, with each value on hover and in a table.

Every text that is put in is escaped here. A chart is 400 units wide, so that its words can be read on a phone too.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from shardkit.redaction import printable

_WIDTH, _HEIGHT = 400.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 10.0, 10.0, 36.0
_MOST_DOTS, _MOST_ROWS = 120, 400
Words = Callable[[float], str]
Row = Sequence[object]


def escaped(value: object) -> str:
    """`value` as text of a page, control characters and all."""
    return html.escape(printable(str(value), lines=False))


def short(value: float) -> str:
    """A number in few characters: `1.2M`, `0.15`, `3e-05`."""
    size = abs(value)
    for least, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= least:
            return f"{value / (1e3 if unit == 'k' else least):.3g}{unit}"
    return f"{value:,.0f}" if value == int(value) or size >= 1e3 else f"{value:.3g}"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.3g}%"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers are on the right."""
    lines = ["<tr>" + "".join(f"<th>{escaped(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{short(value)}</td>'
    return f"<td>{escaped(value)}</td>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A scale from `low` to `high` over so many units from `start` on; `log` by the logarithm."""

    low: float
    high: float
    start: float
    length: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where `value` is drawn: within the scale, also where a round value beside a very short one is not."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + self.length * min(1.0, max(0.0, (at - low) / ((high - low) or 1)))

    def ticks(self) -> list[float]:
        """Round values to be written beside the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, -(-(last - first) // 6))
            return [10.0**power for power in range(first, last + 1, step)]
        span = max((self.high - self.low) or abs(self.high) or 1.0, 1e-300)
        rough = span / 5
        unit = 10 ** math.floor(math.log10(rough))
        step_size = next(unit * part for part in (1, 2, 5, 10) if unit * part >= rough * 0.999)
        first = math.ceil(self.low / step_size - 1e-9)
        return [number * step_size for number in range(first, math.floor(self.high / step_size + 1e-9) + 1)]


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    words: Words = short,
    label_name: str = "",
) -> str:
    """Bars at each of `labels`, one for each of `series` (name and values), from 0 up."""
    highest = max((value for _, values in series for value in values), default=0.0) or 1.0
    axis = Axis(low=0.0, high=highest * 1.05, start=_HEIGHT - _BOTTOM, length=-(_HEIGHT - _BOTTOM - _TOP))
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    width = step * 0.84 / max(1, len(series))
    parts = _horizontal(axis, words)
    for place, label in enumerate(labels):
        for number, (name, values) in enumerate(series):
            left, top = _LEFT + step * (place + 0.08) + number * width, axis.place(values[place])
            said = escaped(f"{label}: {words(values[place])}" + (f" {name}" if len(series) > 1 else ""))
            parts.append(
                f'<rect class="f{number}" x="{left:.1f}" y="{top:.1f}" width="{max(0.5, width):.1f}" '
                f'height="{_HEIGHT - _BOTTOM - top:.1f}"><title>{said}</title></rect>'
            )
    every = max(1, -(-max(map(len, labels), default=0) * 7.5 * len(labels) // (_WIDTH - _LEFT - _RIGHT)))
    for place in range(0, len(labels), int(every)):
        parts.append(_text(_LEFT + step * (place + 0.5), _HEIGHT - _BOTTOM + 14, labels[place]))
    parts.append(_text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 5, label_name))
    rows = [[label, *(words(values[place]) for _, values in series)] for place, label in enumerate(labels)]
    return _figure(title, parts, [name for name, _ in series], [label_name, *(name for name, _ in series)], rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line through `points`; `labels`, one a point, are said on hover; a `dashed` one has no dots."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    dashed: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    log_x: bool = False,
    log_y: bool = False,
    words: Words = short,
) -> str:
    """Lines over one pair of axes; where an axis is logarithmic, points of 0 or less are left out."""
    kept = [_finite(line, log_x, log_y) for line in lines]
    points = [point for line in kept for point in line.points] or [(1.0, 1.0)]
    xs, ys = zip(*points, strict=True)
    x_axis = Axis(low=min(xs), high=max(xs), start=_LEFT, length=_WIDTH - _LEFT - _RIGHT, log=log_x)
    y_axis = Axis(low=min(ys), high=max(ys), start=_HEIGHT - _BOTTOM, length=-(_HEIGHT - _BOTTOM - _TOP), log=log_y)
    parts = _horizontal(y_axis, words)
    for tick in x_axis.ticks():
        parts.append(_text(x_axis.place(tick), _HEIGHT - _BOTTOM + 14, short(tick)))
    parts.append(_text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 5, x_name))
    for number, line in enumerate(kept):
        path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in line.points)
        kind = f"s{number}{' dashed' if line.dashed else ''}"
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        every = max(1, -(-len(line.points) // _MOST_DOTS))
        for place in [] if line.dashed else range(0, len(line.points), every):
            x, y = line.points[place]
            said = line.labels[place] if line.labels else f"{x_name} {short(x)}: {words(y)}"
            said = escaped(f"{line.name}, {said}" if len(kept) > 1 else said)
            parts.append(
                f'<circle class="f{number}" cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="5">'
                f"<title>{said}</title></circle>"
            )
    rows = [
        [line.name, short(line.points[place][0]), words(line.points[place][1])]
        for line in kept
        for place in range(0, len(line.points), max(1, -(-len(line.points) * len(kept) // _MOST_ROWS)))
    ]
    return _figure(title, parts, [line.name for line in kept], ["", x_name, title], rows)


def _finite(line: Line, log_x: bool, log_y: bool) -> Line:
    good = [
        place
        for place, (x, y) in enumerate(line.points)
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    labels = [line.labels[place] for place in good] if line.labels else ()
    return Line(name=line.name, points=[line.points[place] for place in good], labels=labels, dashed=line.dashed)


def _horizontal(axis: Axis, words: Words) -> list[str]:
    """Lines across the chart at the axis' ticks, with their values."""
    parts = []
    for tick in axis.ticks():
        y = axis.place(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 4, y + 4, words(tick), anchor="end"))
    return parts


def _text(x: float, y: float, words: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(words)}</text>' if words else ""


def _figure(title: str, parts: list[str], names: Sequence[str], head: Sequence[object], rows: Sequence[Row]) -> str:
    legend = "".join(f'<span><i class="b{number}"></i>{escaped(name)}</span>' for number, name in enumerate(names))
    return (
        f"<figure><figcaption>{escaped(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escaped(title)}">{"".join(parts)}</svg>'
        + (f'<p class="legend">{legend}</p>' if len(names) > 1 else "")
        + f"<details><summary>Values</summary>{table(head, rows)}</details></figure>"
    )
