"""The one HTTP session of the Hub's client, `huggingface_hub`, while calls of ours use it: time-outs, limits, no bars,
and no answers that no Hub gives. `network.py` has it so for every call to `hf://`.

The client waits for a limit itself, but in some of its calls only, five times, in a sleep that nothing ends and of
which the process's other threads know nothing. Here a limit is waited for before the client sees the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shardkit import rate_limits
from shardkit.hub_answers import check_response
from shardkit.rate_limits import HUB_PLACE, LIMITS, asked_seconds, limit_reason
from shardkit.redaction import hub_token, redact_logs

STALL_SECONDS = 300.0  # without a byte from a server, or to it, which may be at work with what it got
_MAY_ASK = (429, 503)  # the answers that mean "not now"


class _Session:
    """What shardkit needs of the client, which has one HTTP session and one switch for progress bars in a process.

    While one of our calls runs, the session treats the requests of our threads, and of no other, in our way. They get a
    time-out (the client's own is none: a stalled server would hang a push for ever). None is sent while the Hub's limit
    holds, and one that is refused for a limit is sent again when it is over. Answers that no Hub gives are refused
    (`WrongAnswer`). The client draws no progress bars, for the command line draws its own; bars that another thread
    begins in that time are not drawn either, as the switch is the only way. With the last of our calls all is as
    before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._calls = 0
        self._bars: bool | None = None
        self._user_decides = False
        self._session: Any = None

    @contextmanager
    def ours(self, stop: threading.Event | None = None) -> Iterator[None]:
        from huggingface_hub import get_session

        redact_logs()
        session = get_session()
        with self._lock:
            if self._calls == 0:
                self._hide_bars()
            self._calls += 1
            if session is not self._session:  # the client makes a new one when a connection broke
                self._give_back()
                self._take(session)
        before = self._stop_of_thread()
        self._thread.stop = stop or before or threading.Event()
        try:
            yield
        finally:
            self._thread.stop = before
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._give_back()
                    self._show_bars_as_before()

    def _stop_of_thread(self) -> threading.Event | None:
        """What cuts the waits of a call of ours in this thread; None if it is in no such call."""
        stop: threading.Event | None = getattr(self._thread, "stop", None)
        if stop is None and threading.current_thread().name.startswith("hf-ls-tree"):
            return threading.Event()  # the client lists large repos in threads of its own
        return stop

    def _take(self, session: Any) -> None:
        send = session.send

        def send_within_limits(request: Any, **options: Any) -> Any:
            stop = self._stop_of_thread()
            return send(request, **options) if stop is None else _obeying(send, request, options, stop)

        session.event_hooks = _with_hook(session.event_hooks, "request", self._bound)
        session.event_hooks = _with_hook(session.event_hooks, "response", self._check)
        session.send = send_within_limits
        self._session = session

    def _give_back(self) -> None:
        if self._session is not None:
            for event, hook in (("request", self._bound), ("response", self._check)):
                self._session.event_hooks = _without_hook(self._session.event_hooks, event, hook)
            del self._session.send  # the class's own is found again
            self._session = None

    def _bound(self, request: Any) -> None:
        timeout = request.extensions.get("timeout", {})
        if self._stop_of_thread() is not None and timeout.get("read") is None:
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), STALL_SECONDS)

    def _check(self, response: Any) -> None:
        if self._stop_of_thread() is not None:
            check_response(response)

    def _hide_bars(self) -> None:
        from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
        from huggingface_hub.utils.tqdm import progress_bar_states

        self._user_decides = HF_HUB_DISABLE_PROGRESS_BARS is not None
        if not self._user_decides:
            self._bars = progress_bar_states.get("_global")
            progress_bar_states["_global"] = False

    def _show_bars_as_before(self) -> None:
        from huggingface_hub.utils.tqdm import progress_bar_states

        if self._user_decides:
            return
        if self._bars is None:
            progress_bar_states.pop("_global", None)
        else:
            progress_bar_states["_global"] = self._bars


def _obeying(send: Callable[..., Any], request: Any, options: Mapping[str, Any], stop: threading.Event) -> Any:
    """Send `request` when no limit holds, again after each one that it meets. Raises the client's error for what cannot
    be waited for here: too long, or a body that is a stream and has been read."""
    from huggingface_hub import hf_raise_for_status

    waited = 0.0
    while True:
        if LIMITS.wait(HUB_PLACE, stop):
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
        LIMITS.hold(HUB_PLACE, asked, limit_reason(HUB_PLACE, status, token=bool(hub_token())))


def _can_be_sent_again(request: Any) -> bool:
    try:
        request.content  # noqa: B018 (all of it is at hand, or this raises)
    except RuntimeError:
        return False
    return True


def _with_hook(hooks: Mapping[str, list[Any]], event: str, hook: Callable[[Any], None]) -> dict[str, list[Any]]:
    return {**hooks, event: [*hooks.get(event, []), hook]}


def _without_hook(hooks: Mapping[str, list[Any]], event: str, hook: Callable[[Any], None]) -> dict[str, list[Any]]:
    return {**hooks, event: [other for other in hooks.get(event, []) if other != hook]}


_SESSION = _Session()
hub_session = _SESSION.ours  # a context manager: the requests that its block makes in this thread are ours
