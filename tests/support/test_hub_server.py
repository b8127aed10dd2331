"""The test Hub, proved by the real client: what it answers is what `huggingface_hub` and `datasets` accept."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub.file_download
import huggingface_hub.utils._http as hf_http
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_control import control
from hub_server import Account, HubServer, Link
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "alice/tokens"
SUPPORT = Path(__file__).parent


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_size=4, expand_page_size=2, multipart_threshold=1_000_000, part_size=400_000) as server:
        yield server
        assert server.errors == []
        assert server.leaked_tokens == []


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token="hf_write")


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's waits between tries (1, 2, 4, 8 s) at a thousandth of their length."""

    class Hasty:
        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds / 1000)

    for module in (hf_http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", Hasty())


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size)


def adds(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def commit(api: HfApi, files: dict[str, bytes], **options: Any) -> Any:
    return api.create_commit(REPO, adds(files), commit_message="files", repo_type="dataset", **options)


def pull(hub: HubServer, folder: Path) -> Path:
    options: dict[str, Any] = {"repo_type": "dataset", "endpoint": hub.endpoint, "token": "hf_write", "max_workers": 2}
    return Path(str(snapshot_download(REPO, local_dir=folder, **options)))


def tree_of(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in found.items() if not name.startswith((".cache", ".gitattributes"))
    }


# -- what the client does --------------------------------------------------------------------------------------------


def test_an_uploaded_folder_comes_back_byte_identical(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    files = {
        "README.md": b"---\npretty_name: tokens\n---\n",
        "manifest.json": b"{}",
        "empty.txt": b"",
        "deep/er/caf\xc3\xa9 1.txt".encode("latin-1").decode(): b"caf\xc3\xa9",
        "s_val_000000.npy": noise(300_000),
        "s_train_000001.npy": noise(1_500_001, 1),  # four parts, the last one short
    }
    for name, content in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    url = api.create_repo(REPO, repo_type="dataset")
    assert (url.repo_id, url.repo_type) == (REPO, "dataset")

    info = api.upload_folder(folder_path=tmp_path / "up", repo_id=REPO, repo_type="dataset")

    assert hub.commits(REPO)[0].oid == info.oid
    assert len(hub.commits(REPO)) == 2  # with the initial one
    assert {name: hub.file_bytes(REPO, name) for name in files} == files
    assert {name for name, entry in hub.files(REPO).items() if entry.lfs} == {name for name in files if "npy" in name}
    assert hub.count("PUT", r"/_lfs/.*/\d+/\d+") == 4
    assert hub.bytes_received("/_lfs/") == 1_800_001
    assert tree_of(pull(hub, tmp_path / "down")) == files
    assert hub.bytes_sent("/_cdn/") == 1_800_001
    assert hub.count("GET", "/_cdn/.*/s_train_000001.npy", status=200) == 1


def test_what_was_preuploaded_is_not_sent_again(hub: HubServer, api: HfApi) -> None:
    files = {"a.npy": noise(10_000, 1), "b.npy": noise(20_000, 2)}
    api.create_repo(REPO, repo_type="dataset")
    first, second = adds(files)
    api.preupload_lfs_files(REPO, [first], repo_type="dataset")
    assert "a.npy" not in hub.files(REPO)
    api.create_commit(REPO, [first, second], commit_message="both", repo_type="dataset")
    assert hub.bytes_received("/_lfs/") == 30_000
    hub.reset_log()

    commit(api, files)  # unchanged: no object, no commit
    commit(api, {"copy.npy": files["a.npy"]})  # known object: no bytes

    assert hub.bytes_received("/_lfs/") == 0
    assert hub.count("POST", "/commit/") == 1
    assert hub.file_bytes(REPO, "copy.npy") == files["a.npy"]


def test_commits_delete_and_mind_their_parent(hub: HubServer, api: HfApi) -> None:
    seed = hub.seed_repo(REPO, {"a.npy": b"a", "ab.txt": b"ab", "dir/b.txt": b"b", "dir/c.txt": b"c", "dirt.txt": b"d"})
    doomed = [CommitOperationDelete("dir/"), CommitOperationDelete("a.npy")]
    done = api.create_commit(REPO, doomed, commit_message="x", repo_type="dataset", parent_commit=seed.oid)
    assert set(hub.files(REPO)) == {".gitattributes", "ab.txt", "dirt.txt"}
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as stale:
        commit(api, {"n.txt": b"n"}, parent_commit=seed.oid)
    assert stale.value.response.status_code == 412
    commit(api, {"n.txt": b"n"}, parent_commit=done.oid)
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        api.delete_file("nope.txt", REPO, repo_type="dataset")


def test_listings_come_in_pages(hub: HubServer, api: HfApi) -> None:
    files = {f"dir{i % 3}/sub/{i:02}.npy": noise(100, i) for i in range(9)} | {"top.txt": b"top"}
    head = hub.seed_repo(REPO, dict(files))
    assert sorted(api.list_repo_files(REPO, repo_type="dataset")) == sorted([".gitattributes", *files])
    assert hub.count("GET", "/tree/") == 5  # 11 files and 6 folders, 4 a page
    expanded: list[Any] = list(api.list_repo_tree(REPO, "dir1/sub", expand=True, repo_type="dataset"))
    assert [entry.path for entry in expanded] == ["dir1/sub/01.npy", "dir1/sub/04.npy", "dir1/sub/07.npy"]
    assert {entry.last_commit.oid for entry in expanded} == {head.oid}
    assert expanded[0].lfs.sha256 == hashlib.sha256(noise(100, 1)).hexdigest()
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere", repo_type="dataset"))
    for i in range(8):
        hub.seed_repo(REPO, {"top.txt": b"%d" % i})
    assert len(api.list_repo_commits(REPO, repo_type="dataset")) == 10


def test_info_and_paths_info_describe_files(hub: HubServer, api: HfApi) -> None:
    head = hub.seed_repo(REPO, {"a.npy": noise(100), "d/t.txt": b"hello"})
    info = api.dataset_info(REPO, files_metadata=True)
    sizes = {item.rfilename: item.size for item in info.siblings or []}
    assert (info.sha, info.private, sizes["a.npy"], sizes["d/t.txt"]) == (head.oid, False, 100, 5)
    assert api.dataset_info(REPO, expand=["sha"]).sha == head.oid
    found: list[Any] = api.get_paths_info(REPO, ["d/t.txt", "d", "missing"], expand=True, repo_type="dataset")
    file, folder = found
    body = json.dumps({"paths": ["d/t.txt"], "expand": False}).encode()
    assert json.loads(raw(hub, "POST", f"/api/datasets/{REPO}/paths-info/main", body)[2])[0]["oid"] == file.blob_id
    assert (file.path, file.blob_id, folder.path) == ("d/t.txt", "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", "d")


def test_every_revision_stays_addressable(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    old = hub.seed_repo(REPO, {"a.npy": b"old", "t.txt": b"old"})
    api.create_branch(REPO, branch="run/1", repo_type="dataset")
    api.create_tag(REPO, tag="v1", tag_message="first", repo_type="dataset")
    commit(api, {"a.npy": b"new", "t.txt": b"new"})
    commit(api, {"t.txt": b"branch"}, revision="run/1")

    def text(name: str, revision: str | None) -> bytes:
        options: dict[str, Any] = {"repo_type": "dataset", "endpoint": hub.endpoint, "token": "hf_read"}
        return Path(hf_hub_download(REPO, name, revision=revision, cache_dir=tmp_path, **options)).read_bytes()

    assert [text("a.npy", revision) for revision in (None, "v1", old.oid)] == [b"new", b"old", b"old"]
    assert [text("t.txt", revision) for revision in ("main", "run/1", "v1")] == [b"new", b"branch", b"old"]
    assert hub.file_bytes(REPO, "t.txt", "run/1") == b"branch"
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert ({ref.name for ref in refs.branches}, {ref.name for ref in refs.tags}) == ({"main", "run/1"}, {"v1"})
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch(REPO, branch="run/1", repo_type="dataset")
    api.create_tag(REPO, tag="v1", exist_ok=True, repo_type="dataset")
    api.delete_branch(REPO, branch="run/1", repo_type="dataset")
    api.delete_tag(REPO, tag="v1", repo_type="dataset")
    for gone in ("run/1", "v1"):
        assert not api.revision_exists(REPO, gone, repo_type="dataset")


def test_repos_are_created_changed_and_deleted(hub: HubServer, api: HfApi) -> None:
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    api.create_repo("model", private=True)
    assert api.model_info("alice/model").private
    with pytest.raises(HfHubHTTPError, match="already created") as exists:
        api.create_repo("alice/model")
    assert exists.value.response.status_code == 409
    assert api.create_repo("alice/model", exist_ok=True).repo_id == "alice/model"
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="m.safetensors", repo_id="alice/model")
    assert hub.file_bytes("alice/model", "m.safetensors", repo_type="model") == b"weights"
    api.update_repo_settings("alice/model", private=False, gated="auto")
    assert api.model_info("alice/model", token=False).gated == "auto"
    api.delete_repo("alice/model")
    assert not api.repo_exists("alice/model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a card without metadata: the server warns
        api.create_repo(REPO, repo_type="dataset")
        commit(api, {"README.md": b"# no metadata"})


Call = Callable[[HubServer, HfApi], object]


@pytest.mark.parametrize(
    ("token", "call", "error", "status"),
    [
        (False, lambda hub, api: api.dataset_info("alice/none"), RepositoryNotFoundError, 401),
        ("hf_read", lambda hub, api: api.dataset_info("alice/none"), RepositoryNotFoundError, 404),
        (False, lambda hub, api: api.dataset_info("alice/private"), RepositoryNotFoundError, 401),
        ("hf_other", lambda hub, api: api.dataset_info("alice/private"), RepositoryNotFoundError, 404),
        ("hf_bad", lambda hub, api: api.dataset_info(REPO), HfHubHTTPError, 401),
        ("hf_bad", lambda hub, api: api.whoami(), HfHubHTTPError, 401),
        ("hf_read", lambda hub, api: api.dataset_info(REPO, revision="none"), RevisionNotFoundError, 404),
        ("hf_read", lambda hub, api: api.auth_check("alice/none", repo_type="dataset"), RepositoryNotFoundError, 404),
        ("hf_read", lambda hub, api: commit(api, {"a.npy": b"a"}), HfHubHTTPError, 403),
        ("hf_other", lambda hub, api: commit(api, {"a.npy": b"a"}), HfHubHTTPError, 403),
        (False, lambda hub, api: commit(api, {"a.npy": b"a"}), RepositoryNotFoundError, 401),
        ("hf_read", lambda hub, api: api.create_repo("alice/new"), HfHubHTTPError, 403),
        ("hf_write", lambda hub, api: api.create_repo("bob/new"), HfHubHTTPError, 403),
        ("hf_read", lambda hub, api: download(hub, api, "none.npy"), RemoteEntryNotFoundError, 404),
        (False, lambda hub, api: download(hub, api, "a.npy", "alice/gated"), GatedRepoError, 401),
        ("hf_other", lambda hub, api: download(hub, api, "a.npy", "alice/gated"), GatedRepoError, 403),
    ],
)
def test_refusals_become_the_clients_errors(
    hub: HubServer, token: Any, call: Call, error: type[HfHubHTTPError], status: int
) -> None:
    hub.seed_repo(REPO, {"t.txt": b"t"})
    hub.create_repo("alice/private", private=True)
    hub.create_repo("alice/gated", gated=True)
    hub.seed_repo("alice/gated", {"a.npy": b"a"})
    with pytest.raises(error) as caught:
        call(hub, HfApi(endpoint=hub.endpoint, token=token))
    assert caught.type is error
    assert caught.value.response.status_code == status


def download(hub: HubServer, api: HfApi, name: str, repo_id: str = REPO) -> str:
    folder = hub.root / "client"
    return str(api.hf_hub_download(repo_id, name, repo_type="dataset", local_dir=folder))


def test_members_of_an_organization_write_there(hub: HubServer) -> None:
    hub.tokens["hf_org"] = Account("carol", orgs=("lab",))
    api = HfApi(endpoint=hub.endpoint, token="hf_org")
    api.create_repo("lab/data", repo_type="dataset", private=True)
    assert api.dataset_info("lab/data").author == "lab"


def parquet(rows: int, tag: str = "row") -> bytes:
    buffer = io.BytesIO()
    texts = [f"{tag} {i} {noise(40, i).hex()}" for i in range(rows)]
    pq.write_table(pa.table({"text": texts}), buffer, row_group_size=max(1, rows // 10), compression="none")
    return buffer.getvalue()


def test_parquet_is_read_by_ranges_through_the_filesystem(hub: HubServer) -> None:
    content = parquet(20_000)
    hub.seed_repo(REPO, {"data/a.parquet": content})
    fs = HfFileSystem(endpoint=hub.endpoint, token="hf_read", skip_instance_cache=True)
    assert fs.glob(f"datasets/{REPO}/**/*.parquet") == [f"datasets/{REPO}/data/a.parquet"]
    with fs.open(f"datasets/{REPO}/data/a.parquet", "rb", block_size=1 << 16) as file:
        rows = pq.ParquetFile(file).read_row_group(3)["text"]
    assert rows[0].as_py().startswith("row 6000 ")
    assert 0 < hub.bytes_sent("/_cdn/") < len(content) / 4
    assert {request.status for request in hub.requests("GET", "/_cdn/")} == {206}


CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
"""
RESOLVE = """
import datasets
names = datasets.get_dataset_config_names("alice/tokens")
builder = datasets.load_dataset_builder("alice/tokens", "sample-10BT")
infos = datasets.get_dataset_infos("alice/tokens")
rows = datasets.load_dataset("alice/tokens", "sample-10BT", split="train", streaming=True)
import json, os
files = [str(file) for file in builder.config.data_files["train"]]
print(json.dumps([names, sorted(infos), files, next(iter(rows))["text"][:5]]), flush=True)
os._exit(0)  # Arrow's threads, which read ahead, now and then abort the interpreter's own end
"""


def test_datasets_resolves_a_config_to_its_files(hub: HubServer) -> None:
    shards = {f"sample/10BT/{i:03}.parquet": parquet(20, f"s{i}") for i in range(3)}
    head = hub.seed_repo(REPO, {"README.md": CARD, "data/CC-1/0.parquet": parquet(20), **shards})
    hub.repo(REPO).private = True
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_read"}
    command = [sys.executable, "-c", RESOLVE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    names, infos, files, text = json.loads(done.stdout)
    assert (names, infos, text) == (["default", "sample-10BT"], ["default", "sample-10BT"], "s0 0 ")
    assert files == [f"hf://datasets/{REPO}@{head.oid}/{name}" for name in sorted(shards)]


def test_parallel_commits_lose_nothing(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset")
    threads = [threading.Thread(target=commit, args=(api, {f"{i}.npy": noise(50_000, i)})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.commits(REPO)) == 9
    assert all(hub.file_bytes(REPO, f"{i}.npy") == noise(50_000, i) for i in range(8))


# -- what it refuses -------------------------------------------------------------------------------------------------


def raw(
    hub: HubServer, method: str, target: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request without the client; the header `host` chooses the origin."""
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)
    connection.request(method, target, body or None, {"Host": "127.0.0.1", **headers})
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def test_bytes_with_another_sha256_are_not_kept(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset")
    for size in (1_000, 1_200_000):  # basic and multipart
        changed = CommitOperationAdd("a.npy", noise(size))
        changed.upload_info.sha256 = hashlib.sha256(b"what the file was a moment ago").digest()
        with pytest.raises(RuntimeError, match=r"Error while uploading 'a\.npy'") as caught:
            api.create_commit(REPO, [changed], commit_message="x", repo_type="dataset")
        assert isinstance(caught.value.__cause__, HfHubHTTPError)
        assert caught.value.__cause__.response.status_code == 422
    kept = [*hub.repo(REPO).folder.glob("tmp/*"), *hub.repo(REPO).folder.glob("blobs/*")]
    assert [path.name for path in kept] == [hub.files(REPO)[".gitattributes"].sha256]
    lines = [{"key": "header", "value": {"summary": "x"}}]
    lines += [{"key": "lfsFile", "value": {"path": "a.npy", "oid": "0" * 64, "size": 1, "algo": "sha256"}}]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    status, _, text = raw(hub, "POST", f"/api/datasets/{REPO}/commit/main", body, Authorization="Bearer hf_write")
    assert (status, b"LFS pointer pointed to a file that does not exist" in text) == (400, True)


def test_ranges_and_their_refusal(hub: HubServer) -> None:
    content = noise(1000)
    entry = hub.seed_repo(REPO, {"a.npy": content, "t.txt": content}).files["a.npy"]
    for target, host in (
        (f"/datasets/{REPO}/resolve/main/t.txt", "127.0.0.1"),
        (f"/_cdn/datasets/{REPO}/{entry.sha256}/a.npy", "localhost"),
    ):
        for asked, found in (
            ("0-0", content[:1]),
            ("10-19", content[10:20]),
            ("990-2000", content[990:]),
            ("995-", content[995:]),
            ("-7", content[-7:]),
        ):
            status, headers, body = raw(hub, "GET", target, Host=host, Range=f"bytes={asked}")
            assert (status, body) == (206, found)
            assert headers["Content-Range"].endswith("/1000")
        assert raw(hub, "GET", target, Host=host, Range="bytes=1000-")[0] == 416
        status, headers, body = raw(hub, "HEAD", target, Host=host)
        assert (status, headers["Content-Length"], body) == (200, "1000", b"")


def test_a_token_at_the_other_origin_is_a_leak(hub: HubServer) -> None:
    entry = hub.seed_repo(REPO, {"a.npy": b"a"}).files["a.npy"]
    target = f"/_cdn/datasets/{REPO}/{entry.sha256}/a.npy"
    assert raw(hub, "GET", target, Host="localhost", Authorization="Bearer hf_write")[2] == b"a"
    assert hub.leaked_tokens == [f"GET {target}"]
    assert raw(hub, "GET", target)[0] == raw(hub, "GET", "/api/whoami-v2", Host="localhost")[0] == 404
    hub.leaked_tokens.clear()


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_retries")
def test_status_answers_with_its_code_and_retry_after(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset")
    busy = hub.fault("status", "PUT", "/_lfs/", code=503, times=2)
    limit = hub.fault("status", "POST", "/preupload/", code=429, retry_after=7)
    commit(api, {"a.npy": noise(1000)})
    assert (busy.fired, limit.fired, hub.count("PUT", status=503), hub.count("PUT", status=200)) == (2, 1, 2, 1)
    hub.fault("status", "GET", "whoami", code=429, retry_after=7)
    status, headers, _ = raw(hub, "GET", "/api/whoami-v2")
    assert (status, headers["Retry-After"], headers["RateLimit"]) == (429, "7", '"api";r=0;t=7')
    hub.fault("status", "POST", "/commit/", nth=2)
    commit(api, {"b.npy": b"b"})
    with pytest.raises(HfHubHTTPError, match="503"):  # not retried by the client
        commit(api, {"c.npy": b"c"})


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(("action", "sent"), [("drop", 1_000_000), ("drop_midway", 1_500_000), ("lost_answer", 2e6)])
def test_an_upload_that_is_cut_is_sent_again(hub: HubServer, api: HfApi, action: Any, sent: int) -> None:
    api.create_repo(REPO, repo_type="dataset")
    fault = hub.fault(action, "PUT", "/_lfs/")
    commit(api, {"a.npy": noise(1_000_000)})
    assert fault.fired == 1
    assert [(request.status, request.faults) for request in hub.requests("PUT")] == [(0, [action]), (200, [])]
    assert hub.bytes_received("/_lfs/") == sent
    assert hub.file_bytes(REPO, "a.npy") == noise(1_000_000)


def test_a_commit_whose_answer_is_lost_has_happened(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset")
    hub.fault("lost_answer", "POST", "/commit/")
    with pytest.raises(httpx2.ReadError):
        commit(api, {"a.npy": b"a"})
    assert hub.file_bytes(REPO, "a.npy") == b"a"
    commit(api, {"a.npy": b"a"})
    assert len(hub.commits(REPO)) == 2


@pytest.mark.usefixtures("quick_retries")
def test_downloads_can_be_cut_shortened_and_corrupted(hub: HubServer, tmp_path: Path) -> None:
    content = noise(2_000_000)
    hub.seed_repo(REPO, {"a.npy": content, "t.txt": b"text"})
    hub.fault("drop_midway", "GET", "/_cdn/")
    with pytest.raises(httpx2.ReadError):
        pull(hub, tmp_path / "reset")
    assert [request.bytes_out for request in hub.requests("GET", "/_cdn/")] == [1_000_000]
    hub.fault("drop_midway", "GET", "/_cdn/", at=0.25, reset=False)
    assert tree_of(pull(hub, tmp_path / "close"))["a.npy"] == content
    hub.fault("truncate", "GET", "/_cdn/", at=0.75)
    with pytest.raises(OSError, match="should be of size 2000000 but has size 1500000"):
        pull(hub, tmp_path / "short")
    hub.fault("corrupt", "GET", "/_cdn/", at=1.0)
    hub.fault("corrupt", "GET", "/resolve/.*t.txt", at=0.0)
    broken = tree_of(pull(hub, tmp_path / "corrupt"))  # and the client does not notice
    assert broken == {"a.npy": content[:-1] + bytes([content[-1] ^ 0xFF]), "t.txt": b"\x8bext"}
    assert [fault.fired for fault in hub.faults] == [1] * 5
    hub.faults.clear()
    assert tree_of(pull(hub, tmp_path / "clean")) == {"a.npy": content, "t.txt": b"text"}


def cdn_target(hub: HubServer, name: str) -> str:
    """Where `resolve` sends a client on to, without the origin."""
    location = raw(hub, "GET", f"/datasets/{REPO}/resolve/main/{name}")[1]["Location"]
    assert location.startswith(hub.cdn)
    return location.removeprefix(hub.cdn)


def test_a_stalled_download_leaves_the_connection_open_and_silent(hub: HubServer) -> None:
    content = noise(100_000)
    hub.seed_repo(REPO, {"a.npy": content})
    target = cdn_target(hub, "a.npy")
    hub.fault("stall", "GET", "/_cdn/", at=0.8)
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=0.3)
    connection.request("GET", target, headers={"Host": "localhost"})
    answer = connection.getresponse()
    assert answer.headers["Content-Length"] == "100000"
    assert answer.read(80_000) == content[:80_000]
    with pytest.raises(TimeoutError):
        answer.read(1)
    answer.close()
    connection.close()
    while hub.connections:  # the server has noticed: no thread of it waits for ever
        time.sleep(0.01)
    assert raw(hub, "GET", target, Host="localhost", Range="bytes=80000-")[2] == content[80_000:]
    hub.fault("stall", "GET", "/_cdn/", at=0.8, seconds=0.1)
    assert raw(hub, "GET", target, Host="localhost")[2] == content  # it goes on
    assert [request.bytes_out for request in hub.requests("GET", "/_cdn/")] == [80_000, 20_000, 100_000]
    assert [request.first for request in hub.requests("GET", "/_cdn/")] == [0, 80_000, 0]


def test_a_signed_url_runs_out_and_resolve_gives_another(hub: HubServer, api: HfApi) -> None:
    content = noise(1000)
    hub.seed_repo(REPO, {"a.npy": content})
    hub.url_seconds = 60
    assert Path(download(hub, api, "a.npy")).read_bytes() == content
    hub.url_seconds = 0
    old = cdn_target(hub, "a.npy")
    status, headers, body = raw(hub, "GET", old, Host="localhost", Range="bytes=0-9")
    assert (status, headers["Content-Type"], b"<Code>AccessDenied</Code>" in body) == (403, "application/xml", True)
    hub.url_seconds = None
    hub.fault("expire", "GET", "/_cdn/", uses=2, times=None)
    first, second = cdn_target(hub, "a.npy"), cdn_target(hub, "a.npy")
    assert first != second
    assert [raw(hub, "GET", first, Host="localhost")[0] for _ in range(4)] == [200, 200, 403, 403]
    assert [raw(hub, "GET", second, Host="localhost")[0] for _ in range(3)] == [200, 200, 403]


def test_faults_of_ranges_and_signed_urls_are_the_same_for_the_same_seed(hub: HubServer) -> None:
    hub.seed_repo(REPO, {"a.npy": noise(20_000)})
    hub.url_seconds = 60
    ranges = [f"bytes={at}-{at + 999}" for at in range(0, 20_000, 1000)]

    def failing(order: list[str]) -> set[str]:
        hub.faults.clear()
        hub.fault("status", "GET", "/_cdn/", seed=3, probability=0.5, times=None)
        target = cdn_target(hub, "a.npy")
        return {asked for asked in order if raw(hub, "GET", target, Host="localhost", Range=asked)[0] == 503}

    first = failing(ranges)
    assert 2 < len(first) < 18
    assert failing(ranges[::-1]) == first


def test_the_link_holds_answers_back_and_bytes(hub: HubServer) -> None:
    hub.seed_repo(REPO, {"a.npy": noise(100_000), "b.npy": noise(100_000, 1)})
    targets = [cdn_target(hub, name) for name in ("a.npy", "b.npy")]

    def seconds(*targets: str, host: str = "localhost") -> float:
        started = time.monotonic()
        threads = [threading.Thread(target=raw, args=(hub, "GET", target), kwargs={"Host": host}) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - started

    hub.link = Link(latency=0.1, api_latency=0.2)
    assert seconds(targets[0]) >= 0.1
    assert seconds("/api/whoami-v2", host="127.0.0.1") >= 0.2
    hub.link = Link(connection_rate=400_000)
    assert seconds(*targets) >= 0.25
    hub.link = Link(connection_rate=1e9, total_rate=400_000)
    assert seconds(*targets) >= 0.5  # together
    hub.link = Link(latency=30, connection_rate=1, path="b.npy")
    seconds(targets[0])  # not held at all
    statuses = [request.status for request in hub.requests("GET", "/_cdn/")]
    assert statuses == [200] * 6


def test_a_program_controls_a_server_in_another_process(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.npy").write_bytes(noise(1000))
    control(hub.endpoint, "PUT", "seed", {"repo": REPO, "folder": str(tmp_path)})
    control(hub.endpoint, "PUT", "link", {"latency": 0.01, "connection_rate": 1e9})
    control(hub.endpoint, "PUT", "faults", [{"action": "status", "path": "whoami", "code": 500}])
    control(hub.endpoint, "PUT", "url_seconds", 60)
    assert (hub.link.latency, hub.link.connection_rate, hub.url_seconds) == (0.01, 1e9, 60)
    assert raw(hub, "GET", "/api/whoami-v2")[0] == 500
    raw(hub, "GET", cdn_target(hub, "sub/a.npy"), Host="localhost", Range="bytes=10-19")
    log = control(hub.endpoint, "GET", "log")
    assert [line["status"] for line in log] == [500, 302, 206]  # the orders themselves are not in it
    assert (log[2]["first"], log[2]["bytes_out"]) == (10, 10)
    assert 0 < log[0]["began"] <= log[2]["began"]
    control(hub.endpoint, "DELETE", "log")
    assert control(hub.endpoint, "GET", "log") == []


def test_plain_files_are_served_as_by_any_web_server(hub: HubServer) -> None:
    (hub.root / "files" / "a b").mkdir(parents=True)
    (hub.root / "files" / "a b" / "t.txt").write_bytes(b"text")
    status, headers, body = raw(hub, "GET", "/_files/a%20b/t.txt", Host="localhost", Range="bytes=1-2")
    assert (status, headers["Content-Range"], body) == (206, "bytes 1-2/4", b"ex")
    assert headers["ETag"] == raw(hub, "HEAD", "/_files/a%20b/t.txt", Host="localhost")[1]["ETag"]
    for absent in ("/_files/none.txt", "/_files/../repo.json"):
        assert raw(hub, "GET", absent, Host="localhost")[0] == 404


def test_slow_waits_and_pause_holds(hub: HubServer) -> None:
    hub.fault("slow", "GET", "whoami", seconds=0.2)
    started = time.monotonic()
    assert raw(hub, "GET", "/api/whoami-v2", Authorization="Bearer hf_read")[0] == 200
    assert 0.2 <= time.monotonic() - started < 2
    hub.pause()
    thread = threading.Thread(target=raw, args=(hub, "GET", "/held"))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    assert [request.status for request in hub.requests("GET", "/held")] == [0]
    hub.resume()
    thread.join(5)
    assert [request.status for request in hub.requests("GET", "/held")] == [404]


def test_random_faults_hit_the_same_requests_for_the_same_seed(hub: HubServer) -> None:
    def failing(seed: int) -> list[str]:
        hub.reset_log()
        hub.faults.clear()
        hub.random_faults(seed, 0.5, ["status", "slow"], code=500)
        targets = [f"/x/{i % 20}" for i in range(40)]
        threads = [threading.Thread(target=raw, args=(hub, "GET", target)) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(f"{request.target} {request.faults}" for request in hub.log if request.faults)

    first = failing(1)
    assert 5 < len(first) < 35
    assert failing(1) == first != failing(2)


@pytest.mark.usefixtures("quick_retries")
def test_a_storm_of_faults_ends_with_every_byte_in_place(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset")
    files = {f"{i}.npy": noise(100_000, i) for i in range(20)}
    hub.random_faults(7, 0.4, ["status", "drop", "drop_midway", "lost_answer"], path="/_lfs/|/batch|/verify|/preupload")
    commit(api, files)
    assert sum(fault.fired for fault in hub.faults) > 5
    assert {name: hub.file_bytes(REPO, name) for name in files} == files


# -- life ------------------------------------------------------------------------------------------------------------


def test_a_restart_keeps_port_and_state(tmp_path: Path) -> None:
    with HubServer(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token="hf_write")
        api.create_repo(REPO, repo_type="dataset", private=True)
        commit(api, {"a.npy": noise(1000), "t.txt": b"t"})
        api.create_tag(REPO, tag="v1", repo_type="dataset")
        api.preupload_lfs_files(REPO, adds({"b.npy": noise(1000, 1)}), repo_type="dataset")
        port = hub.port
        hub.stop()
        with pytest.raises(httpx2.ConnectError):
            api.dataset_info(REPO)
        hub.start()
        assert api.dataset_info(REPO, revision="v1").private
    with HubServer(tmp_path, port=port) as again:
        assert again.file_bytes(REPO, "a.npy", "v1") == noise(1000)
        assert [commit.title for commit in again.commits(REPO)] == ["files", "initial commit"]
        commit(api, {"a.npy": noise(1000), "b.npy": noise(1000, 1)})
        assert again.bytes_received("/_lfs/") == 0
        assert set(again.files(REPO)) == {".gitattributes", "a.npy", "b.npy", "t.txt"}


def test_a_stop_cuts_what_is_in_flight(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset")
    hub.fault("slow", "POST", "/commit/", seconds=30)
    failures: list[BaseException] = []

    def push() -> None:
        try:
            commit(api, {"a.npy": b"a"})
        except httpx2.HTTPError as error:
            failures.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    while not hub.count("POST", "/commit/"):
        time.sleep(0.01)
    started = time.monotonic()
    hub.stop()
    thread.join(5)
    assert (len(failures), time.monotonic() - started < 3, hub.connections) == (1, True, set())
    hub.start()


def test_standalone_it_survives_a_kill_and_stays_small(tmp_path: Path) -> None:
    def launch(port: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, str(SUPPORT / "hub_server.py"), "--port", str(port), "--root", str(tmp_path / "hub")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        return server, server.stdout.readline().strip()

    def peak(server: subprocess.Popen[str]) -> int:
        status = Path(f"/proc/{server.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    (tmp_path / "big.npy").write_bytes(noise(1000) * 48_000)
    server, url = launch(0)
    try:
        before = peak(server)
        api = HfApi(endpoint=url, token="hf_write")
        api.create_repo(REPO, repo_type="dataset")
        commit(api, {"t.txt": b"t"})
        api.upload_file(path_or_fileobj=tmp_path / "big.npy", path_in_repo="b.npy", repo_id=REPO, repo_type="dataset")
        path = api.hf_hub_download(REPO, "b.npy", repo_type="dataset", local_dir=tmp_path / "down")
        assert Path(path).read_bytes() == (tmp_path / "big.npy").read_bytes()
        assert peak(server) - before < 16_000  # kB, for 48 MB each way
        server.kill()
        server.communicate()  # waits and closes the pipe
        server, again = launch(int(url.rsplit(":", 1)[1]))
        assert again == url
        assert set(api.list_repo_files(REPO, repo_type="dataset")) == {".gitattributes", "b.npy", "t.txt"}
    finally:
        server.kill()
        server.communicate()  # waits and closes the pipe
