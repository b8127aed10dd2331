"""How far something is, for people: a bar on a terminal or in a notebook; elsewhere a line now and then on stderr.

Knows no shards and no remotes. `shown` is what a `progress=` of the public functions means.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

from shardkit.errors import UsageError
from shardkit.files import format_bytes
from shardkit.rate_limits import PAUSES
from shardkit.redaction import printable
from shardkit.waits import join

if TYPE_CHECKING:
    from typing_extensions import Self

_SECONDS_BETWEEN_LINES = 10.0
_FIRST_LINE_SECONDS = 2.0  # longer silence puzzles
_TICK_SECONDS = 1.0
_SECONDS_BETWEEN_DRAWINGS = 0.1
Shown = TypeVar("Shown")


@contextmanager
def shown(progress: Shown | bool | None, bar: Callable[[], AbstractContextManager[Shown]]) -> Iterator[Shown | None]:
    """What is called while the block runs, for a `progress` that a user gave: True is a `bar`, False or None nothing,
    a function is called itself. Raises `UsageError` for anything else."""
    if progress is True:
        with bar() as opened:
            yield opened
    elif progress and not callable(progress):
        raise UsageError(f"progress is {progress!r:.80}: expected True, False, or a function to call")
    else:
        yield progress or None


def end_bar(tell: object) -> bool:
    """End `tell`, which `shown` gave, if it is a bar; whether it was one, so that another may be shown after it."""
    if isinstance(tell, Bar):
        tell.end()
        return True
    return False


class State(NamedTuple):
    """How far something is: so much `done` of the `total` (None: not known), `words` beside a bar, or, without one, the
    whole `line`."""

    done: int
    total: int | None
    words: str
    line: str


class _Stderr:
    """This process's stderr, as a file, of which no write fails: where there is none, where it is closed or nobody
    reads it any more, there is silence. tqdm has it too: an error inside tqdm would leave its lock held."""

    def __init__(self) -> None:
        self._stream: TextIO | None = sys.stderr
        self.encoding: str = getattr(self._stream, "encoding", None) or "utf-8"  # tqdm draws what it can encode

    def write(self, text: str) -> int:
        self._try(lambda stream: (stream.write(text), stream.flush()))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        return bool(self._try(lambda stream: stream.isatty()))

    def fileno(self) -> int:
        """Its descriptor, of which tqdm asks how wide the terminal is. Raises `OSError` or `ValueError` for none."""
        if self._stream is None:
            raise OSError(errno.EBADF, "no stderr")
        return self._stream.fileno()

    def _try(self, do: Callable[[TextIO], object]) -> Any:
        if self._stream is None:  # as under pythonw
            return None
        try:
            return do(self._stream)
        except (OSError, ValueError):
            self._stream = None
            return None


class Bar(ABC):
    """A bar of `unit`, or lines, about `what`. A context manager; it is drawn anew as time goes by, and says what calls
    over the network wait for. A `quiet` one shows nothing, and only remembers."""

    def __init__(self, what: str, unit: str, *, quiet: bool = False) -> None:
        self.what, self._quiet = what, quiet
        self._bar: Any = None
        self._out = _Stderr()
        if not quiet and (self._out.isatty() or _in_notebook()):
            if _in_notebook() and find_spec("ipywidgets") is not None:
                from tqdm.notebook import tqdm
            else:
                from tqdm import tqdm

            options = {"unit": unit, "unit_scale": True, "dynamic_ncols": True, "smoothing": 0.1}
            self._bar = tqdm(desc=what, file=self._out, **options)
        self._draws_at = time.monotonic() + (_FIRST_LINE_SECONDS if self._bar is None else 0.0)
        self._drawing = threading.Lock()
        self._waits_for = ""  # "" while nothing waits
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="shardkit-clock", daemon=True)
        self._listening = ExitStack()

    @abstractmethod
    def state(self) -> State | None:
        """How far it is now; None before it has begun."""

    def __enter__(self) -> Self:
        self._clock.start()
        if not self._quiet:
            self._listening.enter_context(PAUSES.told_to(self._on_pause))
        _OPEN.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(well=kind is None)

    def end(self, *, well: bool = True) -> None:
        """End it, also before its block does: from then on nothing is drawn. What ended `well` is drawn as complete."""
        if self._ended.is_set():
            return
        self._ended.set()
        _OPEN.remove(self)
        join(self._clock)
        self._listening.close()
        if self._bar is None:
            return
        with self._drawing:
            if well and (state := self.state()) is not None:
                self._show(state._replace(total=state.done))
            self._bar.leave = self._bar.n > 0  # a bar on which nothing came is in the way of what is said next
            self._bar.close()

    def wipe(self) -> None:
        """Clear its line on a terminal, for one that is written in its place; it is drawn anew below that."""
        if self._bar is not None:
            with self._drawing:
                self._bar.clear()

    def draw(self) -> None:
        """Show the state, if it is time to: ten times a second, or once in ten seconds where there are lines."""
        if self._quiet:
            return
        with self._drawing:
            now = time.monotonic()
            if now < self._draws_at or self._ended.is_set():
                return
            self._draws_at = now + (_SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_DRAWINGS)
            state = self.state() or State(0, None, "starting", "starting")
            if self._bar is None:
                self._out.write(f"{self.what}: {state.line}\n")
            else:
                self._show(state)

    def _show(self, state: State) -> None:
        self._bar.total = state.total
        self._bar.set_postfix_str(self._waits_for or state.words, refresh=False)
        self._bar.update(state.done - self._bar.n)

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            self.draw()
            if self._bar is not None:
                self._bar.refresh()  # its clock goes on also where nothing comes

    def _on_pause(self, text: str, is_new: bool) -> None:
        """As `rate_limits.Pauses` calls its listeners."""
        ended, self._waits_for = self._waits_for and not text, text
        if self._bar is not None and (text or ended):
            self._bar.set_postfix_str(text)
        elif self._bar is None and is_new:
            self._out.write(f"{text}\n")


_OPEN: list[Bar] = []  # of this process


def make_way() -> None:
    """Wipe the bars that are there: a line comes."""
    for bar in _OPEN:
        bar.wipe()


class TransferBar(Bar):
    """Callable with (file, bytes done, bytes in all) of a push or a pull."""

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        super().__init__(what, "B", quiet=quiet)
        self._last: tuple[str, int, int] | None = None

    def __call__(self, file: str, done: int, total: int) -> None:
        """Show how far the transfer is."""
        self._last = file, done, total
        self.draw()

    def state(self) -> State | None:
        """The bytes that have come or gone."""
        if self._last is None:
            return None
        file, done, total = self._last
        line = f"{format_bytes(done)} of {format_bytes(total)}" if total else format_bytes(done)
        return State(done, total or None, printable(file, lines=False), line)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
