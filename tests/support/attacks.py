"""What the campaign of `tests/torture` shares: its scale, how an attack may end, and damage to files by a seed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shardkit.errors import ShardkitError

LONG = os.environ.get("SHARDKIT_TORTURE") == "long"
SECRET = "hf_never_to_be_shown"  # the token while an attack runs
MORE_MEMORY = 1 << 30  # bytes of address space that an attack on small files may need beyond what the process has
NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "train", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "\u202e", "9" * 5000, "x_train_000001.npy"),
    *([], {}, [1], {"a": 1}, [[]], "0" * 64),
)


def times(short: int, long: int) -> int:
    """How often an attack is tried: `short` in `make test`, `long` in `make torture`."""
    return long if LONG else short


def outcome(action: Callable[[], object]) -> str | None:
    """The one clear line with which `action` refused; None if it went through. Any other exception is a fault."""
    try:
        action()
    except ShardkitError as error:
        line = str(error)
        assert line, "a refusal without a word"
        assert "\n" not in line, line
        assert SECRET not in line, line
        return line
    return None


# -- damage ------------------------------------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` with one fault, as disks, networks, editors and attackers make them; never equal to it."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [_flip, _flip, _cut, _insert, _repeat, _zeros, _remove, _swap]
    if content[:1] in b"{[":
        ways += [_json_value] * 6
    while True:
        made = rng.choice(ways)(content, rng)
        if made != content:
            return made


def _flip(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice([1, 2, 64, 5000])) + content[at:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, stop = _piece(content, rng)
    return content[:stop] + content[start:stop] + content[stop:]


def _remove(content: bytes, rng: random.Random) -> bytes:
    start, stop = _piece(content, rng)
    return content[:start] + content[stop:]


def _zeros(content: bytes, rng: random.Random) -> bytes:
    start, stop = _piece(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def _swap(content: bytes, rng: random.Random) -> bytes:
    start, stop = _piece(content, rng)
    middle = (start + stop) // 2
    return content[:start] + content[middle:stop] + content[start:middle] + content[stop:]


def _piece(content: bytes, rng: random.Random) -> tuple[int, int]:
    """A run of bytes, or of whole lines where there are some."""
    lines = [0, *(at + 1 for at, byte in enumerate(content) if byte == 10)] if len(content) < 100_000 else [0]
    if len(lines) > 2 and rng.random() < 0.5:
        start, stop = sorted(rng.sample(lines, 2))
        return start, stop
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice([1, 4, 100, 4096]))


def _json_value(content: bytes, rng: random.Random) -> bytes:
    """One value of the JSON, or of one line of JSON, is another, is gone, or is there twice."""
    lines = content.split(b"\n")
    number = 0
    try:
        if len(lines) > 1 and lines[1][:1] in (b"{", b"["):
            number = rng.choice([at for at, line in enumerate(lines) if line])
            lines[number] = _dumped(_changed(json.loads(lines[number]), rng), None)
            return b"\n".join(lines)
        return _dumped(_changed(json.loads(content), rng), 2)
    except ValueError:
        return _flip(content, rng)


def _changed(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return rng.choice(NASTY)
    inside, key = rng.choice(places)
    way = rng.random()
    if way < 0.15:
        del inside[key]
    elif way < 0.25 and isinstance(inside, list):
        inside.insert(rng.randrange(len(inside) + 1), inside[key])
    elif way < 0.3:
        inside[key] = rng.choice(list(_DEEP))
    elif way < 0.5 and isinstance(inside[key], int):
        inside[key] += rng.choice([-1, 1, 2, 1000])
    else:
        inside[key] = rng.choice(NASTY)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


_DEEP = {f"deep {depth}": f"{'[' * depth}1{']' * depth}" for depth in (50, 3000, 100_000)}


def _dumped(value: Any, indent: int | None) -> bytes:
    text = json.dumps(value, indent=indent)
    for name, brackets in _DEEP.items():  # deeper than json.dumps goes
        text = text.replace(f'"{name}"', brackets)
    return text.encode()


# -- what an attack must not do ----------------------------------------------------------------------------------------

_watched: list[tuple[Path, ...]] = []  # where files may be written, while an attack runs
_violations: list[str] = []
_RUN_CODE = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen"}
_installed: list[bool] = []


@contextlib.contextmanager
def contained(*folders: Path, memory: int = MORE_MEMORY, runs_code: bool = False) -> Iterator[None]:
    """A block that writes nothing outside `folders`, runs nothing (unless `runs_code`), and gets no `memory` beyond
    what the process has: a header that claims a terabyte is a `MemoryError`."""
    if not _installed:
        sys.addaudithook(_watch)
        _installed.append(True)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory, limits[1]))
    _watched.append(tuple(folder.resolve() for folder in folders))
    _may_run.append(runs_code)
    try:
        yield
    finally:
        _watched.pop()
        _may_run.pop()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    found, _violations[:] = list(_violations), []
    assert not found, found


_may_run: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _note_write(arguments[0])
    elif event in ("os.rename", "os.link", "os.symlink"):
        _note_write(os.fspath(arguments[1]))
    elif event in ("os.remove", "os.mkdir", "os.rmdir"):
        if arguments[-1] == -1:  # else relative to a folder that is open, as shutil.rmtree works
            _note_write(os.fspath(arguments[0]))
    elif event in _RUN_CODE and not _may_run[-1]:
        _violations.append(f"{event} {arguments!r:.200}")


def _note_write(path: str) -> None:
    real = os.path.realpath(path)
    if not real.startswith(("/dev/", "/proc/")) and not any(
        os.path.commonpath([real, folder]) == str(folder) for folder in _watched[-1]
    ):
        _violations.append(f"writes {real}")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
