"""One self-contained page: no script, nothing from the network, in the reader's colours, wide or on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from shardkit.errors import OutputError
from shardkit.files import atomic_write, read_small_file, write_error
from shardkit.look.charts import escaped
from shardkit.version import __version__

_MARK = '<meta name="generator" content="shardkit report">'  # of pages that may be replaced
_COLOURS = """
:root{color-scheme:light dark;--back:#fff;--card:#f6f7f9;--text:#1b1f24;--dim:#59636e;--grid:#d8dee4;
--c0:#0b63c4;--c1:#c4540b;--c2:#1a7f37;--c3:#8250df}
@media(prefers-color-scheme:dark){:root{--back:#0f1318;--card:#181d24;--text:#e6eaef;--dim:#9aa5b1;--grid:#313944;
--c0:#58a6ff;--c1:#f0883e;--c2:#56d364;--c3:#bc8cff}}
"""
_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:auto;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--grid)}
h3{font-size:1rem;margin:1rem 0 .2rem}
p{margin:.4rem 0}
.dim,footer{color:var(--dim);font-size:.875rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr));gap:1rem}
figure{margin:0;background:var(--card);border-radius:.5rem;padding:.75rem;min-width:0}
figcaption{font-weight:600;font-size:.95rem}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--dim);font-size:11px}
@media(max-width:30rem){svg text{font-size:13.5px}}
.grid{stroke:var(--grid)}
polyline{fill:none;stroke-width:1.6}
circle{opacity:0}
circle:hover{opacity:1}
rect:hover{opacity:.7}
.dashed{stroke-dasharray:5 4;stroke-width:1.2}
.legend{font-size:.85rem}
.legend span{margin-right:1rem;white-space:nowrap}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:.15rem;margin-right:.3rem;vertical-align:-.08rem}
details{font-size:.85rem}
summary{cursor:pointer;color:var(--dim)}
.wide{overflow:auto;max-height:24rem}
table{border-collapse:collapse;font-size:.85rem}
td,th{padding:.15rem .7rem .15rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
td.n{text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.15rem 1rem;margin:.5rem 0}
dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border-radius:.4rem;padding:.5rem;margin:.3rem 0;
font-size:.85rem;max-height:14rem;overflow:auto}
"""
_SERIES = "".join(
    f".f{n}{{fill:var(--c{n})}}.s{n}{{stroke:var(--c{n})}}.b{n}{{background:var(--c{n})}}" for n in range(4)
)


def section(title: str, *parts: str) -> str:
    """Parts of a page under a heading."""
    return f"<section><h2>{escaped(title)}</h2>{''.join(parts)}</section>"


def cards(*figures: str) -> str:
    """Charts, side by side where there is room."""
    return f'<div class="cards">{"".join(figures)}</div>'


def facts(stated: Mapping[str, object]) -> str:
    """Names and values; what is None or empty is left out."""
    known = {name: value for name, value in stated.items() if value not in (None, "")}
    lines = (
        f"<dt>{escaped(name)}</dt><dd>{escaped(f'{value:,}' if isinstance(value, int) else value)}</dd>"
        for name, value in known.items()
    )
    return f"<dl>{''.join(lines)}</dl>"


def note(words: str) -> str:
    """What a reader should know of what stands beside it."""
    return f'<p class="dim">{escaped(words)}</p>'


def quoted(text: str) -> str:
    """Somebody's text, as it is."""
    lines = text.split("\n")
    return f"<pre>{chr(10).join(map(escaped, lines))}</pre>"


def check_page(path: Path) -> None:
    """Raise `OutputError` where a page cannot be written, or another file is there than an earlier page of ours."""
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} to write {path.name} into: make it, or give another --out")
    try:
        if path.exists() and _MARK.encode() not in read_small_file(path)[:2000]:
            raise OutputError(f"{path} is no report of ours: give another --out, or move it away")
    except OSError as error:
        raise write_error(error, path, 0) from None


def write_page(path: Path, title: str, sections: Iterable[str]) -> None:
    """Write the page, in place of an earlier one of ours. Raises `OutputError`."""
    check_page(path)
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none';style-src 'unsafe-inline'">"""
        f"{_MARK}<title>{escaped(title)}</title><style>{_COLOURS}{_STYLE}{_SERIES}</style></head>"
    )
    foot = f"<footer>shardkit {__version__}: one file, no script, nothing from the network.</footer>"
    body = f"<body><main><h1>{escaped(title)}</h1>{''.join(sections)}{foot}</main></body></html>\n"
    atomic_write(path, head + body)
