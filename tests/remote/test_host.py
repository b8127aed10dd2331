"""A library leaves its host as it found it: the process before, during and after a call, and Ctrl-C in a notebook."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_data import make_dataset, tree_of
from hub_server import HubServer

from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.remote.pull import pull
from shardkit.remote.push import push

REPO = "alice/demo"
ROOT = Path(__file__).parents[2]

HOST = """
import logging, os, signal, sys, threading, warnings
from huggingface_hub import get_session
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars, progress_bar_states
from shardkit.remote.pull import pull
from shardkit.remote.push import push

def state():
    session = get_session()
    return {
        "timeout": session.timeout, "hooks": {name: list(hooks) for name, hooks in session.event_hooks.items()},
        "bars": dict(progress_bar_states), "environment": dict(os.environ), "warnings": list(warnings.filters),
        "levels": {name: logging.getLogger(name).level for name in ("", "huggingface_hub", "fsspec", "shardkit")},
        "handlers": list(logging.getLogger().handlers), "disabled": logging.root.manager.disable,
        "threads": [t.name for t in threading.enumerate() if t.name.startswith("shardkit")],
        "signals": signal.getsignal(signal.SIGINT), "folder": os.getcwd(),
    }

if sys.argv[3] == "on":
    enable_progress_bars(); enable_progress_bars("huggingface_hub.mine")
elif sys.argv[3] == "off":
    disable_progress_bars()
before = state()
push(sys.argv[1], "alice/demo")
pull("alice/demo", sys.argv[2])
after = state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
print("as before")
"""


def environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """As a notebook has it: progress bars are not switched off by the environment."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_write", "HF_HOME": str(tmp_path / "hf")}
    return inherited | ours | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("bars", ["untouched", "on", "off"])
def test_a_process_is_the_same_after_a_push_and_a_pull(hub: HubServer, tmp_path: Path, bars: str) -> None:
    make_dataset(tmp_path / "a")
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(tmp_path / "a"), str(tmp_path / "b"), bars],
        env=environment(hub, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("as before\n", 0), done.stderr
    assert "%|" not in done.stderr  # no progress bar of the client


def test_while_a_push_runs_the_hosts_own_requests_keep_their_time_out(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import get_session

    make_dataset(tmp_path / "a")
    held = hub.fault("hold", "PUT", "/_lfs/")
    pushing = threading.Thread(target=push, args=(tmp_path / "a", REPO))
    pushing.start()
    try:
        assert held.reached.wait(60)
        answer = get_session().get(f"{hub.endpoint}/api/datasets/{REPO}", headers={"Authorization": "Bearer hf_write"})
        assert answer.request.extensions["timeout"] == dict.fromkeys(("connect", "read", "write", "pool"))
        assert get_session().timeout.read is None
    finally:
        held.gate.set()
        pushing.join()
    assert MANIFEST_NAME in hub.files(REPO)


# The system may hand a signal to any thread that does not block it: here to one that sleeps, so that it ends no wait of
# the main thread. A signal that comes just before such a wait begins ends it as little.
LIBRARY_CALL = """
import signal, threading, time
from shardkit import {name}
if __name__ == "__main__":
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    {name}({arguments})
"""


def interrupted(
    hub: HubServer, tmp_path: Path, name: str, arguments: str, held: tuple[str, str], *, xet: bool = False
) -> None:
    """Start a call, wait until the server holds its request for good, and press Ctrl-C: the process must end."""
    script = tmp_path / "call.py"
    script.write_text(LIBRARY_CALL.format(name=name, arguments=arguments))
    fault = hub.fault("hold", *held)
    variables = environment(hub, tmp_path)
    if xet:
        variables.pop("HF_HUB_DISABLE_XET", None)
    process = subprocess.Popen([sys.executable, str(script)], env=variables, stderr=subprocess.PIPE, text=True)
    try:
        assert fault.reached.wait(60)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=200)  # the request is held for good
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGINT, stderr
    assert "\nKeyboardInterrupt\n" in stderr  # an abandoned thread may have logged something after it
    fault.gate.set()
    hub.faults.remove(fault)


@pytest.mark.parametrize(("way", "held"), [("lfs", ("PUT", "/_lfs/")), ("xet", ("POST", "/_cas/v1/xorbs/"))])
def test_ctrl_c_in_a_push_does_not_wait_for_the_upload(
    hub: HubServer, tmp_path: Path, way: str, held: tuple[str, str]
) -> None:
    make_dataset(tmp_path / "a", tokens=100_000)
    interrupted(hub, tmp_path, "push", f"{str(tmp_path / 'a')!r}, {REPO!r}", held, xet=way == "xet")
    assert MANIFEST_NAME not in hub.files(REPO)
    push(tmp_path / "a", REPO)
    assert hub.file_bytes(REPO, MANIFEST_NAME) == (tmp_path / "a" / MANIFEST_NAME).read_bytes()


@pytest.mark.parametrize(("way", "held"), [("lfs", ("GET", "/_cdn/")), ("xet", ("GET", "/_xorb/"))])
def test_ctrl_c_in_a_pull_does_not_wait_for_the_download(
    hub: HubServer, tmp_path: Path, way: str, held: tuple[str, str]
) -> None:
    make_dataset(tmp_path / "a", tokens=100_000)
    variables = environment(hub, tmp_path)
    if way == "xet":
        variables.pop("HF_HUB_DISABLE_XET", None)
    command = [sys.executable, "-m", "shardkit", "push", str(tmp_path / "a"), REPO]
    assert subprocess.run(command, env=variables, check=False, capture_output=True).returncode == 0
    interrupted(hub, tmp_path, "pull", f"{REPO!r}, {str(tmp_path / 'b')!r}", held, xet=way == "xet")
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_ctrl_c_in_a_tokenize_with_push_does_not_wait_for_the_upload(hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = f'"sample", {str(out)!r}, shard_tokens=100_000, push={REPO!r}, workers=1'
    interrupted(hub, tmp_path, "tokenize", arguments, ("PUT", "/_lfs/"))
    assert MANIFEST_NAME not in hub.files(REPO)
