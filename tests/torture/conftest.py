"""The campaign's table: every attack, how often it was tried, and how often it was survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from attacks import SECRET

Tally = Callable[[str, int], None]


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """`tally(attack, tried)`: these attacks were tried and survived; a test that fails counts as one that was not."""

    def note(attack: str, tried: int) -> None:
        record_property("attack", [attack, tried])

    return note


@pytest.fixture(autouse=True)
def _a_token_to_hide(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "hub" not in request.fixturenames:
        monkeypatch.setenv("HF_TOKEN", SECRET)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tried: Counter[str] = Counter()
    for report in (*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())):
        for name, value in getattr(report, "user_properties", ()):
            if name == "attack" and report.when == "call":
                tried[value[0]] += value[1]
    failed = [report.nodeid for report in terminalreporter.stats.get("failed", ())]
    if not tried and not failed:
        return
    terminalreporter.section("the campaign")
    for attack, count in sorted(tried.items()):
        terminalreporter.line(f"{attack:<72} {count:>9,} tried {count:>9,} survived")
    faults = sum(count for attack, count in tried.items() if not attack.startswith("strings"))
    terminalreporter.line(f"{'all but the strings':<72} {faults:>9,} tried, {len(failed)} tests failed")
