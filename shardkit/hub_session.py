"""The one HTTP session of the Hub's client, `huggingface_hub`, while calls of ours use it: time-outs, limits, no bars.

The client waits for a limit itself, but in some of its calls only, five times, in a sleep that nothing ends and of
which the process's other threads know nothing. Here a limit is waited for before the client sees the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import get_session, get_token, hf_raise_for_status
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from huggingface_hub.utils.tqdm import progress_bar_states

from shardkit import rate_limits
from shardkit.rate_limits import LIMITS, asked_seconds, limit_reason
from shardkit.redaction import redact_logs

STALL_SECONDS = 300.0  # without a byte from a server, or to it, which may be at work with what it got
_HUB = "hf://"
_MAY_ASK = (429, 503)  # the answers that mean "not now"


class ClientSettings:
    """What shardkit needs of the client, which has one HTTP session and one switch for progress bars in a process.

    While one of our calls runs, the session treats the requests of our threads, and of no other, in our way. They get a
    time-out (the client's own is none: a stalled server would hang a push for ever). None is sent while the Hub's limit
    holds, and one that is refused for a limit is sent again when it is over. The client draws no progress bars, for the
    command line draws its own; bars that another thread begins in that time are not drawn either, as the switch is the
    only way. With the last of our calls all is as it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._calls = 0
        self._bars: bool | None = None
        self._session: Any = None

    @contextmanager
    def set_for_us(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Have the settings for the calls of this thread that the block makes; `stop` cuts their waiting."""
        redact_logs()
        session = get_session()
        with self._lock:
            if self._calls == 0 and HF_HUB_DISABLE_PROGRESS_BARS is None:  # else the user has said what to do
                self._bars = progress_bar_states.get("_global")
                progress_bar_states["_global"] = False
            self._calls += 1
            if session is not self._session:  # the client makes a new one when a connection broke
                self._give_back()
                self._take(session)
        before = getattr(self._thread, "stop", None)
        self._thread.stop = stop or threading.Event()
        try:
            yield
        finally:
            self._thread.stop = before
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._give_back()
                    self._show_bars_as_before()

    def _take(self, session: Any) -> None:
        send = session.send

        def send_within_limits(request: Any, **options: Any) -> Any:
            stop = getattr(self._thread, "stop", None)
            return send(request, **options) if stop is None else _obeying(send, request, options, stop)

        session.event_hooks = _with_hook(session.event_hooks, self._bound)
        session.send = send_within_limits
        self._session = session

    def _give_back(self) -> None:
        if self._session is not None:
            self._session.event_hooks = _without_hook(self._session.event_hooks, self._bound)
            del self._session.send  # the class's own is found again
            self._session = None

    def _bound(self, request: Any) -> None:
        timeout = request.extensions.get("timeout", {})
        if getattr(self._thread, "stop", None) is not None and timeout.get("read") is None:
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), STALL_SECONDS)

    def _show_bars_as_before(self) -> None:
        if HF_HUB_DISABLE_PROGRESS_BARS is not None:
            return
        if self._bars is None:
            progress_bar_states.pop("_global", None)
        else:
            progress_bar_states["_global"] = self._bars


def _obeying(send: Callable[..., Any], request: Any, options: Mapping[str, Any], stop: threading.Event) -> Any:
    """Send `request` when no limit holds, again after each one that it meets. Raises the client's error for what cannot
    be waited for here: too long, or a body that is a stream and has been read."""
    waited = 0.0
    while True:
        if LIMITS.wait(_HUB, stop):
            raise ConnectionAbortedError("stopped")
        response = send(request, **options)
        status = response.status_code
        asked = asked_seconds(status, response.headers) if status in _MAY_ASK else 0.0
        if not asked:
            return response
        waited += asked
        too_long = asked > rate_limits.LONGEST_WAIT_SECONDS or waited > rate_limits.MOST_WAIT_SECONDS
        if too_long or not _can_be_sent_again(request):
            hf_raise_for_status(response)
        response.close()
        LIMITS.hold(_HUB, asked, limit_reason(_HUB, status, token=get_token() is not None))


def _can_be_sent_again(request: Any) -> bool:
    try:
        request.content  # noqa: B018 (all of it is at hand, or this raises)
    except RuntimeError:
        return False
    return True


def _with_hook(hooks: Mapping[str, list[Any]], hook: Callable[[Any], None]) -> dict[str, list[Any]]:
    return {**hooks, "request": [*hooks.get("request", []), hook]}


def _without_hook(hooks: Mapping[str, list[Any]], hook: Callable[[Any], None]) -> dict[str, list[Any]]:
    return {**hooks, "request": [other for other in hooks.get("request", []) if other != hook]}


CLIENT = ClientSettings()
