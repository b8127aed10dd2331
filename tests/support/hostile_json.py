"""A JSON value with one thing about it changed, as damage or an enemy may change it."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

NESTED: Any = json.loads("[" * 900 + "]" * 900)
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, 0.5, 1e308, float("inf"), float("nan"), 2**31, 2**63 - 1, 2**63, 10**4000),
    *("", "x", "0", "1", "../x", "/etc/passwd", "a\0b", "\ud800", "line\nbreak", "\x1b[2J", "f" * 64, "x" * 100_000),
    *(
        "x_val_000000.npy",
        "x_train_000001.npy\n",
        f"x_train_{chr(0x660) * 6}.npy",
        "uint16",
        "uint32",
        "int64",
        "val",
        "train",
    ),
    *([], {}, [[]], [None], [1], {"": {}}, {"file": []}, NESTED, {"a": NESTED}),
]


def places(value: Any) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, the root too. Without recursion: values are nested deep."""
    found: list[tuple[Any, ...]] = []
    upcoming: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while upcoming:
        path, item = upcoming.pop()
        found.append(path)
        held = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        upcoming += reversed([((*path, name), inner) for name, inner in held])
    return found


def mutated(value: Any, rng: random.Random) -> Any:
    """`value` with one thing about it changed."""
    path = rng.choice(places(value))
    if not path:
        return rng.choice(HOSTILE)
    value = holder = copy.copy(value)
    for name in path[:-1]:  # what is changed is copied, and no more: it may be nested too deep for `deepcopy`
        holder[name] = copy.copy(holder[name])
        holder = holder[name]
    kind = rng.randrange(6)
    if kind == 0:
        del holder[path[-1]]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(path[-1], rng.choice(holder))
    elif kind == 2 and isinstance(holder, list):
        holder.reverse()
    elif kind == 3 and isinstance(holder[path[-1]], int):
        holder[path[-1]] += rng.choice((-1, 1, 1 << 16))
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice(("surprise", "edges", "directory", "__class__", "\ud800"))] = rng.choice(HOSTILE)
    else:
        holder[path[-1]] = rng.choice(HOSTILE)
    return value
