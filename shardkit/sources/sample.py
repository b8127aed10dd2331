"""The built-in sample: English prose that is on every machine with Python, without a download.

The interpreter's own documentation: the topics of `help()` (`pydoc_data.topics`), then the docstrings of the standard
library's modules, classes and functions, read from their source without importing them. Deterministic for one Python
version; about 1.6 MB, 0.4M GPT-2 tokens on Python 3.11.
"""

from __future__ import annotations

import ast
import os
import sysconfig
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from shardkit.dataset.manifest import SourceInfo
from shardkit.errors import SourceError
from shardkit.sources.source import InputFile, ReadOptions, Source

SAMPLE_SHARD_TOKENS = 100_000
_SHORTEST_DOCSTRING = 100
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}


def sample_source(options: ReadOptions) -> Source:
    """The sample as a `Source`: the help topics, then one file a standard-library module, in order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    topics = root / "pydoc_data" / "topics.py"
    modules = sorted(_modules(root), key=lambda p: p.relative_to(root).as_posix())
    paths = [topics, *modules] if topics.exists() else modules
    if not paths:
        raise SourceError(f"this Python has no source of its standard library under {root}: give another SOURCE")
    files = tuple(
        InputFile(path=p.relative_to(root).as_posix(), url=str(p), bytes=p.stat().st_size, format="docstrings")
        for p in paths
    )
    return Source(info=SourceInfo(id="sample"), files=files, options=options)


def read_documents(path: Path) -> list[str]:
    """The documents of one file: the help topics, or a module's docstrings of at least 100 characters, in order."""
    tree = ast.parse(path.read_bytes())
    if path.name == "topics.py" and path.parent.name == "pydoc_data":
        values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign)]
        literals = [ast.literal_eval(value) for value in values if isinstance(value, ast.Dict)]
        return [text for topics in literals for _, text in sorted(topics.items())]
    nodes = [n for n in _statements(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [ast.get_docstring(node) or "" for node in nodes]
    return [text for text in docstrings if len(text) >= _SHORTEST_DOCSTRING]


def _modules(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        at_root = Path(folder) == root
        folders[:] = [f for f in folders if f not in _LEFT_OUT and not (at_root and f.startswith("config-"))]
        for name in files:
            if name.endswith(".py") and not (at_root and name.startswith(("config-", "_sysconfigdata"))):
                yield Path(folder, name)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """`tree` and the statements in it, in the order of `ast.walk`, which looks at every expression too."""
    upcoming: deque[ast.AST] = deque([tree])
    while upcoming:
        yield (node := upcoming.popleft())
        for held in ("body", "handlers", "orelse", "finalbody", "cases"):
            upcoming.extend(getattr(node, held, ()))
