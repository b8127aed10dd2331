"""Whether two saved states of loaders (`ShardLoader.state_dict()`) go on with the same batches: each as JSON in a file,
or in a checkpoint of the trainer's, where it is JSON too."""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardkit.batches.state import whole_state
from shardkit.dataset.typed_json import parse_json
from shardkit.errors import StateError
from shardkit.files import SMALL_BYTES, format_bytes, read_small_file
from shardkit.look.difference import Difference
from shardkit.look.result_lines import ShownAsLines

_IN_CHECKPOINT = re.compile(rb'\{"version": [^{}]*"check": "[0-9a-f]+"\}')
_NUMBERING = ("version", "check", "step")  # which changes no batch


@dataclass(frozen=True, kw_only=True, slots=True)
class StateDiff(ShownAsLines):
    """Whether loaders of the states `a` and `b` go on with the same rows. `differs` is what the states say
    differently, their number of steps too, which changes no row."""

    a: str
    b: str
    same: bool
    differs: tuple[Difference, ...]


def diff_states(a: Path, b: Path) -> StateDiff:
    """Compare two files of states. Raises `StateError` for what is none, or damaged."""
    one, other = _state(a), _state(b)
    differs = [
        Difference(what=name.replace("_", " "), a=str(one.get(name)), b=str(other.get(name)))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name) and name != "check"
    ]
    same = all(found.what in _NUMBERING for found in differs)
    return StateDiff(a=str(a), b=str(b), same=same, differs=tuple(differs))


def _state(path: Path) -> dict[str, Any]:
    """The state that a file holds, with what states of earlier releases do not say."""
    try:
        text = _text_in_checkpoint(path) if zipfile.is_zipfile(path) else read_small_file(path)
        return {"span": None, "weights": None, **whole_state(parse_json(text))}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise StateError(f"{path} is not a loader's state as JSON, nor a checkpoint with one: {error}") from None
    except StateError as error:
        raise StateError(f"{path}: {error}") from None


def _text_in_checkpoint(path: Path) -> bytes:
    """The state that a file of `torch.save` holds as JSON. Nothing is unpickled: the state is found by its form, and
    its own checksum says that it is whole. Raises `ValueError`, and what a damaged zip does."""
    with zipfile.ZipFile(path) as archive:
        parts = [part for part in archive.infolist() if part.filename.endswith("data.pkl")]
        if (size := sum(part.file_size for part in parts)) > SMALL_BYTES:
            raise ValueError(f"its data.pkl has {format_bytes(size)}, expected {format_bytes(SMALL_BYTES)} at most")
        found = {bytes(text) for part in parts for text in _IN_CHECKPOINT.findall(archive.read(part))}
    if len(found) != 1:
        raise ValueError(f"it holds {len(found)} of them, expected one, as json.dumps(loader.state_dict()) writes it")
    return found.pop()
