"""What the site needs beside the pages, which are plain Markdown that a code host shows as well.

Links out of `docs/` go to the repository; examples in docstrings become code blocks.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_OUTSIDE = re.compile(r"\]\(\.\./")
_EXAMPLE = re.compile(r"(?:^>>> .*\n(?:(?!\n).+\n)*)+", re.MULTILINE)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    return _OUTSIDE.sub(f"]({config.repo_url}blob/main/", markdown)


class Examples(griffe.Extension):
    """Puts a docstring's `>>>` lines, and what they print, into a fence."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and not obj.is_alias:
            text = obj.docstring.value + "\n"
            obj.docstring.value = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}```\n", text).rstrip()
