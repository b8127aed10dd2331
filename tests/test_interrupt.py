"""`interrupt`: Ctrl-C ends a command, also where something waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from shardkit.interrupt import prompt_interrupt

HEAD = """
import ctypes, os, signal, sys, threading, time
from shardkit.interrupt import prompt_interrupt
stuck = threading.Lock()
stuck.acquire()
try:
    with prompt_interrupt("stopped: go on later"):
        try:
            print("ready", flush=True)
            BODY
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
    assert interrupted(started(clean_up)) == (130, "stopped: go on later")


def test_ctrl_c_ends_a_process_that_is_in_a_call_which_never_returns() -> None:
    never = "m = ctypes.create_string_buffer(64); c = ctypes.CDLL(None).pthread_mutex_lock; c(m); c(m)"
    process = started("pass", body=never)
    assert interrupted(process) == (130, "stopped: go on later")


FILL = """os.set_blocking(2, False)
            try:
                while True: os.write(2, b"x" * 65536)
            except BlockingIOError:
                os.set_blocking(2, True)
            stuck.acquire()"""


@pytest.mark.parametrize("clean_up", ["stuck.acquire()", FILL], ids=["closed", "full"])
def test_ctrl_c_ends_a_process_whose_stderr_nobody_reads(clean_up: str) -> None:
    process = started(clean_up)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    if clean_up != FILL:
        process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=200) == 130  # it would wait for ever
    process.stderr.close()


SLOW_TO_CLEAN = """print('cleaning', flush=True)
            try:
                stuck.acquire()
            finally:
                time.sleep(0.1)  # the other thread has begun to say it"""
SLOW_TO_SAY = """import shardkit.interrupt as interrupt
            say = interrupt._say
            interrupt._say = lambda message: (say(message), time.sleep(0.5))  # in which the main thread could too
            interrupt.GRACE_SECONDS, interrupt._MESSAGE_SECONDS = 600, 20
            time.sleep(60)"""


def test_the_second_ctrl_c_ends_the_process_at_once() -> None:
    process = started(SLOW_TO_CLEAN, body=SLOW_TO_SAY)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 130
    assert stderr.strip() == "stopped: go on later"


def test_nothing_is_left_of_a_block_that_was_not_interrupted() -> None:
    before, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with prompt_interrupt("unused"):
        assert threading.active_count() == before + 1
    deadline = time.monotonic() + 5
    while threading.active_count() > before or len(os.listdir("/proc/self/fd")) > descriptors:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert signal.set_wakeup_fd(-1) == -1


def test_an_ignored_ctrl_c_stays_ignored_and_other_threads_are_left_alone() -> None:
    ignoring = "signal.signal(signal.SIGINT, signal.SIG_IGN); print('ignoring', flush=True); time.sleep(2)"
    process = started("pass", body=ignoring)
    assert process.stdout is not None
    assert process.stdout.readline() == "ignoring\n"
    assert interrupted(process) == (0, "")
    threads = []

    def in_a_thread() -> None:
        with prompt_interrupt("unused"):
            threads.append(threading.active_count())

    thread = threading.Thread(target=in_a_thread)
    before = threading.active_count()
    thread.start()
    thread.join()
    assert threads == [before + 1]


def started(clean_up: str, *, body: str = "time.sleep(60)") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD.replace("CLEAN_UP", clean_up).replace("BODY", body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr of a process after Ctrl-C: it ends of its own accord, where it would wait for ever."""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=200)
    return process.returncode, stderr.strip()


def test_ctrl_c_in_the_interpreters_own_end_is_no_traceback_of_the_http_client() -> None:
    code = (
        "import atexit, os, signal, sys\n"
        "def close(): os.kill(os.getpid(), signal.SIGINT); [None for _ in range(10**6)]\n"
        "atexit.register(close)  # as the HTTP client closes its connections\n"
        "from shardkit.cli.commands import run\n"
        "sys.argv = ['shardkit', '--version']\nrun()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("shardkit, version")
    assert done.returncode == -signal.SIGINT  # a shell calls it 130
