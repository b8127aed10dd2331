"""The folder for what shardkit may make again: streamed shards, vocabularies, and comparisons of engines.

On a machine of several users it may be one of another's. Such a folder is used where we may write to it, but not where
everybody may make folders, as in `/tmp`: there its owner may be anybody, and could show us what they like.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from shardkit.errors import OutputError, ShardkitWarning


def cache_home() -> Path:
    """`$SHARDKIT_CACHE`, or `~/.cache/shardkit`; it need not exist. Raises `RuntimeError` for a user without a home."""
    return Path(os.environ.get("SHARDKIT_CACHE") or Path.home() / ".cache" / "shardkit").expanduser().absolute()


def cache_folder(name: str) -> Path:
    """The folder `name` below `cache_home`, or, where this user cannot use that, below `~/.cache/shardkit` or a folder
    of theirs for temporary files, with a warning (`ShardkitWarning`). It need not exist. Raises `OutputError` where
    there is none."""
    homes: list[Path] = []
    for home in (cache_home, lambda: Path.home() / ".cache" / "shardkit", _temporary_home):
        with suppress(RuntimeError, OSError):
            homes.append(home() / name)
            if is_usable(homes[-1]):
                break
    else:
        if not homes:
            raise OutputError("there is neither a home nor a temporary folder here: set SHARDKIT_CACHE to a folder")
        return homes[0]  # whoever writes there says what is wrong
    if homes[-1] != homes[0]:
        warnings.warn(
            f"{homes[0]} cannot be used by this user, so {homes[-1]} is: set SHARDKIT_CACHE to a folder of your own to "
            "have it elsewhere",
            ShardkitWarning,
            stacklevel=2,
        )
    return homes[-1]


def is_usable(folder: Path) -> bool:
    """Whether this user can write to the folder, or make it, and nobody else can have put it there unasked."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    return os.access(there, os.W_OK | os.X_OK) and there.is_dir() and is_trusted(folder)


def is_trusted(folder: Path) -> bool:
    """Whether each part of the path that is in a folder where everybody may write is this user's, or root's. There need
    be no such folder. True where files have no owners (Windows)."""
    if not hasattr(os, "geteuid"):
        return True
    try:
        return all(
            not os.path.lexists(part)
            or part.lstat().st_uid in (os.geteuid(), 0)
            or not part.parent.stat().st_mode & stat.S_IWOTH
            for part in (folder, *folder.parents)
        )
    except OSError:  # a part that we may not look into
        return False


def _temporary_home() -> Path:
    """This user's own in the folder for temporary files. Raises `OSError`."""
    home = Path(tempfile.gettempdir()) / f"shardkit-{os.geteuid() if hasattr(os, 'geteuid') else 'cache'}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    return home
