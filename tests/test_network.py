"""Every client's every failure becomes one line without a secret, tried again only where that can help."""

from __future__ import annotations

import errno
import json
import threading
import time

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from shardkit import network
from shardkit.errors import AuthError, DiskFull, HubError, UsageError
from shardkit.network import as_hub_error, scrub, with_retries


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


def test_bugs_and_our_own_errors_pass_through() -> None:
    for error in (TypeError("bug"), KeyError("bug"), UsageError("ours"), ZeroDivisionError()):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            with_retries(fail, "x", "y")
        assert caught.value is error


def test_waits_grow_and_stop_when_told() -> None:
    stop, start = threading.Event(), time.monotonic()
    threading.Timer(0.1, stop.set).start()

    def fail() -> None:
        raise answer(429, **{"Retry-After": "60"})

    with pytest.raises(HubError):
        with_retries(fail, "x", "y", stop)
    assert time.monotonic() - start < 5
