"""Derived arrays that take minutes to compute: in parts, by all processes that wait for them, of one machine or many.

Each takes a part that nobody has begun, and keeps it in a folder beside the place of the whole; one of them joins the
parts. A run that is killed leaves the parts that it finished to the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.derived import Arrays, derived_arrays, home_of, load_arrays, save_arrays
from shardkit.errors import OutputError
from shardkit.locks import hold_lock

Part = tuple[NDArray[np.integer], ...]  # one array of each name
Helpers = Callable[[int], AbstractContextManager[None]]  # for so many parts: a block in which others want them too


def arrays_of_parts(
    folder: Path | None,
    kind: str,
    key: str,
    dtypes: Mapping[str, str],
    parts: int,
    compute: Callable[[int], Part],
    *,
    indices: Mapping[str, str] | None = None,
    helpers: Helpers | None = None,
) -> Arrays:
    """`derived_arrays` of what `compute` gives for each part, in order, laid end to end.

    `indices` names arrays of indices into another one, {"row_ends": "piece_starts"}: a part counts from its own
    beginning, the whole from that of all. With one part, or None for `folder`, nothing is kept but the whole.
    """
    if folder is None or parts < 2:
        return derived_arrays(folder, kind, key, dtypes, lambda: _joined(map(compute, range(parts)), dtypes, indices))
    home = home_of(folder, kind, key)
    if (arrays := load_arrays(home, key, dtypes)) is not None:
        return arrays
    work = _Parts(home, key, dtypes, compute)
    with contextlib.nullcontext() if helpers is None else helpers(parts):
        for number in random.Random().sample(range(parts), parts):  # others begin elsewhere
            if not work.try_to_keep(number):
                break
        arrays = derived_arrays(
            folder, kind, key, dtypes, lambda: _joined(map(work.get, range(parts)), dtypes, indices)
        )
    if home.exists():
        work.remove()
    return arrays


class _Parts:
    """The parts of the arrays that `whole` is to keep, in a folder beside it."""

    def __init__(self, whole: Path, key: str, dtypes: Mapping[str, str], compute: Callable[[int], Part]) -> None:
        self._whole, self._folder = whole, whole.with_name(f"{whole.name}.parts")
        self._dtypes, self._compute = dtypes, compute
        self._key = hashlib.sha256(key.encode()).hexdigest()  # the whole key may have megabytes

    def try_to_keep(self, number: int) -> bool:
        """Compute and keep a part, unless it is kept, or another process is at it. False where that is of no use: the
        whole is kept, or nothing can be."""
        home = self._home(number)
        if home.exists():
            return True
        try:
            with hold_lock(home.with_suffix(".lock"), busy="another process is at it", remove=True):
                if not home.exists() and not self._whole.exists():  # in this order: the parts go after the whole came
                    self._save(number)
                return home.exists()
        except OutputError:
            return self._folder.is_dir()  # else there is no permission to make it

    def get(self, number: int) -> Part:
        """A part: as it was kept, else computed, once whoever is at it is done."""
        key = self._key_of(number)
        if (arrays := load_arrays(self._home(number), key, self._dtypes)) is None:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(hold_lock(self._home(number).with_suffix(".lock"), busy=None, remove=True))
                except OutputError:
                    return self._compute(number)
                if (arrays := load_arrays(self._home(number), key, self._dtypes)) is None:
                    arrays = self._save(number)
        return tuple(arrays.values())

    def remove(self) -> None:
        """Remove the folder, as far as it can be: the whole is kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, number: int) -> Arrays:
        return save_arrays(
            self._home(number), self._key_of(number), self._dtypes, lambda: iter([self._compute(number)])
        )

    def _home(self, number: int) -> Path:
        return self._folder / f"{number:06d}"

    def _key_of(self, number: int) -> str:
        return json.dumps([self._key, number])


def _joined(parts: Iterator[Part], dtypes: Mapping[str, str], indices: Mapping[str, str] | None) -> Iterator[Part]:
    """The parts, with indices counted from the beginning of all."""
    names, done = list(dtypes), dict.fromkeys(dtypes, 0)
    for part in parts:
        arrays = dict(zip(names, part, strict=True))
        yield tuple(
            array if indices is None or name not in indices else array + done[indices[name]]
            for name, array in arrays.items()
        )
        for name, array in arrays.items():
            done[name] += len(array)
