"""Calls over the network: tried again where that can help, and every failure of every client said in one line.

`with_retries` runs a call, `as_hub_error` puts a client's exception into words. Both follow one table, `RULES` in
`network_errors.py`: which errors are worth another try, of which class ours is, and what it says. The clients are
`huggingface_hub`, the fsspec drivers, `datasets` and pyarrow; none is imported here, since every worker process imports
this module. No message leaves it with a token in it.
"""

from __future__ import annotations

import errno
import re
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

from shardkit import hub_session
from shardkit.errors import HubError, ShardkitError, UsageError
from shardkit.hub_address import endpoint
from shardkit.network_errors import NO_ROOM, RULES, STORAGE_FULL
from shardkit.redaction import hub_token, public_address, redact, redact_logs, user_of

Result = TypeVar("Result")
TRIES = 5
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 300.0
# Modules of the clients. What their code raises is a failure of the network or of the data.
_CLIENT = re.compile(
    r"(adlfs|aiohttp|aiobotocore|asyncio|azure|botocore|datasets|fsspec|ftplib|gcsfs|google|h11|hf_xet|httpcore2?"
    r"|httpx2?|huggingface_hub|paramiko|pyarrow|requests|s3fs|smbprotocol|urllib3)(\.|$)"
)


def with_retries(
    action: Callable[[], Result],
    where: str,
    what: str,
    stop: threading.Event | None = None,
    *,
    error: type[ShardkitError] = HubError,
    content: bool = False,
) -> Result:
    """Run `action`, which is safe to repeat, and return what it returns.

    `where` names the place and `what` the doing ("upload x.npy") in errors. Failures that may pass are tried again,
    `TRIES` times in all, after 1, 2, 4 ... seconds, or what `Retry-After` asks for (up to 300 s); `stop` cuts the
    waiting. With `content`, the bytes are at hand and a failure is theirs, which no other try mends.

    Raises `error`, or where it fits better `AuthError` or `DiskFull`. `ShardkitError`s pass through, and so do bugs,
    with their traceback: an exception counts as a bug if neither its class nor the code that raised it is a client's.
    """
    stop = stop or threading.Event()
    attempt = 0
    while True:
        attempt += 1
        try:
            with _session_for(where):
                return action()
        except ShardkitError:
            raise
        except Exception as raised:
            if not (_is_a_clients(raised) and _is_a_clients(_root_of(raised))):
                raise
            failure, wait = as_hub_error(raised, where, what, error=error, content=content)
            if wait is None or attempt == TRIES or stop.wait(max(wait, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))):
                raise failure from None  # the client's own text may hold a header with the token


def _session_for(where: str) -> AbstractContextManager[None]:
    """What a call to `where` needs around it: the Hub's client answers to us."""
    return hub_session.hub_session() if where.startswith("hf://") else nullcontext()


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
        opened = with_retries(connect, shown, "open", error=error)
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


def as_hub_error(
    raised: Exception, where: str, what: str, *, error: type[ShardkitError] = HubError, content: bool = False
) -> tuple[ShardkitError, float | None]:
    """The one-line error for a client's exception, and the least seconds to wait before another try (None: no use)."""
    root = _root_of(raised)
    marks = _marks_of(root) | ({"content"} if content else set())
    rule = next(rule for rule in RULES if rule.marks <= marks)
    status, wait = _status_of(root), _retry_after(root) if rule.retry else None
    says = rule.says
    if wait is not None and wait > LONGEST_WAIT_SECONDS:
        says, wait = f"asks to wait {wait:.0f} s ({{status}}): run the same command later, it goes on", None
    said = scrub(str(getattr(root, "server_message", None) or root)) or "no reason given"
    says = says.format(
        status=status,
        said=said,
        detail=scrub(f"{type(root).__name__}: {root}"),
        asked=hub_session.request_of(getattr(root, "response", None)),
        endpoint=endpoint(),
        advice=hub_session.advice(),
    )
    head = f"cannot {what}: " if rule.says is NO_ROOM else f"cannot {what}: {scrub(public_address(where))} "
    return (rule.error or error)(head + says), wait


def scrub(text: str) -> str:
    """`text` on one line of at most 300 characters, without tokens, credentials or signed queries."""
    text = " ".join(redact(text).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _marks_of(error: BaseException) -> set[str | int]:
    """What a rule may ask of an error: its classes' names, HTTP status, errno's name, and the words that are below."""
    marks: set[str | int] = {*_class_names(error)}
    if (status := _status_of(error)) is not None:
        marks |= {"HTTP", status}
        if status > 504:
            marks.add("over 504")
    if isinstance(error, OSError) and error.errno is not None:
        marks.add(errno.errorcode.get(error.errno, "OSError"))
    if "HfHubHTTPError" in marks:
        marks.add("Hub")
        if getattr(getattr(error, "response", None), "history", None):
            marks.add("redirected")
        marks |= _marks_of_answer(getattr(getattr(error, "response", None), "headers", None) or {})
    if marks & {"HfHubHTTPError", "LfsRefusedError"} and STORAGE_FULL.search(str(error)):
        marks.add("storage full")
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


def _status_of(error: BaseException) -> int | None:
    """The HTTP status in an exception of huggingface_hub or requests (`response.status_code`), aiohttp (`status`) or
    gcsfs."""
    response = getattr(error, "response", None)
    holder = error if response is None else response  # requests calls a response with an error status false
    for name in ("status_code", "status", "code"):  # aiohttp has a `code` that it calls deprecated
        value = getattr(holder, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


def _retry_after(error: BaseException) -> float:
    headers = getattr(getattr(error, "response", error), "headers", None) or {}
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _root_of(error: BaseException) -> BaseException:
    """What a client's wrapper exceptions hide: the Hub's answer if one is in the chain, else the first cause."""
    chain, causes = [error], [error]
    while (below := _context_of(chain[-1])) is not None and below not in chain:
        chain.append(below)
    for item in chain:
        if not _class_names(item).isdisjoint({"HfHubHTTPError", "WrongAnswer"}):
            return item
    # fsspec calls whatever kept it from a file behind http "not found": a refusal, or no connection
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause and type(cause).__module__.startswith("aiohttp."):
        return error if _status_of(cause) == 404 else cause
    if not (isinstance(error, RuntimeError | ValueError) or "LocalEntryNotFoundError" in _class_names(error)):
        return error
    while (below := causes[-1].__cause__) is not None and below not in causes:
        causes.append(below)
    return causes[-1]


def _context_of(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _class_names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _is_a_clients(error: BaseException) -> bool:
    """Whether `error` says something of the network, the disk or the data, and is no bug of ours."""
    if isinstance(error, OSError) or any(_CLIENT.match(base.__module__) for base in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError | ValueError | EOFError) and _raised_by_client(error.__traceback__)


def _raised_by_client(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame outside Python's own library is a client's."""
    modules: list[str] = []
    while traceback is not None:
        modules.append(str(traceback.tb_frame.f_globals.get("__name__")))
        traceback = traceback.tb_next
    outside = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names]
    return bool(outside) and _CLIENT.match(outside[-1]) is not None
