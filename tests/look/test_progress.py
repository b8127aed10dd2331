"""What a run says while it goes on and waits, and its closing figures."""

from __future__ import annotations

import dataclasses
import io
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from texts import documents, write_parquet

from shardkit import Manifest, rate_limits, tokenize
from shardkit.bars import TransferBar
from shardkit.look.run_summary import run_summary
from shardkit.rate_limits import PAUSES
from shardkit.tokenization.progress_bar import ProgressBar, bound_words
from shardkit.tokenization.run_progress import TokenizeProgress

TEXTS = documents(40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, TokenizeProgress]:
    folder = tmp_path_factory.mktemp("run")
    source = write_parquet(folder / "a.parquet", TEXTS, rows=10)
    seen: list[TokenizeProgress] = []
    manifest = tokenize(str(source), folder / "out", shard_tokens=5_000, workers=1, progress=seen.append)
    return manifest, seen[-1]


def test_a_summary_counts_what_was_made(run: tuple[Manifest, TokenizeProgress]) -> None:
    manifest, last = run
    summary: dict[str, Any] = run_summary(manifest, last, 2.0)
    size = sum(len((text or "").encode()) for text in TEXTS)
    assert summary["tokens"] == manifest.tokens == last.session_tokens
    assert summary["documents"] == len(TEXTS)
    assert summary["shards"] == len(manifest.shards)
    assert summary["bytes_per_token"] == pytest.approx(size / manifest.tokens, abs=0.001)
    assert summary["tokens_per_second"] == round(manifest.tokens / last.session_seconds)
    assert 0 < summary["audited_documents"] <= len(TEXTS)
    assert summary["audit"] is None
    assert (summary["skipped_rows"], summary["already_complete"]) == (0, False)


def test_where_the_reference_itself_encodes_nothing_is_left_to_audit(
    run: tuple[Manifest, TokenizeProgress],
) -> None:
    manifest = dataclasses.replace(run[0], encoder={"engine": "tiktoken", "version": "1"})
    summary = run_summary(manifest, dataclasses.replace(run[1], audited=0), 2.0)
    assert (summary["audited_documents"], summary["audit"]) == (None, "none: the reference itself encoded")


def test_a_run_that_was_complete_already_says_so_and_gives_no_rates(run: tuple[Manifest, TokenizeProgress]) -> None:
    summary = run_summary(run[0], None, 0.1)
    assert summary["already_complete"] is True
    assert summary["tokens"] == run[0].tokens
    assert "tokens_per_second" not in summary


def test_rates_of_no_time_at_all_are_numbers(run: tuple[Manifest, TokenizeProgress]) -> None:
    manifest, last = run
    assert run_summary(manifest, dataclasses.replace(last, session_seconds=0.0), 0.0)["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({}, ""),
        (
            {"network_bytes": 380_000_000, "network_seconds": 10.0, "waited_share": 0.8, "process_ids": (1, 2)},
            "network-bound: 38 MB/s; 2 workers could take 190",
        ),
        (
            {"network_bytes": 90_000_000, "network_seconds": 1.0, "waited_share": 0.02, "process_ids": (1, 2)},
            "processor-bound: 90 MB/s come over the network",
        ),
        (
            {"network_bytes": 5_000_000, "network_seconds": 1.0, "waited_share": None},
            "5 MB/s come over the network",
        ),  # workers elsewhere
    ],
)
def test_what_bounds_a_run_over_the_network_is_said(
    run: tuple[Manifest, TokenizeProgress], figures: dict[str, Any], words: str
) -> None:
    assert bound_words(dataclasses.replace(run[1], **figures)) == words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("bar", [ProgressBar, lambda: TransferBar("pull")])
def test_a_bar_says_what_is_waited_for_and_then_no_more(bar: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bar():
        PAUSES.go_on("a pause", rate_limits.time.monotonic() + 53, "the Hub's limit of requests (429)")
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
        PAUSES.end("a pause")
        last = sys.stderr.getvalue().removeprefix(shown)  # type: ignore[attr-defined]
    assert "the Hub's limit of requests (429): waiting 53 s" in shown
    assert "\n" not in shown
    assert last
    assert "waiting" not in last


@pytest.mark.parametrize("bar", [ProgressBar, lambda: TransferBar("pull")])
def test_where_there_is_no_terminal_each_pause_is_one_line(
    bar: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rate_limits, "_TOLD_SECONDS", 0.0)
    monkeypatch.setattr(rate_limits, "_TICK_SECONDS", 0.01)
    with bar():
        rate_limits.pause(0.05, "one server answered 503", threading.Event())
        rate_limits.pause(0.05, "another answered 503", threading.Event())
    rate_limits.pause(0.05, "nobody listens", threading.Event())
    assert capsys.readouterr().err.splitlines() == [
        "one server answered 503: waiting 1 s",
        "another answered 503: waiting 1 s",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 300},
        {"skip_duplicates": True},
        {"filter": lambda text: len(text) < 300},
        {"transform": lambda text: text[:10]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_bytes_a_token_are_of_the_text_that_is_in_the_dataset(options: dict[str, Any], tmp_path: Path) -> None:
    letters = [chr(ord("a") + number) * 100 for number in range(20)]  # with `bytes` one token a byte, and one EOT
    source = write_parquet(tmp_path / "a.parquet", [*letters, *letters, "z" * 5_000], rows=50)
    seen: list[TokenizeProgress] = []
    options = {"tokenizer": "bytes", "workers": 1, "progress": seen.append, **options}
    manifest = tokenize(str(source), tmp_path / "out", **options)
    summary = run_summary(manifest, seen[-1], 1.0)
    assert summary["bytes_per_token"] == pytest.approx(1 - manifest.documents / manifest.tokens, abs=0.01)
