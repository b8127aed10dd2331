"""What a person may do next with a dataset, as commands to paste."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from shardkit.redaction import public_address


def steps_for_folder(folder: str | os.PathLike[str], splits: Collection[str], *, push: bool = False) -> list[str]:
    """For a dataset in a folder: look at it, train on it if it has a `train` split, `push` it."""
    name = shlex.quote(str(folder))
    steps = [f"shardkit peek {name}"]
    if "train" in splits:
        steps.append(f"python -m trainer train --data {name} --out run    # on a CPU: --model nano")
    return [*steps, f"shardkit push {name} USER/NAME"] if push else steps


def steps_for_part(place: str, *, pushed: bool) -> list[str]:
    """For a part of the dataset in a folder, or of one whose parts are pushed to a place, once all are there."""
    return [f"shardkit merge {shlex.quote(place)}{' --out OUT' if pushed else ''}"]


def steps_for_converted(folder: str | os.PathLike[str], to: str) -> list[str]:
    """For tokens in a folder in another trainer's format: look at them where that is opened in place, show a table of
    them on the Hub, and the way back."""
    name = shlex.quote(str(folder))
    look = {"llmc": [f"shardkit info {name}"], "nanogpt": [f"shardkit info {name}"]}
    show = {"parquet": [f"hf upload USER/NAME {name} --repo-type dataset"]}
    return [*look.get(to, ()), *show.get(to, ()), f"shardkit convert {name} NEW_FOLDER --to npy"]


def steps_for_place(repo: str) -> list[str]:
    """For a dataset at a remote; of one on this disk the default folder would be itself."""
    is_here = repo.startswith("file:") or Path(repo).is_dir()
    return [f"shardkit pull {shlex.quote(public_address(repo))}{' FOLDER' if is_here else ''}"]
