"""A server that says when to come back is left alone until then by every thread, and whoever watches is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from shardkit import rate_limits
from shardkit.rate_limits import PAUSES, RateLimits, asked_seconds, backoff_seconds, limit_reason, pause, server_of

HUB = "hf://datasets/alice/demo"
NEVER = threading.Event()


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "7"}, 7.0),
        (503, {"retry-after": " 12 "}, 12.0),
        (429, {"RateLimit": '"api";r=0;t=53', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}, 54.0),
        (429, {"ratelimit": '"resolvers"; r = 0; t = 9'}, 10.0),
        (429, {"RateLimit": '"api";r=0;t=5, "resolvers";r=0;t=40, "pages";r=7;t=250'}, 41.0),
        (429, {"RateLimit": '"api";r=12;t=53'}, 0.0),  # not the limit that was met
        (429, {"Retry-After": "3", "RateLimit": '"api";r=0;t=53'}, 54.0),
        (429, {"RateLimit": '"api";r=0;t=0'}, 0.0),
        (503, {"RateLimit": '"api";r=0;t=53'}, 0.0),  # the Hub sends the header with every answer
        (429, {"Retry-After": "soon"}, 0.0),
        (429, {"Retry-After": "-4"}, 0.0),
        (429, {"Retry-After": "²"}, 0.0),
        (429, {"RateLimit": "limit=10, remaining=0, reset=50"}, 0.0),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        (429, {"Retry-After": "9" * 400}, 999_999_999.0),
        (None, {}, 0.0),
    ],
)
def test_what_an_answer_asks_for_is_read_from_its_headers(
    status: int | None, headers: dict[str, str], seconds: float
) -> None:
    assert asked_seconds(status, headers) == seconds


def test_a_date_to_come_back_at_is_a_number_of_seconds_from_now() -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    assert 0 < asked_seconds(429, {"Retry-After": date}) <= 90


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("hf://datasets/a/b@main/x.parquet", "hf://"),
        ("hf://datasets/c/d", "hf://"),
        ("https://u:pw@host:81/x?sig=1", "https://host:81"),
        ("https://host/y", "https://host"),
        ("http://host/y", "http://host"),
        ("s3://bucket/x", "s3://bucket"),
        ("./out", ""),
    ],
)
def test_a_place_is_what_one_server_limits(where: str, place: str) -> None:
    assert server_of(where) == place


def test_no_thread_goes_on_while_the_limit_of_its_place_holds_and_they_do_not_go_on_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = [0.0, 0.5, 1.0]
    monkeypatch.setattr(rate_limits, "SPREAD_SECONDS", 0.2)
    monkeypatch.setattr(rate_limits.random, "random", lambda: shares.pop())
    limits = RateLimits()
    limits.hold(HUB, 0.3, "busy")
    limits.hold("hf://datasets/other/name", 0.1, "busy")  # somebody else was told later, and less
    ends = time.monotonic() + 0.29
    came: list[float] = []

    def ask() -> None:
        assert limits.wait(HUB, NEVER) is False
        came.append(time.monotonic() - ends)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert limits.wait("https://elsewhere/x", NEVER) is False  # at once: another place
    assert not came
    for thread in threads:
        thread.join()
    came.sort()
    assert all(after >= least for after, least in zip(came, (0.0, 0.1, 0.2), strict=True))
    assert not shares


def test_a_limit_that_is_prolonged_meanwhile_is_waited_for_to_its_new_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "SPREAD_SECONDS", 0.0)
    limits = RateLimits()
    limits.hold(HUB, 0.1, "busy")
    start = time.monotonic()
    threading.Timer(0.02, limits.hold, (HUB, 0.3, "busy")).start()
    limits.wait(HUB, NEVER)
    assert time.monotonic() - start >= 0.3


def test_a_stop_ends_a_wait_of_minutes() -> None:
    limits, stop = RateLimits(), threading.Event()
    limits.hold(HUB, 500, "busy")
    threading.Timer(0.05, stop.set).start()
    assert limits.wait(HUB, stop) is True
    assert pause(500, "busy", stop) is True


def test_a_backoff_doubles_up_to_its_longest_and_differs_between_two_who_failed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limits.random, "random", lambda: 0.0)
    assert [backoff_seconds(n, 1.0, 60.0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    monkeypatch.setattr(rate_limits.random, "random", lambda: 1.0)
    assert backoff_seconds(3, 1.0, 60.0) == 6.0
    assert backoff_seconds(9, 1.0, 60.0) == 90.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """What a listener is told, with ticks of some milliseconds, and every pause worth a word."""
    monkeypatch.setattr(rate_limits, "_TOLD_SECONDS", 0.0)
    monkeypatch.setattr(rate_limits, "_TICK_SECONDS", 0.01)
    heard: list[tuple[str, bool]] = []
    with PAUSES.told_to(lambda text, is_new: heard.append((text, is_new))):
        yield heard


def test_a_pause_is_told_while_it_lasts_once_as_new_and_its_end_too(told: list[tuple[str, bool]]) -> None:
    pause(0.1, "a limit", NEVER)
    first, *going, last = told
    assert first == ("a limit: waiting 1 s", True)
    assert going
    assert set(going) <= {("a limit: waiting 1 s", False)}
    assert last == ("", False)


def test_many_threads_in_one_pause_are_one_pause(told: list[tuple[str, bool]]) -> None:
    limits, stop = RateLimits(), threading.Event()
    limits.hold(HUB, 500, "a limit")
    threads = [threading.Thread(target=limits.wait, args=(HUB, stop)) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(told) < 30:
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert [text.partition(":")[0] for text, is_new in told if is_new] == ["a limit"]
    assert told[-1] == ("", False)


def test_without_a_listener_a_pause_is_one_warning_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rate_limits, "_TOLD_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="shardkit"):
        pause(0.01, "no listener", NEVER)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("shardkit", "WARNING", "no listener: waiting 1 s")
    ]


def test_a_pause_says_whose_limit_it_is_and_no_secret() -> None:
    assert limit_reason(HUB, 429, token=True) == "the Hub's limit of requests (429)"
    assert limit_reason(HUB, 429, token=False) == "the Hub's limit of requests without a token (429)"
    assert limit_reason("https://u:pw@host/x?sig=1", 429, token=True) == "https://host's limit of requests (429)"
    assert limit_reason(HUB, 503, token=False) == "the Hub answered 503"
    assert limit_reason("https://host/x", "ConnectError", token=True) == "https://host does not answer (ConnectError)"
