"""What must be set before anything imports `huggingface_hub`, which reads these variables once, at its import.

Xet off: a local Hub speaks LFS only. A fresh `HF_HOME` and no `HF_TOKEN`: the developer's cache and token stay out.
tiktoken's cache is a fresh folder as well, filled from the `offline` packages, and so is shardkit's: nothing is written
to the machine.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile

# Started in the background a process ignores Ctrl-C, under nohup a hangup, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

HF_HOME = tempfile.mkdtemp(prefix="shardkit-tests-hf-")
VOCABULARIES = tempfile.mkdtemp(prefix="shardkit-tests-tiktoken-")
CACHE = tempfile.mkdtemp(prefix="shardkit-tests-cache-")
for folder in (HF_HOME, VOCABULARIES, CACHE):
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
for name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
):
    os.environ.pop(name, None)
os.environ |= {
    "HF_HOME": HF_HOME,
    "TIKTOKEN_CACHE_DIR": VOCABULARIES,
    "SHARDKIT_CACHE": CACHE,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import math  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from shardkit import bars  # noqa: E402

# No test depends on a clock: how long an example takes is the machine's business.
hypothesis.settings.register_profile("no clock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("no clock")
bars._FIRST_LINE_SECONDS = math.inf  # nor does what a slow machine says after two seconds


def pytest_configure(config: pytest.Config) -> None:
    """The client's own way to send a file (`data=`) is one that its HTTP library calls deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="session", autouse=True)
def _forked_workers() -> Iterator[None]:
    """Workers that this process starts are forked from one that has imported what they need, but for those of tests
    that ask for `fresh_workers`, and of commands in processes of their own."""
    from forked_workers import forked_workers

    with forked_workers():
        yield


@pytest.fixture
def fresh_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started as users' are."""
    from shardkit.tokenization import spawning

    monkeypatch.setattr(spawning, "subprocess", subprocess)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local Hub that this process's client talks to, logged in as alice, with waits cut to milliseconds."""
    import huggingface_hub.file_download
    import huggingface_hub.utils._http as hf_http
    from hub_server import HubServer, point_client

    from shardkit import network, rate_limits

    class Hasty:
        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds / 1000)

    for module in (hf_http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", Hasty())
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(rate_limits, "SPREAD_SECONDS", 0.01)
    monkeypatch.setattr(rate_limits.LIMITS, "_held", {})
    with HubServer() as server:
        point_client(monkeypatch, server.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield server
        assert server.errors == []
        assert server.leaked_tokens == []


@pytest.fixture
def served(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The local Hub, for the processes that the test starts too."""
    from cache_data import environment

    for name, value in environment(hub.endpoint).items():
        monkeypatch.setenv(name, value)
    return hub


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False)
    if made.returncode:
        pytest.skip("only root makes a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
