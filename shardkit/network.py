"""Calls over the network: tried again where that can help, and every failure of every client said in one line.

`with_retries` runs a call, `as_hub_error` puts a client's exception into words. Both follow one table, `RULES` in
`network_errors.py`: which errors are worth another try, of which class ours is, and what it says. The clients are
`huggingface_hub`, `hf_xet`, `requests`, the fsspec drivers, `datasets` and pyarrow; none is imported here, since every
worker process imports this module. No message leaves it with a token in it.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

from shardkit import hub_answers, rate_limits
from shardkit.client_errors import class_names, is_a_clients, root_of, status_of
from shardkit.errors import HubError, ShardkitError, UsageError
from shardkit.hub_address import endpoint, is_mirror
from shardkit.hub_session import hub_session
from shardkit.network_errors import LOGIN, NO_ROOM, RULES, STORAGE_FULL, UNREACHABLE
from shardkit.rate_limits import HUB_PLACE, LIMITS, asked_seconds, backoff_seconds, limit_reason, pause, server_of
from shardkit.redaction import hub_token, public_address, redact, redact_logs, user_of

Result = TypeVar("Result")
TRIES = 5  # 15 to 23 seconds
PATIENT_TRIES = 12  # of what is known to be there, and busy: 6 to 9 minutes, longer than the Hub's window of limits
FIRST_WAIT_SECONDS = 1.0
LONGEST_STEP = 60.0  # times the first wait
_TOKEN_HELPS = f"; with a token the limits are higher, 5,000 files in 5 minutes where it is 3,000 without: {LOGIN}"
# Marks of a server that is there and overloaded.
_OVERLOADED = {429, 502, 503, 504, "over 504", "EBUSY"}  # EBUSY: S3's SlowDown, as s3fs says it
# What only the words of an answer tell.
_WORDS = {
    "storage full": STORAGE_FULL,
    "e-mail": re.compile(r"(confirm|verif)\w* (your|the) e-?mail|e-?mail.{0,30}(confirm|verif)", re.IGNORECASE),
    "card": re.compile(
        r"\b(yaml|metadata)\b.{0,60}README|README.{0,60}\b(yaml|metadata)\b|invalid metadata", re.IGNORECASE
    ),
}
_answered: set[str] = set()  # the places that have served a call of this process


def with_retries(
    action: Callable[[], Result],
    where: str,
    what: str,
    stop: threading.Event | None = None,
    *,
    error: type[ShardkitError] = HubError,
    content: bool = False,
    asks: bool = True,
) -> Result:
    """Run `action`, which is safe to repeat, and return what it returns.

    `where` names the place and `what` the doing ("upload x.npy") in errors. Failures that may pass are tried again,
    `TRIES` times in all, after 1, 2, 4 ... seconds and a random part of them; `PATIENT_TRIES` times where the server is
    overloaded, or cannot be reached although it has answered this process before. What a server asks for by
    `Retry-After` or `RateLimit` is waited for and is no try: no call to its place begins before, in the whole process
    (`rate_limits.py` has the bounds). `stop` cuts the waiting. With `content`, the bytes are at hand and a failure is
    theirs, which no other try mends; without `asks`, that `action` returns does not show that its server is there.

    Raises `error`, or where it fits better `AuthError` or `DiskFull`. `ShardkitError`s pass through, and so do bugs,
    with their traceback: an exception counts as a bug if neither its class nor the code that raised it is a client's.
    """
    stop = stop or threading.Event()
    tries, most_tries, waited = 0, 0, 0.0
    failure: ShardkitError | None = None
    while True:
        if not content and LIMITS.wait(where, stop):
            raise failure or as_hub_error(ConnectionAbortedError("stopped"), where, what, error=error)[0]
        began = time.monotonic()
        try:
            with nullcontext() if content else _session_for(where, stop):
                result = action()
        except ShardkitError:
            raise
        except Exception as raised:
            if not (is_a_clients(raised) and is_a_clients(root_of(raised))):
                raise
            failure, again = as_hub_error(raised, where, what, error=error, content=content)
            # `from None`: the client's own text may hold a header with the token
            if again is None:
                raise failure from None
            if again.asked:
                waited += again.asked + int(time.monotonic() - began)  # the Hub's session has waited too
                if waited > rate_limits.MOST_WAIT_SECONDS:
                    raise failure from None
                LIMITS.hold(where, again.asked, again.reason)
                continue
            tries, most_tries = tries + 1, max(most_tries, again.tries)
            wait = backoff_seconds(tries, FIRST_WAIT_SECONDS, LONGEST_STEP * FIRST_WAIT_SECONDS)
            if tries >= most_tries or pause(wait, again.reason, stop):
                raise failure from None
        else:
            if asks:
                _answered.add(server_of(where))
            return result


def _session_for(where: str, stop: threading.Event) -> AbstractContextManager[None]:
    """The context of a call to `where`: for the Hub, its client's session with our time-outs and limits."""
    return hub_session(stop) if where.startswith(HUB_PLACE) else nullcontext()


def open_filesystem(address: str, *, error: type[ShardkitError] = HubError) -> tuple[Any, str]:
    """The fsspec filesystem that `address` is of, and the path in it.

    Some log in right here: raises `error` or `AuthError` where that fails, `UsageError` for a user or password before
    a place whose driver does not read them there, and fsspec's `ValueError` or `ImportError` for no driver.
    """
    import fsspec

    redact_logs()

    def connect() -> tuple[Any, str] | ValueError:
        try:
            return fsspec.core.url_to_fs(address)  # type: ignore[no-any-return]
        except ValueError as unknown:
            return unknown

    shown, user = public_address(address), user_of(address)
    try:
        opened = with_retries(connect, shown, "open", error=error, asks=False)
    except ShardkitError as failure:  # a server may repeat whom it refuses
        names = "|".join(re.escape(name) for name in user.split(":", 1) if len(name) > 3)
        raise type(failure)(re.sub(rf"\b({names})\b", "[hidden]", str(failure)) if names else str(failure)) from None
    if isinstance(opened, ValueError):
        raise opened
    if user and opened[1].lstrip("/").startswith(user):
        raise UsageError(
            f"{shown} is given with a user or password before it, which its driver does not read there: leave them out "
            "and set them as its own tools ask (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
        )
    return opened


class _Again(NamedTuple):
    """How a failure that may pass is tried again: so many `tries` in all, or, where the server has `asked` for that
    many seconds, after these; `reason` says to people what is waited for."""

    tries: int
    asked: float
    reason: str


def as_hub_error(
    raised: Exception, where: str, what: str, *, error: type[ShardkitError] = HubError, content: bool = False
) -> tuple[ShardkitError, _Again | None]:
    """The one-line error for a client's exception, and how to try again (None: no use)."""
    root = root_of(raised)
    marks = _marks_of(root) | {error.__name__, what} | ({"content"} if content else set())
    marks |= {"Hub's"} if where.startswith(HUB_PLACE) else set()
    rule = next(rule for rule in RULES if rule.marks <= marks)
    status, says, again = status_of(root), rule.says, None
    if rule.retry:
        asked = asked_seconds(status, getattr(getattr(root, "response", root), "headers", None) or {})
        patient = marks & _OVERLOADED or (marks & {*UNREACHABLE} and server_of(where) in _answered)
        token = not {"Hub", "no token"} <= marks
        reason = limit_reason(where, status or type(root).__name__, token=token)
        again = _Again(PATIENT_TRIES if patient else TRIES, asked, reason)
        if asked > rate_limits.LONGEST_WAIT_SECONDS:
            says, again = f"asks to wait {asked:.0f} s ({{status}}): run the same command later, it goes on", None
        says += _TOKEN_HELPS if status == 429 and not token else ""
    said = scrub(str(getattr(root, "server_message", None) or root)) or "no reason given"
    says = says.format(
        status=status,
        said=said,
        detail=scrub(f"{type(root).__name__}: {root}"),
        asked=hub_answers.request_of(getattr(root, "response", None)),
        endpoint=endpoint(),
        advice=hub_answers.advice(),
        mirror=" and at HF_ENDPOINT" if is_mirror() and where.startswith(HUB_PLACE) else "",
    )
    place = scrub(public_address(where))
    subject = "" if rule.says is NO_ROOM else "it " if what == f"read {place}" else f"{place} "  # a name is said once
    return (rule.error or error)(f"cannot {what}: {subject}{says}"), again


def scrub(text: str) -> str:
    """`text` on one line of at most 300 characters, without tokens, credentials or signed queries."""
    text = " ".join(redact(text).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _marks_of(error: BaseException) -> set[str | int]:
    """What a rule may ask of an error: its classes' names, HTTP status, errno's name, and the words that are below."""
    marks: set[str | int] = {*class_names(error)}
    if (status := status_of(error)) is not None:
        marks |= {"HTTP", status}
        if status > 504:
            marks.add("over 504")
    if isinstance(error, OSError) and error.errno is not None:
        marks.add(errno.errorcode.get(error.errno, "OSError"))
        if isinstance(error.filename, str) and os.path.isabs(error.filename):
            marks.add("own file")
    if "HfHubHTTPError" in marks:
        marks.add("Hub")
        if getattr(getattr(error, "response", None), "history", None):
            marks.add("redirected")
        marks |= _marks_of_answer(getattr(getattr(error, "response", None), "headers", None) or {})
    if marks & {"HfHubHTTPError", "LfsRefusedError"} and 429 not in marks:
        said = str(getattr(error, "server_message", None) or error)  # the latter has the address too
        marks |= {mark for mark, words in _WORDS.items() if words.search(said)}
    if not hub_token():
        marks.add("no token")
    if "Credentials" in type(error).__name__:
        marks.add("credentials")
    if "Illegal header value" in str(error):
        marks.add("illegal header")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        marks.add("certificate")
    wants_login = ("407",) if "ProxyError" in marks else ("430", "530", "532") if "error_perm" in marks else ()
    if str(error)[:3] in wants_login:  # of HTTP and of FTP
        marks.add("login")
    return marks


def _marks_of_answer(headers: Mapping[str, str]) -> set[str | int]:
    """Whether an answer is a page for people, and whether it lacks the words that the Hub gives with its errors."""
    is_page = headers.get("Content-Type", "").startswith("text/html")
    is_the_hubs = "X-Error-Code" in headers or "X-Error-Message" in headers
    return {*(["page"] if is_page else []), *([] if is_the_hubs else ["no code"])}
