"""`tokenize --push`: through a small disk, killed anywhere, moved to an empty machine: the remote ends the same."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import reference
from attacks import times
from reference import folder_bytes
from texts import documents, write_parquet

import shardkit
from shardkit import Manifest, pull, push
from shardkit.dataset.journal import JOURNAL_FILE, Journal, Resume
from shardkit.dataset.journal_segments import SEGMENT_LINES, segment_files
from shardkit.dataset.manifest import ShardInfo
from shardkit.errors import DiskFull, HubError, OutputError, UsageError
from shardkit.remote.address import open_remote
from shardkit.remote.interface import CLAIM_FILE
from shardkit.remote.storage import FsspecRemote
from shardkit.sources.open import open_source
from shardkit.tokenization import pushed_run
from shardkit.tokenization.live_push import LivePush, adopt_journal
from shardkit.tokenization.output_folder import OwnFolder
from shardkit.tokenization.pushed_run import RemoteRun, fetch_journal
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.tokenizer import Tokenizer

REPO = "alice/tokens"
SHARD_TOKENS = 34_000
SHARD_BYTES = 2 * SHARD_TOKENS + 128
LARGE = 5 * SHARD_TOKENS  # a shard of which there are few
DISK = 9 * SHARD_BYTES
TOO_LITTLE = SHARD_BYTES * 3 // 2

tokenize = partial(shardkit.tokenize, tokenizer="bytes")  # which starts in no time
shard_bytes = partial(reference.shard_bytes, tokenizer="bytes")


@pytest.fixture(scope="module")
def texts() -> list[str | None]:
    return documents(500)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str | None]) -> Path:
    return write_parquet(tmp_path_factory.mktemp("delivery") / "a.parquet", texts, rows=10)


def remote_shards(hub: Any, repo: str = REPO) -> dict[str, bytes]:
    return {name: hub.file_bytes(repo, name) for name in hub.files(repo) if name.endswith(".npy")}


def test_shards_go_up_as_they_are_made_and_leave_the_disk(
    hub: Any, corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    manifest = tokenize(
        corpus, tmp_path / "out", shard_tokens=SHARD_TOKENS, prefix="p", push=REPO, max_disk=DISK, chunk_bytes=1 << 14
    )
    assert remote_shards(hub) == shard_bytes(texts, SHARD_TOKENS, "p")
    assert not list((tmp_path / "out").glob("*.npy"))
    assert not (tmp_path / "out" / "manifest.json").exists()  # no shards here: nothing that looks finished
    assert pull(REPO, tmp_path / "pulled") == manifest
    assert not any(name.startswith(".shardkit") for name in hub.files(REPO))


def test_without_a_disk_bound_the_shards_stay_here_too(hub: Any, corpus: Path, tmp_path: Path) -> None:
    manifest = tokenize(corpus, tmp_path / "out", shard_tokens=LARGE, prefix="p", push=REPO)
    assert Manifest.load(tmp_path / "out") == manifest
    assert set(remote_shards(hub)) == {shard.file for shard in manifest.shards}


def test_a_finished_run_called_again_anywhere_sends_nothing(hub: Any, corpus: Path, tmp_path: Path) -> None:
    first = tokenize(corpus, tmp_path / "a", shard_tokens=LARGE, prefix="p", push=REPO, max_disk=10**6)
    hub.reset_log()
    assert tokenize(corpus, tmp_path / "a", shard_tokens=LARGE, prefix="p", push=REPO, max_disk=10**6) == first
    assert tokenize(corpus, tmp_path / "b", shard_tokens=LARGE, prefix="p", push=REPO, max_disk=10**6) == first
    assert hub.count("PUT", "_lfs") == 0
    with pytest.raises(HubError, match="holds another finished dataset"):
        tokenize(corpus, tmp_path / "c", shard_tokens=LARGE - 1, prefix="p", push=REPO, max_disk=10**6)


def test_a_repo_that_holds_another_unfinished_run_is_refused(hub: Any, corpus: Path, tmp_path: Path) -> None:
    hub.fault("status", "PUT", "_lfs", nth=4, times=None, code=400)
    with pytest.raises(HubError):
        tokenize(corpus, tmp_path / "a", shard_tokens=SHARD_TOKENS, prefix="p", push=REPO, max_disk=DISK)
    hub.faults.clear()
    with pytest.raises(Exception, match="another run"):
        tokenize(corpus, tmp_path / "b", shard_tokens=SHARD_TOKENS + 1, prefix="p", push=REPO, max_disk=DISK)


def test_a_bound_too_small_for_two_shards_says_so(hub: Any, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DiskFull, match=r"no room for two shards of 68\.1 kB and the run's journal: give 144448 bytes or"
    ):
        tokenize(corpus, tmp_path / "a", shard_tokens=SHARD_TOKENS, prefix="p", push=REPO, max_disk=TOO_LITTLE)
    with pytest.raises(UsageError, match="give push=REPO too"):
        tokenize(corpus, tmp_path / "a", shard_tokens=SHARD_TOKENS, max_disk=TOO_LITTLE)


def start(corpus: Path, out: Path, endpoint: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": "hf_write",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [
        sys.executable,
        "-m",
        "shardkit",
        "tokenize",
        str(corpus),
        "--out",
        str(out),
        "--prefix",
        "p",
        "--shard-tokens",
        str(SHARD_TOKENS),
        "--push",
        REPO,
        "--max-disk",
        str(DISK),
        "--workers",
        "1",
        "--tokenizer",
        "bytes",
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def bytes_on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # it has just been deleted
    return total


def arrived(hub: Any) -> int:
    """Shards in the remote's commits; none while the repo has not been made."""
    try:
        return len(remote_shards(hub))
    except KeyError:
        return 0


@pytest.mark.parametrize("seed", range(times(1, 8)))
def test_killed_anywhere_and_moved_to_an_empty_machine_the_remote_ends_the_same_within_the_bound(
    hub: Any, corpus: Path, texts: list[str | None], tmp_path: Path, seed: int
) -> None:
    moments = random.Random(seed)
    hub.fault("slow", "PUT", "_lfs", seconds=0.05, times=None)  # the remote is slower than the tokenizer
    most = 0
    for machine in range(4):
        out = tmp_path / str(machine)
        enough = arrived(hub) + moments.randint(0, 4) if machine < 3 else 10**9
        process = start(corpus, out, hub.endpoint)
        while process.poll() is None and arrived(hub) < enough:
            most = max(most, bytes_on_disk(out))
            time.sleep(0.005)
        if machine < 3:
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
        _, stderr = process.communicate()
        assert "Traceback" not in stderr, stderr
    assert process.returncode == 0, stderr
    assert most <= DISK
    assert remote_shards(hub) == shard_bytes(texts, SHARD_TOKENS, "p")
    assert pull(REPO, tmp_path / "pulled").documents == len(texts)


def test_a_local_run_may_be_pushed_when_it_goes_on(
    hub: Any, corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, progress=_stop_after(5))
    made = len(list(out.glob("*.npy")))
    assert made > 0
    hub.fault("status", "PUT", "_lfs", nth=2, times=None, code=400)  # the first shard arrives, the second does not
    with pytest.raises(HubError):
        tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, push=REPO)
    journal = hub.file_bytes(REPO, ".shardkit/journal.jsonl").decode()
    assert all(name in hub.files(REPO) for name in shard_bytes(texts, SHARD_TOKENS, "p") if name in journal)
    hub.faults.clear()
    tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, push=REPO)
    assert remote_shards(hub) == shard_bytes(texts, SHARD_TOKENS, "p")


def push_to(far: Path, corpus: Path, out: Path, **options: Any) -> Manifest:
    return tokenize(
        corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, workers=1, push=str(far), **options
    )


def stopped_run(far: Path, corpus: Path, out: Path, *, arrived: int) -> None:
    """A `tokenize --push` that ends early, after `arrived` shards or more are in the journal of the folder `far`."""

    def progress(now: Any) -> None:
        journal = far / ".shardkit" / "journal.jsonl"
        while now.shards > arrived:
            if journal.read_bytes().count(b"\n") > arrived:
                raise KeyboardInterrupt
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        push_to(far, corpus, out, progress=progress)


def test_a_run_that_goes_on_in_an_empty_folder_ends_with_every_shard_in_it(
    corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    far, out = tmp_path / "far", tmp_path / "b"
    stopped_run(far, corpus, tmp_path / "a", arrived=3)
    manifest = push_to(far, corpus, out)
    assert folder_bytes(out) == folder_bytes(far) == shard_bytes(texts, SHARD_TOKENS, "p")
    assert Manifest.load(out) == manifest == Manifest.load(far)
    assert not list(far.glob(".shardkit/journal*"))
    assert tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, workers=1) == manifest


def test_a_folder_gets_what_it_lacks_from_a_remote_that_is_complete(
    corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    far, out = tmp_path / "far", tmp_path / "b"
    manifest = push_to(far, corpus, tmp_path / "a")
    expected = shard_bytes(texts, SHARD_TOKENS, "p")
    assert push_to(far, corpus, out) == manifest  # a folder that was empty
    assert folder_bytes(out) == expected
    lost, damaged = sorted(expected)[:2]
    (out / lost).unlink()  # now its manifest is false
    (out / damaged).write_bytes(expected[damaged][:-1] + b"\xff")
    with pytest.raises(OutputError, match=r"is missing.*push="):
        tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, workers=1)
    assert push_to(far, corpus, out) == manifest
    assert folder_bytes(out) == expected


def test_a_disk_bound_takes_the_manifest_away_with_the_shards(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"shard_tokens": SHARD_TOKENS, "prefix": "p", "chunk_bytes": 1 << 14, "workers": 1}
    tokenize(corpus, out, **options)  # type: ignore[arg-type]
    push_to(tmp_path / "far", corpus, out, max_disk=DISK)
    assert not list(out.glob("*.npy"))
    assert not (out / "manifest.json").exists()


def test_the_output_folder_is_no_place_to_push_to(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the output folder itself"):
        push_to(tmp_path / "out", corpus, tmp_path / "out")


def test_the_remote_is_opened_and_listed_once_and_once_more_when_all_has_arrived(
    hub: Any, corpus: Path, tmp_path: Path
) -> None:
    tokenize(corpus, tmp_path / "out", shard_tokens=LARGE, prefix="p", push=REPO, workers=1)
    assert hub.count("GET", "/tree/") == 2
    assert hub.count("POST", "/api/repos/create") == 1


@cache
def small_spec() -> RunSpec:
    return RunSpec(
        source=open_source("sample"),
        tokenizer=Tokenizer("bytes"),
        prefix="p",
        tokens_per_shard=100,
        val_shards=0,
        max_docs=None,
        max_tokens=None,
        transform=None,
        filter=None,
        chunk_bytes=1000,
    )


def made_shard(out: Path, journal: Journal, index: int) -> ShardInfo:
    """A file in `out` that stands for shard `index` of the run of `small_spec`, noted in the journal."""
    content, name = index.to_bytes(4, "big") * 10, small_spec().shard_file(index)
    (out / name).write_bytes(content)
    shard = ShardInfo(
        file=name,
        split="train",
        index=index,
        tokens=20,
        documents=1,
        first_document=index,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )
    journal.append(shard, Resume(file=0, start=index, documents=index))
    return shard


class CountingRemote(FsspecRemote):
    """A folder that knows how many bytes of journal it was given."""

    journal_bytes = 0

    def commit(self, shards: Any, small: Any, message: str) -> None:
        self.journal_bytes += sum(len(content or b"") for name, content in small.items() if "journal" in name)
        super().commit(shards, small, message)


def test_the_journal_that_travels_grows_with_the_shards_and_not_with_their_square(tmp_path: Path) -> None:
    spec = small_spec()
    out, far, count = tmp_path / "out", CountingRemote(str(tmp_path / "far")), 400
    journal = Journal.open(out, spec.identity())
    run = RemoteRun(remote=far, files={}, journal=None, manifest=None)
    with LivePush(spec, out, journal, run) as uploads:
        for index in range(count):
            uploads.submit(made_shard(out, journal, index))
        uploads.uploader.flush()
    whole = journal.path.read_bytes()
    assert fetch_journal(str(tmp_path / "far")).journal == whole
    assert far.journal_bytes < len(whole) * SEGMENT_LINES * 0.55  # the whole journal each time: 200 times its bytes


class HeldRemote(FsspecRemote):
    """A folder to which nothing comes before `arrive` is set."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.arrive, self.reached = threading.Event(), threading.Semaphore(0)

    def upload(self, path: Path, shard: ShardInfo) -> str:
        self.reached.release()
        self.arrive.wait()
        return super().upload(path, shard)


def test_a_shard_that_waits_to_be_sent_costs_no_copy_of_the_journal_before_it(tmp_path: Path) -> None:
    spec = small_spec()
    out, far, count = tmp_path / "out", HeldRemote(str(tmp_path / "far")), 200
    journal = Journal.open(out, spec.identity())
    run = RemoteRun(remote=far, files={}, journal=None, manifest=None)
    with LivePush(spec, out, journal, run) as uploads:
        shards = [made_shard(out, journal, index) for index in range(count)]
        tracemalloc.start()
        for shard in shards:
            uploads.submit(shard)
        assert far.reached.acquire(timeout=200)  # both threads wait, and hash no shard
        assert far.reached.acquire(timeout=200)
        waiting = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        far.arrive.set()
        uploads.uploader.flush()
    assert waiting < 6000 * count  # 24 kB for each, where each had the journal's segment up to it
    assert fetch_journal(str(tmp_path / "far")).journal == journal.path.read_bytes()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_whose_shards_arrived_and_whose_journal_did_not_leaves_no_hole(tmp_path: Path, elsewhere: bool) -> None:
    spec = small_spec()
    out, far = tmp_path / "out", str(tmp_path / "far")
    journal = Journal.open(out, spec.identity())
    with LivePush(spec, out, journal, fetch_journal(far)) as uploads:
        for index in range(200):
            uploads.submit(made_shard(out, journal, index))
        uploads.uploader.flush()
    for name in segment_files(fetch_journal(far).files)[1:]:  # killed between the ledger and the journal
        (tmp_path / "far" / name).unlink()
    head = (tmp_path / "far" / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "far" / JOURNAL_FILE).write_bytes(b"".join(head[:100]))
    run = fetch_journal(far)
    if elsewhere:
        out = tmp_path / "another machine"
        adopt_journal(out, run, spec.identity())
        journal = Journal.open(out, spec.identity())
    with LivePush(spec, out, journal, run) as uploads:
        for index in range(len(journal.shards), 201):
            uploads.submit(made_shard(out, journal, index))
        uploads.uploader.flush()
    assert fetch_journal(far).journal == journal.path.read_bytes()


@pytest.mark.parametrize(
    ("other", "error"), [({"shard_tokens": LARGE + 1}, HubError), ({"max_disk": TOO_LITTLE}, DiskFull)]
)
def test_overwrite_removes_nothing_here_where_the_place_to_push_to_refuses(
    corpus: Path, tmp_path: Path, other: dict[str, Any], error: type[Exception]
) -> None:
    options = {"shard_tokens": LARGE, "prefix": "p", "workers": 1}
    tokenize(corpus, tmp_path / "out", **options)
    tokenize(corpus, tmp_path / "there", push=str(tmp_path / "far"), **options)
    before = folder_bytes(tmp_path / "out")
    place = str(tmp_path / ("far" if "shard_tokens" in other else "new"))
    with pytest.raises(error):
        tokenize(corpus, tmp_path / "out", push=place, overwrite=True, **{**options, **other})
    assert folder_bytes(tmp_path / "out") == before
    assert Manifest.load(tmp_path / "out").shards


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_run_that_was_killed_when_its_manifest_had_come_leaves_no_claim_once_it_is_called_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    far, options = tmp_path / "far", {"shard_tokens": LARGE, "prefix": "p", "workers": 1}
    deleted: list[str] = []

    def stop(self: FsspecRemote, file: str) -> None:
        if (far / "manifest.json").exists() and len(deleted) == kept:
            raise KeyboardInterrupt
        if (far / "manifest.json").exists():
            deleted.append(file)
        delete(self, file)

    delete = FsspecRemote._delete
    with monkeypatch.context() as patch:
        patch.setattr(FsspecRemote, "_delete", stop)
        with pytest.raises(KeyboardInterrupt):
            tokenize(corpus, tmp_path / "out", push=str(far), **options)
    manifest = tokenize(corpus, tmp_path / "out", push=str(far), **options)
    assert not (far / CLAIM_FILE).exists()
    assert not (far / JOURNAL_FILE).exists()
    assert push(tmp_path / "out", str(far)).sent_files == 0
    assert pull(str(far), tmp_path / "pulled") == manifest


@pytest.mark.parametrize("leaving_fails", [False, True])
def test_what_fails_while_a_place_is_left_does_not_hide_why_the_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaving_fails: bool
) -> None:
    """Neither a place that can no longer be opened, nor one that can and fails; and nothing waits for it any more."""

    def fail(*_: Any) -> None:
        raise HubError("the place does not answer") if leaving_fails else AssertionError("it was not opened")

    monkeypatch.setattr(pushed_run, "leave_place", fail)
    place = str(tmp_path / "far") if leaving_fails else "nowhere://far"
    run = RemoteRun(remote=open_remote(str(tmp_path / "far")), files={}, journal=None, manifest=None)
    folder = OwnFolder(tmp_path / "out")
    journal = Journal.open(tmp_path / "out", {"prefix": "p"})
    with pytest.raises(ValueError, match="why"), pushed_run.place_left_if_nothing_is_made(place, journal, run, folder):
        raise ValueError("why")
    assert folder.keep_journal  # by it the place can be left later


def test_leaving_a_place_is_no_longer_timed_once_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pushed_run, "leave_place", interrupt)
    far = str(tmp_path / "far")
    run = RemoteRun(remote=open_remote(far), files={}, journal=None, manifest=None)
    folder = OwnFolder(tmp_path / "out")
    journal = Journal.open(tmp_path / "out", {"prefix": "p"})
    with pytest.raises(KeyboardInterrupt), pushed_run.place_left_if_nothing_is_made(far, journal, run, folder):
        raise ValueError("why")
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)


def _stop_after(shards: int) -> Any:
    def progress(now: Any) -> None:
        if now.shards >= shards:
            raise KeyboardInterrupt

    return progress
