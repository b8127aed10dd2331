"""The dataset card: README.md of a pushed dataset. Rewrites its own marked sections and nothing else.

A card has two of them: one inside the YAML front matter (between comment lines), one in the text. Whatever a person
wrote outside them, or made of a card that has none, stays as it is. A pulled manifest's words are a stranger's: they
are quoted, and none of them becomes a field, HTML or a link.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping

from shardkit.dataset.manifest import Manifest
from shardkit.redaction import printable

CARD_NAME = "README.md"

_YAML_START, _YAML_END = "# shardkit: written by each push, from here", "# shardkit: to here"
_TEXT_START, _TEXT_END = "<!-- shardkit: written by each push, from here -->", "<!-- shardkit: to here -->"
_BOUNDS = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]  # of the Hub's size categories
_LOADING = """\
## Loading

With shardkit, verified against the SHA-256 of every shard:

```bash
shardkit pull {repo} data
```
```python
from shardkit import ShardLoader

for inputs, targets in ShardLoader("data", batch_size=16, seq_len=1024):
    ...  # int64, (16, 1024) each
```
With plain NumPy:

```python
import glob
import numpy as np

files = sorted(glob.glob({files}))
B, T = 16, 1024
for file in files:
    tokens = np.load(file, mmap_mode="r")
    for start in range(0, len(tokens) - B * T, B * T):
        window = tokens[start : start + B * T + 1].astype(np.int64)
        inputs, targets = window[:-1].reshape(B, T), window[1:].reshape(B, T)
```"""


def updated_card(old: str | None, manifest: Manifest, repo: str) -> str:
    """The card to write: `old` with its marked sections brought up to date, or a new one. `repo` is for the examples.

    An old card without a marked text section gets one at its end; its front matter is touched only between the marks.
    """
    if old is None:
        title = repo.rstrip("/").rpartition("/")[2]
        return (
            f"---\nlicense: unknown  # set it to the licence of the source text\n{_yaml_section(manifest)}\n---\n\n"
            f"# {_plain(title)}\n\n{_text_section(manifest, repo)}\n"
        )
    front = re.match(r"---\n.*?\n---\n", old, re.DOTALL)
    head, body = (front.group(), old[front.end() :]) if front else ("", old)
    head = _replace(head, _YAML_START, _YAML_END, _yaml_section(manifest)) or head
    section = _text_section(manifest, repo)
    return head + (_replace(body, _TEXT_START, _TEXT_END, section) or f"{body.rstrip()}\n\n{section}\n")


def _replace(text: str, start: str, end: str, section: str) -> str | None:
    """`text` with what stands between the marks replaced, or None if it does not hold them once each, in order."""
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        return None
    return text[: text.index(start)] + section + text[text.index(end) + len(end) :]


def _yaml_section(manifest: Manifest) -> str:
    from huggingface_hub import DatasetCardData

    tags = ["shardkit", "tokenized"]
    if manifest.tokenizer is not None:
        tags.append(re.sub(r"[^a-z0-9._-]+", "-", manifest.tokenizer.name.lower()))
    on_the_hub = manifest.source is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", manifest.source.id)
    data = DatasetCardData(
        viewer=False,
        size_categories=[_size_category(manifest.documents)] if manifest.documents else None,
        task_categories=["text-generation"],
        tags=tags,
        source_datasets=[manifest.source.id] if manifest.source and on_the_hub else None,
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"*_{split}_*.npy"} for split in manifest.splits],
            }
        ],
    )
    return f"{_YAML_START}\n{data.to_yaml()}\n{_YAML_END}"


def _size_category(rows: int) -> str:
    place = min(max(len(str(rows)) - 3, 0), len(_BOUNDS))
    if place == 0:
        return f"n<{_BOUNDS[0]}"
    if place == len(_BOUNDS):
        return f"n>{_BOUNDS[-1]}"
    return f"{_BOUNDS[place - 1]}<n<{_BOUNDS[place]}"


def _text_section(manifest: Manifest, repo: str) -> str:
    rows = [
        f"| {_plain(name)} | {len(shards)} | {sum(s.tokens for s in shards):,} | {sum(s.documents for s in shards):,} |"
        for name, shards in manifest.splits.items()
    ]
    return "\n".join(
        [
            _TEXT_START,
            "## Contents",
            "",
            f"Token ids for language-model training: {manifest.tokens:,} tokens ({manifest.dtype}) in "
            f"{len(manifest.shards)} plain `.npy` shards, made by [shardkit](https://github.com/shardkit/shardkit).",
            "",
            "| split | shards | tokens | documents |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            *_origin(manifest),
            "",
            _LOADING.format(
                repo=shlex.quote(_one_line(repo)),
                files=json.dumps(f"data/*_{manifest.shards[-1].split}_*.npy"),
            ),
            _TEXT_END,
        ]
    )


def _origin(manifest: Manifest) -> list[str]:
    """How it was made, one line a fact; nothing is said that the manifest does not know."""
    lines = []
    if (source := manifest.source) is not None:
        path = source.options.get("path")
        details = {"config": source.config, "split": source.split, "revision": source.revision}
        details["path"] = path if isinstance(path, str) else None
        lines.append(f"- Source: {_code(source.id)}{_details(details)}")
        chosen = {name: source.options.get(name) for name in ("include", "where", "sample", "skip_duplicates")}
        if some := {name: str(value) for name, value in chosen.items() if value is not None}:
            lines.append(f"- Not all of it{_details(some)}")
    if (tokenizer := manifest.tokenizer) is not None:
        lines.append(
            f"- Tokenizer: {_code(tokenizer.name)} ({tokenizer.vocab_size:,} ids); each document starts with the "
            f"end-of-text token {tokenizer.eot_id}, documents run on across shards"
        )
    if manifest.encoder:
        facts = sorted(manifest.encoder.items())
        lines.append(f"- Encoder: {', '.join(f'{_plain(key)} {_plain(value)}' for key, value in facts)}")
    if manifest.shardkit_version:
        lines.append(f"- Made by shardkit {_plain(manifest.shardkit_version)}")
    return [*lines, f"- Fingerprint: `{manifest.fingerprint}`"]


def _details(values: Mapping[str, str | None]) -> str:
    return "".join(f", {name} {_code(value)}" for name, value in values.items() if value is not None)


def _plain(value: str) -> str:
    """A value from the manifest, which may be a stranger's, as text of the page: nothing in it is markup."""
    return value if re.fullmatch(r"[\w .,:+-]*", value) else _code(value).replace("|", "\\|")


def _code(value: str) -> str:
    """The same as a code span, on one line: no HTML, no Markdown, none of our marks."""
    text = _one_line(value) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def _one_line(value: str) -> str:
    return printable(value, lines=False).replace("<!--", "<!- -")  # the marks are comments
