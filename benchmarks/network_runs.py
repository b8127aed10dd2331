"""What `bench_network` measures with: the test server as a process, and one run of each way, each a process of its own.

A download is timed from the first byte that it asks for (as the server's log has it) to its end. `tokenize` is timed
from when it asks for its first chunk, from a disk or over the network: the source is open then, and the workers still
load the vocabulary, in either case. Memory is the resident memory of the whole process tree, disk all that it has in
its temporary folders, files without a name too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
SERVER = ROOT / "tests" / "support" / "hub_server.py"
KINDS = {"resolve": "/resolve/", "api": "^/api/", "content": "^/(_cdn|_files|_xorb)/", "cas": "^/_cas/"}
DOWNLOAD = """
import sys, time
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], repo_type="dataset", local_dir=sys.argv[2], max_workers=8)
print(time.time())
"""
UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1], repo_type="dataset")
api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2], repo_type="dataset")
"""
FIRST_BATCH = """
import sys, time
from shardkit import ShardLoader
loader = ShardLoader(sys.argv[1], batch_size=4, seq_len=256, split="train", cache=sys.argv[2])
loader.next_batch()
print(time.time(), flush=True)
loader.close()
"""


class Server:
    """The test Hub in a process of its own, with its state in `root`. A context manager.

    `apart` gives it a core of its own (Linux): this process and what it starts keep to the others meanwhile.
    """

    def __init__(self, root: Path, *, apart: bool = False) -> None:
        # so that small files are served as large ones are
        command = [sys.executable, str(SERVER), "--port", "0", "--root", str(root), "--lfs-threshold", "100000"]
        self._cores = os.sched_getaffinity(0) if apart else set()
        if apart:
            os.sched_setaffinity(0, {min(self._cores)})  # the server inherits it
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if apart:
            os.sched_setaffinity(0, self._cores - {min(self._cores)})
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        if not self.endpoint:
            raise SystemExit("the test server did not start")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        if self._cores:
            os.sched_setaffinity(0, self._cores)

    def control(self, method: str, name: str, value: Any = None) -> Any:
        """See tests/support/hub_control.py."""
        body = json.dumps(value).encode() if method == "PUT" else None
        request = urllib.request.Request(f"{self.endpoint}/_control/{name}", body, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Processor time that the server has taken."""
        return float(sum(psutil.Process(self.pid).cpu_times()[:2]))

    def environment(self, home: Path, *, xet: bool = False) -> dict[str, str]:
        """The environment of a client of this Hub, with its temporary files and caches in `home`."""
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        shown = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
        return {
            **shown,
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": "hf_write",
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TMPDIR": str(home / "tmp"),
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1,localhost",
        }


class Watch(threading.Thread):
    """The most memory and temporary disk of a process tree, looked at five times a second. Memory that processes share
    counts once (`pss`)."""

    def __init__(self, pid: int, home: Path) -> None:
        super().__init__(daemon=True)
        self._pid, self._home = pid, home
        self.memory = self.disk = 0

    def run(self) -> None:
        with suppress(psutil.Error):
            root = psutil.Process(self._pid)
            while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
                tree = [root, *root.children(recursive=True)]
                memory, files = 0, self._named()
                for process in tree:
                    with suppress(psutil.Error):
                        memory += process.memory_full_info().pss
                    files.update(self._open_without_name(process.pid))
                self.memory, self.disk = max(self.memory, memory), max(self.disk, sum(files.values()))
                time.sleep(0.2)

    def _named(self) -> dict[int, int]:
        """Bytes on disk of the files below `home`, by inode."""
        found = {}
        for folder, _, names in os.walk(self._home):
            for name in names:
                with suppress(OSError):
                    state = os.lstat(os.path.join(folder, name))
                    found[state.st_ino] = 512 * state.st_blocks
        return found

    def _open_without_name(self, pid: int) -> dict[int, int]:
        """The same of those that the process has open and that have no name any more (Linux)."""
        found = {}
        with suppress(OSError):
            for link in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(link.path).startswith(str(self._home)):
                        state = os.stat(link.path)
                        found[state.st_ino] = 512 * state.st_blocks
        return found


def run(server: Server, command: list[str], home: Path, *, xet: bool = False) -> dict[str, Any]:
    """Run a command to its end: its output, memory, temporary disk, the server's log and processor time."""
    environment = server.environment(home, xet=xet)
    server.control("DELETE", "log")
    busy, began = server.cpu_seconds(), time.time()
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watch = Watch(process.pid, home)
    watch.start()
    stdout, stderr = process.communicate()
    watch.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}:\n{stderr}")
    return {
        "stdout": stdout,
        "wall": time.time() - began,
        "memory": watch.memory,
        "disk": watch.disk,
        "log": server.control("GET", "log"),
        "server_cpu": server.cpu_seconds() - busy,
    }


def traffic(log: list[dict[str, Any]]) -> dict[str, Any]:
    """What the server's log says of a run: requests by kind, bytes, the first moment and the most downloads at once."""
    content = [line for line in log if re.search(KINDS["content"], line["target"]) or _is_served_at_once(line)]
    if not content:
        raise SystemExit("nothing was asked for: the run did not read from the server")
    now = time.time()
    edges = sorted(edge for line in content for edge in ((line["began"], 1), (line["ended"] or now, -1)))
    at_once = most = 0
    for _, change in edges:
        at_once += change
        most = max(most, at_once)
    return {
        "first": min(line["began"] for line in content),
        "bytes": sum(line["bytes_out"] for line in content),
        "requests": {kind: sum(bool(re.search(rule, r["target"])) for r in log) for kind, rule in KINDS.items()},
        "connections": most,
    }


def _is_served_at_once(line: dict[str, Any]) -> bool:
    """Whether `resolve` itself sent the file, as the Hub does with small ones of text."""
    resolves = line["method"] == "GET" and "/resolve/" in line["target"]
    return resolves and line["status"] in (200, 206)


def download(server: Server, repo: str, home: Path, *, xet: bool = False) -> dict[str, Any]:
    """`snapshot_download` with 8 workers into an empty folder."""
    with fresh(home):
        done = run(server, [sys.executable, "-c", DOWNLOAD, repo, str(home / "out")], home, xet=xet)
        seen = traffic(done["log"])
        return {**done, **seen, "seconds": float(done["stdout"].split()[-1]) - seen["first"]}


def tokenize(
    server: Server, source: str, out: Path, home: Path, options: list[str], *, xet: bool = False
) -> dict[str, Any]:
    """`shardkit tokenize` of a local folder or from the server; its dataset stays in `out`."""
    shutil.rmtree(out, ignore_errors=True)
    with fresh(home):
        command = [sys.executable, "-m", "shardkit", "tokenize", source, "--out", str(out), "--prefix", "bench"]
        done = run(server, [*command, "--val-shards", "0", "--json", *options], home, xet=xet)
    summary = json.loads((out / ".shardkit" / "summary.json").read_text())
    seen = {} if Path(source).is_dir() else traffic(done["log"])
    return {**done, **seen, **summary, "seconds": summary["finished"] - summary["started"]}


def both(server: Server, repo: str, source: str, out: Path, home: Path, options: list[str]) -> dict[str, Any]:
    """`tokenize` of a local folder while the plain client downloads the same files: what this machine, with the server
    on it, can do of both. From the first chunk to the end of the later one."""
    other = home.with_name("beside")
    with fresh(other):
        command = [sys.executable, "-c", DOWNLOAD, repo, str(other / "out")]
        process = subprocess.Popen(
            command,
            env=server.environment(other),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        done = tokenize(server, source, out, home, options)
        ended = float(process.communicate()[0].split()[-1])
    return {"seconds": max(ended, done["finished"]) - done["started"]}


def first_batch(server: Server, repo: str, home: Path) -> dict[str, Any]:
    """The first batch of a loader that streams, from the first byte of a shard on."""
    with fresh(home):
        done = run(server, [sys.executable, "-c", FIRST_BATCH, repo, str(home / "cache")], home)
        shards = [line for line in done["log"] if line["target"].partition("?")[0].endswith(".npy")]
        seen = traffic([line for line in shards if "/_cdn/" in line["target"]])
        return {**seen, "seconds": float(done["stdout"].split()[-1]) - seen["first"], "wall": done["wall"]}


def upload(server: Server, repo: str, folder: Path, home: Path, *, xet: bool = False) -> None:
    """A dataset repo with the files of `folder`; with `xet`, sent by the real client."""
    if not xet:
        server.control("PUT", "seed", {"repo": repo, "folder": str(folder)})
        return
    server.control("PUT", "link", {})
    with fresh(home):
        run(server, [sys.executable, "-c", UPLOAD, repo, str(folder)], home, xet=True)


@contextmanager
def fresh(folder: Path) -> Iterator[None]:
    """A block at whose begin and end the folder does not exist."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
