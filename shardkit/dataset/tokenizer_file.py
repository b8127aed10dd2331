"""The dataset's own `tokenizer.json`, beside its manifest: whoever has the dataset has the vocabulary too.

The manifest has its SHA-256. Beside it a `tokenizer_config.json`, so that `transformers.AutoTokenizer.from_pretrained`
reads the folder or the repo.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardkit.dataset.records import TokenizerInfo
from shardkit.dataset.typed_json import parse_json
from shardkit.files import atomic_write, read_small_file

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"


def file_sha256(info: TokenizerInfo) -> str:
    """The SHA-256 of the dataset's `tokenizer.json`, if it has one."""
    return info.file_sha256 or info.ranks_sha256


def tokenizer_files(info: TokenizerInfo | None, data: bytes) -> dict[str, bytes]:
    """Name and content of both files, `tokenizer.json` last; none if `data` is not the one that the manifest's `info`
    means."""
    if info is None or hashlib.sha256(data).hexdigest() != file_sha256(info):
        return {}
    end = _token(data, info.eot_id)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if end is not None:
        config |= {"bos_token": end, "eos_token": end}
    return {TOKENIZER_CONFIG_NAME: (json.dumps(config, indent=2) + "\n").encode(), TOKENIZER_NAME: data}


def read_tokenizer_files(directory: Path, info: TokenizerInfo | None) -> dict[str, bytes]:
    """Those of the dataset in `directory`; none if it has no `tokenizer.json`, or another one."""
    try:
        return tokenizer_files(info, read_small_file(directory / TOKENIZER_NAME))
    except OSError:
        return {}


def write_tokenizer_files(directory: Path, files: Mapping[str, bytes]) -> bool:
    """Put them into `directory`. A `tokenizer.json` that is there stays as it is: False if it is another one. Raises
    `OutputError` if they cannot be written."""
    if (path := directory / TOKENIZER_NAME).exists():
        return not files or read_small_file(path) == files[TOKENIZER_NAME]
    for name, data in files.items():
        if not (directory / name).exists():
            atomic_write(directory / name, data)
    return True


def own_tokenizer_paths(directory: Path, info: TokenizerInfo) -> list[Path]:
    """Those of the files in `directory` that are as they were written for the dataset of `info`."""
    files = read_tokenizer_files(directory, info)
    return [directory / name for name, data in files.items() if _holds(directory / name, data)]


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_small_file(path) == data
    except OSError:
        return False


def _token(data: bytes, number: int) -> str | None:
    """The token of id `number` in a `tokenizer.json`, as far as that can be read."""
    try:
        stated = parse_json(data)
        added = {token["id"]: token["content"] for token in stated.get("added_tokens") or ()}
        if number in added:
            return str(added[number])
        return next((token for token, other in stated["model"]["vocab"].items() if other == number), None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
