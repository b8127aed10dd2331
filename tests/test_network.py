"""Every client's every failure becomes one line without a secret, tried again only where that can help."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
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
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from shardkit import network
from shardkit.errors import AuthError, DiskFull, HubError, ShardkitError, SourceError, UsageError
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


def gated() -> Exception:
    return GatedRepoError("gated", response=answer(403).response)


def refused(status: int) -> aiohttp.ClientResponseError:
    request = aiohttp.RequestInfo(URL("https://u:secret@host/x?sig=1"), "GET", CIMultiDictProxy(CIMultiDict()))
    return aiohttp.ClientResponseError(request, (), status=status, message="said")


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
        (redirected(403), AuthError, True, "does not allow it"),
        (answer(403), AuthError, False, "does not allow it"),
        (gated(), AuthError, False, "is gated: accept its conditions"),
        (
            answer(404),
            SourceError,
            False,
            "answered GET https://huggingface.co/api/x with 404 and without the Hub's own",
        ),
        (answer(404, **{"X-Error-Code": "Odd"}), SourceError, False, "refused it (404"),
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
    assert len(tries) == (network.TRIES if retry else 1)


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
        (a_wrapped_answer, True),
        (of_a_client(RuntimeError("odd")), True),
        (of_a_client(EOFError()), True),
        (of_a_client(ValueError("odd")), False),
    ],
)
def test_what_a_client_s_code_raises_is_no_bug_whatever_its_class(
    monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], retry: bool
) -> None:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.0)
    tries: list[int] = []

    def counted() -> None:
        tries.append(1)
        action()

    with pytest.raises(HubError):
        with_retries(counted, "x", "y")
    assert len(tries) == (network.TRIES if retry else 1)


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

    with pytest.raises(SourceError, match=r"cannot read a\.gz: x cannot be read \(OSError: .*: fetch or make it again"):
        with_retries(fail, "x", "read a.gz", error=SourceError, content=True)
    assert tries == [1]


def test_the_module_loads_no_client() -> None:
    code = "import sys, shardkit.network; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "httpx", "httpx2", "pyarrow", "aiohttp", "fsspec"} & set(done.stdout.split())


def test_the_wait_is_at_least_what_the_server_asks_for_and_is_cut_by_stop() -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return len(waits) == 3

    def fail() -> None:
        raise answer(429, **{"Retry-After": "3"})

    with pytest.raises(HubError):
        with_retries(fail, "x", "y", Stop())
    assert waits == [3.0, 3.0, 4.0]
