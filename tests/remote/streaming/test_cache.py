"""The streaming cache from the reader's side: the same bytes, each once, within the bound, and every cause by name."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_data import (
    REPO,
    SMALL_BYTES,
    alive,
    bytes_on_disk,
    environment,
    kill_downloader,
    opened,
    readers_of,
    serve,
    start_reader,
    status_of,
    until,
)
from hub_data import make_dataset, open_uploader
from hub_server import HubServer

from shardkit.dataset.journal import JOURNAL_FILE, Journal, Resume
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import AuthError, DiskFull, HubError, OutputError, ShardkitWarning, UsageError
from shardkit.locks import is_locked
from shardkit.remote.push import publish, push
from shardkit.remote.streaming.cache import ShardCache
from shardkit.remote.streaming.folder import CacheFolder, default_folder, full_name, small_bytes

CDN = "/_cdn/"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def read_all(cache: ShardCache, ahead: int = 3) -> dict[str, bytes]:
    files, found = [shard.file for shard in cache.manifest.shards], {}
    for at, file in enumerate(files):
        cache.want(files[at : at + ahead])
        cache.wait(file)
        found[file] = (cache.directory / file).read_bytes()
    return found


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_shards_come_byte_identical_and_the_manifest_with_them(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "a")
    cache = opened(tmp_path / "b")
    assert cache.manifest == manifest
    assert cache.manifest.directory == cache.directory == tmp_path / "b"
    assert not cache.unfinished
    assert cache.revision == served.commits(REPO)[0].oid
    assert read_all(cache) == shards_of(tmp_path / "a")
    cache.close()
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()  # nothing that looks like a whole dataset


def test_a_folder_is_a_source_too(offline: None, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    for number, source in enumerate((f"file://{tmp_path}/a", f"{tmp_path}/a")):
        cache = opened(tmp_path / f"b{number}", source)
        assert read_all(cache) == shards_of(tmp_path / "a")
        assert cache.revision == ""
        cache.close()


def test_a_bucket_is_a_source_too_and_wrong_bytes_from_it_are_fetched_again(served: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", "hf://buckets/alice/tokens/demo")
    fault = served.fault("corrupt", "GET", r"/_bucket/.*\.npy")
    cache = opened(tmp_path / "b", "hf://buckets/alice/tokens/demo")
    assert read_all(cache) == shards_of(tmp_path / "a")
    assert fault.fired == 1
    assert cache.revision == ""
    cache.close()
    with pytest.raises(UsageError, match="has no revisions"):
        ShardCache.open(
            "hf://buckets/alice/tokens/demo", split="train", folder=tmp_path / "c", cache_bytes=None, revision="v1"
        )


def test_two_processes_share_one_downloader_and_each_byte_comes_once(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "a", shards=8)
    files = [shard.file for shard in manifest.shards]
    readers = [start_reader(tmp_path / "b", files[n:] + files[:n]) for n in (0, 2)]
    said = [reader.communicate() for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], said
    assert set(said[0][0].splitlines()) == set(said[1][0].splitlines())
    assert served.bytes_sent(CDN) == sum(shard.bytes for shard in manifest.shards)
    assert served.count("GET", "/api/datasets/alice/demo/tree") == 1


def test_the_folder_never_holds_more_than_its_bound(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "a", shards=14, tokens=30_000)
    bound = SMALL_BYTES + 4 * manifest.shards[0].bytes
    assert small_bytes(manifest) < SMALL_BYTES
    served.fault("slow", "GET", CDN, seconds=0.02, times=None)
    files = [shard.file for shard in manifest.shards]
    readers = [start_reader(tmp_path / "b", files, bound=bound, ahead=3, pause=0.02) for _ in range(2)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        most = max(most, bytes_on_disk(tmp_path / "b"))
        time.sleep(0.002)
    said = [reader.communicate() for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], said
    assert most <= bound
    assert most > 3 * manifest.shards[0].bytes
    assert len(said[0][0].splitlines()) == len(files)


def test_what_is_wanted_and_was_waited_for_stays_though_another_reader_needs_room(
    served: HubServer, tmp_path: Path
) -> None:
    manifest = serve(served, tmp_path / "a", shards=10)
    files = [shard.file for shard in manifest.shards]
    mine = opened(tmp_path / "b", cache_bytes=SMALL_BYTES + 4 * manifest.shards[0].bytes)
    mine.want(files[:2])
    for file in files[:2]:
        mine.wait(file)
    other = start_reader(tmp_path / "b", files[2:], bound=10**9, ahead=2)
    said = other.communicate()
    assert other.returncode == 0, said
    assert all((tmp_path / "b" / file).exists() for file in files[:2])
    mine.close()


def test_a_want_that_cannot_fit_the_bound_names_the_numbers(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "a")
    files = [shard.file for shard in manifest.shards]
    cache = opened(tmp_path / "b", cache_bytes=SMALL_BYTES + 2 * manifest.shards[0].bytes)
    assert cache.room_bytes is not None
    with pytest.raises(UsageError, match=r"cache_bytes is 110\.3 kB, 6 shards at once and the small files take 12"):
        cache.want(files)
    with pytest.raises(UsageError, match="has no shard nothing"):
        cache.want(["nothing"])
    with pytest.raises(UsageError, match="was not wanted"):
        cache.wait(files[0])
    free = opened(tmp_path / "b")  # it has no bound of its own: the folder's holds for it
    free.want(files[:4])
    with pytest.raises(DiskFull, match=r"cache_bytes is 110\.3 kB, one reader needs 4 shards at once, 1"):
        free.wait(files[3])
    free.wait(files[0])
    free.close()
    cache.close()


def test_copies_in_other_processes_are_readers_of_their_own(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "a")
    cache = opened(tmp_path / "b")
    assert pickle.loads(pickle.dumps(cache)).manifest == cache.manifest
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(_wait_for_two, [cache, cache]) == [2, 2]
    while readers_of(tmp_path / "b") != 1:  # the pool's processes were killed: the downloader takes their leases away
        time.sleep(0.05)
    cache.close()


def _wait_for_two(cache: ShardCache) -> int:
    files = [shard.file for shard in cache.manifest.shards[:2]]
    cache.want(files)
    for file in files:
        cache.wait(file)
    assert readers_of(cache.directory) >= 2
    return sum((cache.directory / file).exists() for file in files)


def test_a_dropped_cache_is_a_closed_one(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "a")
    cache = opened(tmp_path / "b")
    pid = status_of(tmp_path / "b").pid
    del cache
    until(lambda: not alive(pid))


def test_a_remote_that_is_still_written_is_read_as_far_as_it_goes(served: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=5)
    identity = {"source": "corpus", "config": None, "split": None, "revision": None, "text field": "text"}
    journal = Journal.open(tmp_path / "j", identity)
    with open_uploader(REPO, journal.path.read_bytes()) as outbox:
        for shard in manifest.shards[:3]:
            journal.append(shard, Resume())
            outbox.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: journal.path.read_bytes()}.copy)
        outbox.flush()
    said = "is still being written: this run has its first 3 shards, 9,000 tokens"
    with pytest.warns(ShardkitWarning, match=said) as warned:
        cache = opened(tmp_path / "b")
    assert f"revision='{cache.revision}'" in str(warned[0].message)
    assert cache.unfinished
    assert cache.manifest.dtype == "uint16"
    assert cache.manifest.shards == manifest.shards[:3]
    assert read_all(cache) == {shard.file: (tmp_path / "a" / shard.file).read_bytes() for shard in manifest.shards[:3]}
    with open_uploader(REPO, b"") as outbox:
        for shard in manifest.shards[3:]:
            journal.append(shard, Resume())
            outbox.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: journal.path.read_bytes()}.copy)
        outbox.flush()
        publish(outbox.remote, manifest, (tmp_path / "a" / MANIFEST_NAME).read_bytes())
    kill_downloader(tmp_path / "b")  # who takes over serves what the readers have, not what is there now
    read_all(cache)
    cache.close()
    with pytest.warns(ShardkitWarning, match="9,000 tokens"):
        again = ShardCache.open(REPO, split="train", folder=tmp_path / "c", cache_bytes=None, revision=cache.revision)
    assert again.manifest == cache.manifest
    again.close()
    whole = opened(tmp_path / "d")
    assert whole.manifest == manifest
    whole.close()


def test_a_folder_that_is_still_written_has_no_revision_to_give(offline: None, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=3)
    journal = Journal.open(tmp_path / "j", {"source": "corpus"})
    with open_uploader(str(tmp_path / "far"), journal.path.read_bytes()) as outbox:
        for shard in manifest.shards[:2]:
            journal.append(shard, Resume())
            outbox.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: journal.path.read_bytes()}.copy)
        outbox.flush()
    with pytest.warns(ShardkitWarning, match=r"first 2 shards, 6,000 tokens.* there is no way to get the same again"):
        cache = opened(tmp_path / "b", str(tmp_path / "far"))
    assert len(read_all(cache)) == 2
    cache.close()


def test_a_remote_without_a_finished_shard_or_without_a_manifest_says_what_to_do(
    served: HubServer, tmp_path: Path
) -> None:
    open_uploader(REPO, Journal.open(tmp_path / "j", {}).path.read_bytes()).close()
    with pytest.raises(HubError, match="holds no finished shard yet"):
        opened(tmp_path / "b")
    make_dataset(tmp_path / "a")
    served.seed_repo("alice/bare", {path.name: path for path in (tmp_path / "a").glob("*.npy")})
    with pytest.raises(UsageError, match="`shardkit pull`"):
        opened(tmp_path / "c", "alice/bare")


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("alice/nothing", AuthError, "does not exist, or your token may not see it"),
        ("alice/demo@x", UsageError, "neither a Hub repo nor a folder"),
        ("hf://datasets/alice/demo@v9", HubError, "no such revision"),
        ("./nothing", HubError, "holds nothing|no such file"),
        ("nowhere://x", UsageError, "is no place"),
    ],
)
def test_a_source_that_cannot_be_opened_is_the_same_error_for_all_and_the_next_one_tries_anew(
    served: HubServer, tmp_path: Path, source: str, kind: type[Exception], expected: str
) -> None:
    serve(served, tmp_path / "a")
    for _ in range(2):
        with pytest.raises(kind, match=expected) as caught:
            opened(tmp_path / "b", source)
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)


def test_a_wrong_token_is_said_and_never_shown(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(served, tmp_path / "a")
    secret = "hf_" + "a1B2" * 9
    monkeypatch.setenv("HF_TOKEN", secret)
    with pytest.raises(AuthError, match="does not accept the token|may not see it") as caught:
        opened(tmp_path / "b")
    assert secret not in str(caught.value)
    assert not any(secret.encode() in path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file())
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    opened(tmp_path / "b").close()


def test_a_folder_of_something_else_is_refused(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "a")
    with pytest.raises(OutputError, match="is no shardkit cache"):
        opened(tmp_path / "a")
    opened(tmp_path / "b").close()
    make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(OutputError, match="is the cache of hf://datasets/alice/demo, not of"):
        opened(tmp_path / "b", str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"no 'test' shard \(it has val with 1, train with 5\)"):
        ShardCache.open(REPO, split="test", folder=tmp_path / "b", cache_bytes=None, revision=None)


def test_readers_stay_at_the_commit_of_the_first_and_a_later_run_takes_the_newest(
    served: HubServer, tmp_path: Path
) -> None:
    first = serve(served, tmp_path / "a", shards=3)
    cache = opened(tmp_path / "b")
    second = serve(served, tmp_path / "a", shards=3, seed=1)
    beside = opened(tmp_path / "b")
    assert beside.manifest == cache.manifest == first
    kill_downloader(tmp_path / "b")
    assert set(read_all(cache).values()) != set(shards_of(tmp_path / "a").values())  # the old ones, still
    for one in (cache, beside):
        one.close()
    until(lambda: not is_locked(CacheFolder(tmp_path / "b").lock))
    newer = opened(tmp_path / "b")
    assert newer.manifest == second
    assert read_all(newer) == shards_of(tmp_path / "a")
    newer.close()


def test_names_that_mean_the_same_meet_in_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    same = [full_name("u/n", "v1"), full_name("hf://datasets/u/n@v1", None), full_name("hf://datasets/u/n", "v1")]
    same.append(full_name("https://huggingface.co/datasets/u/n/tree/v1", None))
    assert full_name("u/n/sub", "v1") == full_name("hf://datasets/u/n@v1/sub", None) == ("hf://datasets/u/n/sub", "v1")
    assert set(same) == {("hf://datasets/u/n", "v1")}
    assert default_folder(*same[0], "train").parent == tmp_path / "cache"
    assert default_folder(*same[0], "train").name.startswith("u-n@v1-train-")
    assert default_folder(*same[0], "train") != default_folder(*same[0], "val")
    assert default_folder("hf://datasets/u/n", None, "train") != default_folder(*same[0], "train")
    assert full_name("./x", None) == full_name(f"file://{tmp_path}/x", None) == (str(tmp_path / "x"), None)
    assert full_name("s3://bucket/x", None) == ("s3://bucket/x", None)
    renewed = [full_name(f"ftp://user:secret{number}@host/x?sig={number}", None) for number in (1, 2)]
    assert default_folder(*renewed[0], "train") == default_folder(*renewed[1], "train")
    assert "secret" not in default_folder(*renewed[0], "train").name


def test_the_readers_process_loads_no_network_client(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from shardkit.remote.streaming.cache import ShardCache\n"
        f"ShardCache.open({REPO!r}, split='train', folder=Path(sys.argv[1]), cache_bytes=None, revision=None).close()\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")], env=os.environ, capture_output=True, text=True, check=True
    )
    assert not {"torch", "huggingface_hub", "httpx", "fsspec", "pyarrow"} & set(done.stdout.split())


def test_a_small_files_share_is_enough_for_a_large_dataset(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=40, tokens=10)
    assert isinstance(manifest, Manifest)
    assert 2 * len(manifest.to_json()) < small_bytes(manifest) < 2**18


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", '{"key": 1}', "\\xff", '"x"', "1" * 5_000])
def test_a_damaged_record_is_written_anew(offline: None, tmp_path: Path, text: str) -> None:
    make_dataset(tmp_path / "a")
    work = tmp_path / "b" / ".shardkit"
    (work / "readers").mkdir(parents=True)
    for name in ("dataset.json", "status.json"):
        (work / name).write_text(text)
    cache = opened(tmp_path / "b", str(tmp_path / "a"))
    assert cache.manifest == Manifest.load(tmp_path / "a")
    cache.close()


def test_what_is_no_file_in_the_cache_is_not_followed_and_not_waited_for(offline: None, tmp_path: Path) -> None:
    files = [shard.file for shard in make_dataset(tmp_path / "a", shards=5).shards]
    (tmp_path / "b" / ".shardkit" / "readers").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b" / ".shardkit" / "incoming").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "b" / files[0])
    (tmp_path / "b" / files[1]).symlink_to(tmp_path / "nowhere")
    (tmp_path / "b" / files[2] / "mine").mkdir(parents=True)
    cache = opened(tmp_path / "b", str(tmp_path / "a"))
    cache.want([*files[:2], *files[3:]])
    for file in (*files[:2], *files[3:]):
        cache.wait(file)
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
    cache.want([files[2]])
    with pytest.raises(OutputError, match=f"cannot write .*{files[2]}: Is a directory"):
        cache.wait(files[2])
    assert list((tmp_path / "elsewhere").iterdir()) == []
    cache.close()
