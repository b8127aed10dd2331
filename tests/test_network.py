"""Every client's every failure becomes one line without a secret, tried again only where that can help."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import datasets
import fsspec
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

from shardkit import network, rate_limits
from shardkit.errors import AuthError, DiskFull, HubError, ShardkitError, SourceError, UsageError
from shardkit.network import as_hub_error, open_filesystem, scrub, with_retries


def answer(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co/api/x?X-Amz-Signature=abc")
    return HfHubHTTPError("said", response=httpx2.Response(status, headers=headers, request=request))


def wrapped(outer: Exception, inner: Exception) -> Exception:
    try:
        raise outer from inner
    except type(outer) as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (answer(503), HubError, True),
        (answer(429), HubError, True),
        (answer(412), HubError, True),
        (answer(404), HubError, False),
        (answer(413), HubError, False),
        (answer(403), AuthError, False),
        (answer(429, **{"Retry-After": "7200"}), HubError, False),
        (wrapped(RuntimeError("Error while uploading"), answer(503)), HubError, True),
        (wrapped(RuntimeError("Error while uploading"), answer(403)), AuthError, False),
        (wrapped(LocalEntryNotFoundError("no file in the cache"), httpx2.ConnectError("refused")), HubError, True),
        (wrapped(ValueError("Force download failed"), answer(401)), AuthError, False),
        (ConnectionError("xet token"), HubError, True),
        (httpx2.ReadTimeout("slow"), HubError, True),
        (json.JSONDecodeError("bad", "x", 0), HubError, True),
        (RuntimeError("Cannot send a request, as the client has been closed."), HubError, True),
        (TimeoutError(), HubError, True),
        (OfflineModeIsEnabled("offline"), HubError, False),
        (FileNotFoundError("s3://nothing"), HubError, False),
        (PermissionError("Access Denied"), AuthError, False),
        (OSError(errno.ENOSPC, "full"), DiskFull, False),
        (httpx2.LocalProtocolError("Illegal header value b'Bearer hf_secret12345\\n'"), AuthError, False),
    ],
)
def test_each_failure_is_one_line_of_the_right_class(error: Exception, kind: type[Exception], transient: bool) -> None:
    failure, wait = as_hub_error(error, "hf://datasets/a/b", "upload x.npy")
    assert type(failure) is kind
    assert (wait is not None) is transient
    text = str(failure)
    assert text.startswith("cannot upload x.npy")
    assert "\n" not in text
    assert len(text) < 500
    assert "Signature" not in text
    assert "hf_secret12345" not in text


def test_secrets_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd-token")
    text = scrub(
        "odd-token hf_abcDEF123456 Authorization: Bearer abc.def Basic dXNlcjpwYXNz https://u:pw@host/x\n"
        "https://cdn/x?X-Amz-Credential=AKIA&X-Amz-Signature=beef and https://hub/plain"
    )
    for secret in ("odd-token", "abcDEF123456", "abc.def", "dXNlcjpwYXNz", "u:pw", "AKIA", "beef"):
        assert secret not in text
    assert "https://cdn/x" in text
    assert "https://hub/plain" in text
    assert len(scrub("x" * 10_000)) == 300


def test_what_may_pass_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    tries: list[int] = []

    def third_time() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise answer(503)
        return "done"

    assert with_retries(third_time, "x", "y") == "done"
    tries.clear()

    def never() -> None:
        tries.append(1)
        raise ConnectionError("no")

    with pytest.raises(HubError):
        with_retries(never, "x", "y")
    assert len(tries) == network.TRIES


def gated() -> Exception:
    return GatedRepoError("gated", response=answer(403).response)


def refused(status: int) -> aiohttp.ClientResponseError:
    request = aiohttp.RequestInfo(URL("https://u:secret@host/x?sig=1"), "GET", CIMultiDictProxy(CIMultiDict()))
    return aiohttp.ClientResponseError(request, (), status=status, message="said")


def of_hub(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("said", response=answer(status, **{"X-Error-Code": "Odd"}).response)


def redirected(status: int) -> HfHubHTTPError:
    error = answer(status)
    error.response.history = [httpx2.Response(302)]
    return error


@pytest.mark.parametrize(
    ("error", "kind", "retry", "says"),
    [
        (refused(503), SourceError, True, "answered 503"),
        (refused(500), SourceError, True, "answered 500"),
        (refused(523), SourceError, True, "answered 523"),
        (refused(429), SourceError, True, "answered 429"),
        (refused(404), SourceError, False, "refused it (404"),
        (refused(416), SourceError, False, "refused it (416"),
        (refused(401), AuthError, False, "check your rights and credentials"),
        (refused(403), AuthError, False, "check your rights and credentials"),
        (redirected(403), AuthError, True, "is not given out by the Hub's file server"),
        (answer(403), AuthError, False, "does not allow it"),
        (gated(), AuthError, False, "is gated: accept its conditions"),
        (
            answer(404),
            SourceError,
            False,
            "answered GET https://huggingface.co/api/x with 404 and without the Hub's own",
        ),
        (answer(404, **{"X-Error-Code": "Odd"}), SourceError, False, "refused it (404"),
        (of_hub(RemoteEntryNotFoundError, 404), SourceError, False, "has no such file: check the path and revision="),
        (of_hub(DisabledRepoError, 403), SourceError, False, "was disabled by the Hub"),
        (answer(402), SourceError, False, "wants a larger plan"),
        (ConnectionRefusedError(111, "refused"), SourceError, True, "look at this machine's network, then run the"),
        (OSError(errno.EMFILE, "Too many open files"), SourceError, False, "allow more open files (ulimit -n 4096)"),
        (OSError(errno.ENOLCK, "No locks available"), SourceError, False, "set HF_HOME to a folder on a disk of this"),
        (OSError(errno.EROFS, "Read-only file system"), SourceError, False, "mounted read-only"),
        (
            answer(403, **{"Content-Type": "text/html"}),
            SourceError,
            False,
            "GET https://huggingface.co/api/x with a page",
        ),
        (httpx2.ProxyError("407 Proxy Authentication Required"), SourceError, False, "the proxy wants a login (407"),
        (httpx2.ProxyError("502 Bad Gateway"), SourceError, True, "does not answer as it should"),
        (answer(511), SourceError, False, "this network wants a login first"),
        (
            httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] x"),
            SourceError,
            False,
            "certificate that is not trusted",
        ),
        (aiohttp.ServerDisconnectedError(), SourceError, True, "does not answer as it should"),
        (aiohttp.ClientPayloadError("cut"), SourceError, True, "does not answer as it should"),
        (httpx2.ConnectError("refused"), SourceError, True, "does not answer as it should"),
        (fsspec.exceptions.FSTimeoutError(), SourceError, True, "does not answer as it should"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="s3"), SourceError, True, "does not answer"),
        (botocore.exceptions.NoCredentialsError(), AuthError, False, "needs credentials"),
        (datasets.exceptions.DatasetNotFoundError("gated"), AuthError, False, "is not for you to read"),
        (OSError(errno.ENOSPC, "full"), DiskFull, False, "no room left on the disk"),
        (PermissionError("403"), AuthError, False, "check your rights and credentials"),
        (FileNotFoundError("x"), SourceError, False, "no such file or folder"),
        (ValueError("no ranges"), SourceError, False, "cannot be used that way"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_client_s_errors_are_tried_again_or_not_by_the_same_table(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], retry: bool, says: str
) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.0)
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        as_if_in("fsspec.spec", error)

    with pytest.raises(ShardkitError) as caught:
        with_retries(fail, "https://u:secret@host/x y?sig=1", "read x", error=SourceError)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("cannot read x: ")
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "sig=1" not in str(caught.value)
    patient = any(says == f"answered {status}" for status in (429, 503, 523))
    assert len(tries) == (1 if not retry else network.PATIENT_TRIES if patient else network.TRIES)


def as_if_in(module: str, error: Exception) -> None:
    """Raise `error` from a function of that module."""
    space: dict[str, Any] = {"__name__": module, "error": error.with_traceback(None)}
    exec("def work(): raise error", space)
    space["work"]()


def of_a_client(error: Exception) -> Callable[[], None]:
    return lambda: as_if_in("huggingface_hub.hf_api", error)


def half_an_answer() -> None:
    httpx2.Response(200, content=b"{").json()


def an_empty_answer() -> None:
    httpx2.Response(200, content=b"").json()


def after_a_miss_in_its_own_cache() -> None:
    space: dict[str, Any] = {"__name__": "huggingface_hub.x"}
    exec("def work():\n    try: {}['x']\n    except KeyError: raise RuntimeError('odd')", space)
    space["work"]()


def a_closed_client() -> None:
    client = httpx2.Client()
    client.close()
    client.get("http://127.0.0.1:9/")


def no_such_protocol() -> None:
    fsspec.core.url_to_fs("nonsense://x")


def a_wrapped_answer() -> None:
    as_if_in("huggingface_hub._upload", wrapped(RuntimeError("Error while uploading"), answer(503)))


@pytest.mark.parametrize(
    ("action", "retry"),
    [
        (half_an_answer, True),
        (an_empty_answer, True),
        (after_a_miss_in_its_own_cache, True),
        (a_closed_client, True),
        (no_such_protocol, False),
        (a_wrapped_answer, "patiently"),
        (of_a_client(RuntimeError("odd")), True),
        (of_a_client(EOFError()), True),
        (of_a_client(ValueError("odd")), False),
    ],
)
def test_what_a_client_s_code_raises_is_no_bug_whatever_its_class(
    monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], retry: bool | str
) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(network, "_answered", set())
    tries: list[int] = []

    def counted() -> None:
        tries.append(1)
        action()

    with pytest.raises(HubError):
        with_retries(counted, "x", "y")
    assert len(tries) == {False: 1, True: network.TRIES, "patiently": network.PATIENT_TRIES}[retry]


def our_json() -> None:
    json.loads("{")


def our_number() -> None:
    int("many")


def our_decoding() -> None:
    b"\xff".decode()


def our_runtime_error() -> None:
    raise RuntimeError("ours")


def while_handling_a_client_s() -> None:
    try:
        raise answer(404)
    except HfHubHTTPError as error:
        raise ValueError("ours") from error


def in_a_client_s_callback() -> None:
    space: dict[str, Any] = {"__name__": "fsspec.callbacks", "callback": our_number}
    exec("def work(): callback()", space)
    space["work"]()


def wrapped_by_a_client() -> None:
    as_if_in("huggingface_hub._upload", wrapped(RuntimeError("Error while uploading"), TypeError("ours")))


@pytest.mark.parametrize(
    "action",
    [
        our_json,
        our_number,
        our_decoding,
        our_runtime_error,
        while_handling_a_client_s,
        in_a_client_s_callback,
        wrapped_by_a_client,
    ],
)
def test_a_bug_passes_through_at_once_with_its_traceback(action: Callable[[], None]) -> None:
    tries: list[int] = []

    def counted() -> None:
        tries.append(1)
        action()

    with pytest.raises((ValueError, RuntimeError)) as caught:
        with_retries(counted, "x", "y")
    assert len(tries) == 1
    assert not isinstance(caught.value, ShardkitError)
    if action is not wrapped_by_a_client:
        assert action.__name__ in [frame.name for frame in traceback.extract_tb(caught.tb)]


def test_our_own_errors_pass_through() -> None:
    ours = UsageError("ours")

    def fail() -> None:
        raise ours

    with pytest.raises(UsageError) as caught:
        with_retries(fail, "x", "y")
    assert caught.value is ours


def test_damaged_content_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(
        SourceError, match=r"cannot read a\.parquet: x is no whole parquet file .*: fetch or make it again"
    ):
        with_retries(
            lambda: pq.ParquetFile(tmp_path / "a.parquet"), "x", "read a.parquet", error=SourceError, content=True
        )
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        pa.CompressedInputStream(pa.BufferReader(b"no gzip at all"), "gzip").read()

    with pytest.raises(SourceError, match=r"^cannot read a\.gz: it is damaged.* \(OSError: .*: fetch or make it again"):
        with_retries(fail, "a.gz", "read a.gz", error=SourceError, content=True)
    assert tries == [1]


def test_the_module_loads_no_client() -> None:
    code = "import sys, shardkit.network; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "httpx", "httpx2", "pyarrow", "aiohttp", "fsspec"} & set(done.stdout.split())


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> rate_limits.RateLimits:
    """No limit holds, waits are short, and no place has answered yet."""
    fresh = rate_limits.RateLimits()
    monkeypatch.setattr(network, "LIMITS", fresh)
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(rate_limits, "SPREAD_SECONDS", 0.0)
    monkeypatch.setattr(network, "_answered", set())
    return fresh


def failing(*errors: Exception) -> tuple[Callable[[], str], list[int]]:
    """An action that raises each of `errors` in turn and then works, and a list that grows with its calls."""
    left, calls = list(errors), []

    def action() -> str:
        calls.append(1)
        if left:
            raise left.pop(0)
        return "done"

    return action, calls


def test_a_limit_is_waited_for_without_counting_a_try(
    limits: rate_limits.RateLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[float] = []
    monkeypatch.setattr(limits, "hold", lambda where, seconds, reason: held.append(seconds))  # and nothing waits
    many = [answer(429, **{"RateLimit": '"api";r=0;t=53'}) for _ in range(30)]
    action, calls = failing(*many, answer(503, **{"Retry-After": "7"}), answer(500))
    assert with_retries(action, "hf://datasets/a/b", "y") == "done"
    assert len(calls) == 33
    assert held == [54.0] * 30 + [7.0]


def test_a_limit_is_waited_for_as_long_as_the_server_asks(limits: rate_limits.RateLimits) -> None:
    action, _ = failing(answer(429, **{"Retry-After": "1"}))
    start = time.monotonic()
    assert with_retries(action, "hf://datasets/a/b", "y") == "done"
    assert time.monotonic() - start >= 1.0


def test_a_server_that_asks_for_more_and_more_is_given_up_after_an_hour(
    limits: rate_limits.RateLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "hold", lambda where, seconds, reason: None)
    action, calls = failing(*[answer(429, **{"Retry-After": "600"}) for _ in range(99)])
    with pytest.raises(HubError, match="answered 429"):
        with_retries(action, "hf://datasets/a/b", "y")
    assert len(calls) == 7  # six waits of 600 s are an hour


def test_a_stop_ends_the_wait_for_a_limit_with_the_error_that_led_to_it(limits: rate_limits.RateLimits) -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(HubError, match="answered 429"):
        with_retries(failing(answer(429, **{"Retry-After": "500"}))[0], "hf://datasets/a/b", "y", stop)
    action, calls = failing()
    with pytest.raises(HubError, match="stopped"):  # of a thread that came later
        with_retries(action, "hf://datasets/c/d", "y", stop)
    assert not calls


def test_while_one_call_waits_for_a_limit_no_other_to_that_place_begins(limits: rate_limits.RateLimits) -> None:
    refused = threading.Event()
    released: list[float] = []

    def limited() -> str:
        if refused.is_set():
            return "done"
        refused.set()
        raise answer(429, **{"Retry-After": "1"})

    def other() -> str:
        released.append(time.monotonic())
        return "done"

    first = threading.Thread(target=with_retries, args=(limited, "hf://datasets/a/b", "y"))
    start = time.monotonic()
    first.start()
    refused.wait()
    while not limits.seconds_left("hf://datasets/x/y"):
        time.sleep(0.001)
    with_retries(other, "https://elsewhere/x", "y")
    with_retries(other, "hf://datasets/x/y", "y")
    first.join()
    elsewhere, here = released
    assert here - start >= 1.0
    assert elsewhere < here


@pytest.mark.parametrize("status", [429, 502, 503, 504, 523])
def test_an_overloaded_server_is_given_minutes(limits: rate_limits.RateLimits, status: int) -> None:
    action, _ = failing(*[answer(status)] * (network.PATIENT_TRIES - 1))
    assert with_retries(action, "hf://datasets/a/b", "y") == "done"
    with pytest.raises(HubError, match=f"answered {status}"):
        with_retries(failing(*[answer(status)] * 99)[0], "hf://datasets/a/b", "y")
    waits = [rate_limits.backoff_seconds(n, 1.0, network.LONGEST_STEP) for n in range(1, network.PATIENT_TRIES)]
    assert sum(waits) >= 300  # the Hub's window, in the first instant of which the limit may have been met


def test_s3_that_asks_to_slow_down_is_given_minutes_too(limits: rate_limits.RateLimits) -> None:
    said = {"Error": {"Code": "SlowDown", "Message": "Please reduce your request rate."}}
    slow = translate_boto_error(botocore.exceptions.ClientError(said, "GetObject"))
    assert with_retries(failing(*[slow] * (network.PATIENT_TRIES - 1))[0], "s3://bucket/x", "y") == "done"


def test_a_limit_that_fsspec_s_http_client_met_is_read_too() -> None:
    error = refused(429)
    error.headers = CIMultiDictProxy(CIMultiDict({"retry-after": "7"}))
    again = as_hub_error(error, "https://u:pw@host/x?sig=1", "read x")[1]
    assert again is not None
    assert (again.asked, again.reason) == (7.0, "https://host's limit of requests (429)")


def test_a_server_that_was_never_there_is_given_seconds_and_one_that_was_is_given_minutes(
    limits: rate_limits.RateLimits,
) -> None:
    gone = httpx2.ConnectError("refused")
    action, calls = failing(*[gone] * 99)
    with pytest.raises(HubError, match="does not answer"):
        with_retries(action, "hf://datasets/a/b", "y")
    assert len(calls) == network.TRIES
    open_filesystem("https://elsewhere/x")  # which asks nobody
    with_retries(failing()[0], "hf://datasets/a/b", "y")
    for where, tries in (("hf://datasets/c/d", network.PATIENT_TRIES), ("https://elsewhere/x", network.TRIES)):
        action, calls = failing(*[gone] * 99)
        with pytest.raises(HubError):
            with_retries(action, where, "y")
        assert len(calls) == tries
    waits = [rate_limits.backoff_seconds(n, 1.0, network.LONGEST_STEP) for n in range(1, network.TRIES)]
    assert 15 <= sum(waits) < 30


def test_the_error_of_a_limit_says_that_a_token_helps_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, limits: rate_limits.RateLimits
) -> None:
    for asked in ({}, {"Retry-After": "7200"}):
        message = str(as_hub_error(answer(429, **asked), "hf://datasets/a/b", "read x")[0])
        assert "with a token the limits are higher" in message
        assert "hf auth login" in message
    assert "token" not in str(as_hub_error(answer(503), "hf://datasets/a/b", "read x")[0])
    assert "token" not in str(as_hub_error(refused(429), "https://host/x", "read x")[0])  # not the Hub's
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    assert "token" not in str(as_hub_error(answer(429), "hf://datasets/a/b", "read x")[0])


@pytest.mark.parametrize(
    ("said", "is_full"),
    [
        ("Private repository storage limit reached, please upgrade your plan", True),
        ("You have exceeded your private storage allowance.", True),
        ("Your storage patterns tripped our internal systems!", True),
        ("You are out of public storage", True),
        ("You need to be granted the right to write here", False),
        ("Storage class is unknown", False),
    ],
)
def test_the_words_of_a_full_quota_are_told_from_others(said: str, is_full: bool) -> None:
    error = answer(403)
    error.server_message = said
    assert ("storage quota is full" in str(as_hub_error(error, "hf://x", "send")[0])) == is_full
    limit = answer(429)
    limit.server_message = "You have exceeded your storage API quota"
    assert "storage quota is full" not in str(as_hub_error(limit, "hf://x", "send")[0])


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_file_of_the_hubs_client_that_may_not_be_written_is_not_called_the_hubs_refusal(code: int) -> None:
    error = OSError(code, "denied", "/root/.cache/huggingface/hub/x")
    says, again = as_hub_error(error, "hf://datasets/u/n", "fetch")
    assert "was not asked: " in str(says)
    assert "'/root/.cache/huggingface/hub/x': the Hub's client keeps files there, set HF_HOME to a folder" in str(says)
    assert again is None
