"""`interrupt`: Ctrl-C ends a command, also where something waits for ever."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from shardkit.interrupt import prompt_interrupt

HEAD = """
import sys, threading, time
from shardkit.interrupt import prompt_interrupt
stuck = threading.Lock()
stuck.acquire()
try:
    with prompt_interrupt("stopped: go on later"):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            CLEAN_UP
except KeyboardInterrupt:
    print("stopped: go on later", file=sys.stderr)
    sys.exit(130)
"""
CLEAN_UPS = {
    "ends at once": "pass",
    "waits for a lock": "stuck.acquire()",
    "waits for a thread": "thread = threading.Thread(target=stuck.acquire, daemon=True); thread.start(); thread.join()",
    "leaves a thread that the interpreter waits for": "threading.Thread(target=stuck.acquire).start()",
}


@pytest.mark.parametrize("clean_up", CLEAN_UPS.values(), ids=CLEAN_UPS)
def test_ctrl_c_ends_the_process_within_two_seconds_whatever_it_waits_for(clean_up: str) -> None:
    process = started(clean_up)
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - since < 2
    assert process.returncode == 130
    assert stderr.strip() == "stopped: go on later"


def test_the_second_ctrl_c_ends_the_process_at_once() -> None:
    process = started("print('cleaning', flush=True); stuck.acquire()")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - since < 1
    assert process.returncode == 130
    assert stderr.strip() == "stopped: go on later"


def test_the_handlers_are_put_back_after_a_block_that_was_not_interrupted() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    with prompt_interrupt("unused"):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before


def test_a_handler_of_the_callers_own_and_other_threads_are_left_alone() -> None:
    seen = []

    def in_a_thread() -> None:
        with prompt_interrupt("unused"):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with prompt_interrupt("unused"):
            seen.append(signal.getsignal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]


def started(clean_up: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD.replace("CLEAN_UP", clean_up)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process
