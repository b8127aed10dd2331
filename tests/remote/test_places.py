"""The two kinds of remote: what REPO may be, and folders and S3 with the same guarantees as the Hub."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hub_data import journal_at, make_dataset, open_uploader, tree_of

from shardkit import network, tokenize
from shardkit.cli import main
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import AuthError, HubError, ShardError, ShardkitWarning, UsageError
from shardkit.remote.address import is_remote, open_remote
from shardkit.remote.bucket import BucketRemote
from shardkit.remote.claim import warn_of_corpus
from shardkit.remote.hub import HubRemote
from shardkit.remote.interface import RemoteFile
from shardkit.remote.pull import pull
from shardkit.remote.push import publish, push
from shardkit.remote.storage import FsspecRemote
from shardkit.remote.upload_record import UploadRecord

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        ("user/name", "hf://datasets/user/name"),
        ("user/my.data-set_2", "hf://datasets/user/my.data-set_2"),
        ("hf://datasets/user/name", "hf://datasets/user/name"),
        ("hf://datasets/user/name@v1", "hf://datasets/user/name@v1"),
        ("user/name/sub/folder", "hf://datasets/user/name/sub/folder"),
        ("hf://datasets/user/name@v1/sub", "hf://datasets/user/name@v1/sub"),
        ("https://huggingface.co/datasets/user/name", "hf://datasets/user/name"),
        ("https://huggingface.co/datasets/user/name/tree/v1/sub/", "hf://datasets/user/name@v1/sub"),
    ],
)
def test_hub_names(repo: str, expected: str) -> None:
    remote = open_remote(repo)
    assert isinstance(remote, HubRemote)
    assert remote.name == expected


def test_paths_and_urls_are_fsspecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for repo in ("./x", "../" + tmp_path.name + "/x", f"{tmp_path}/x", "~/x", f"file://{tmp_path}/x"):
        remote = open_remote(repo)
        assert isinstance(remote, FsspecRemote)
        assert remote.local_folder == tmp_path.resolve() / "x"
    assert isinstance(open_remote("s3://bucket/x"), FsspecRemote)
    assert isinstance(open_remote("hf://buckets/user/name/x"), BucketRemote)
    assert isinstance(open_remote("memory://x"), FsspecRemote)


@pytest.mark.parametrize(
    "repo",
    [
        "",
        "name",
        "user/",
        "https://huggingface.co/user/name",
        "hf://user/name",
        "hf://buckets/user",
        "hf://datasets/x",
        "nowhere://x",
    ],
)
def test_what_is_neither_is_refused_with_what_to_write(repo: str) -> None:
    with pytest.raises(UsageError, match=r"user/name"):
        open_remote(repo)


@pytest.mark.parametrize(
    "repo",
    [
        "user/name/demo_train_000001.npy",
        "hf://datasets/user/name/*.npy",
        "https://huggingface.co/datasets/user/name/blob/main/manifest.json?token=hf_aB12345678901",
    ],
)
def test_a_file_is_no_place(repo: str) -> None:
    with pytest.raises(UsageError, match="names files: a place is a whole dataset, name its repo or folder") as caught:
        open_remote(repo)
    assert "hf_aB" not in str(caught.value)


def test_what_is_a_folder_here_is_no_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "name" / "sub").mkdir(parents=True)
    assert [is_remote(f"user/name{rest}") for rest in ("", "/sub", "/other")] == [False, False, True]
    assert [is_remote(place) for place in ("./user/other", "/user/other", "name", tmp_path)] == [False] * 4
    assert is_remote("https://huggingface.co/datasets/user/name")


def test_two_revisions_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="give one"):
        open_remote("hf://datasets/user/name@v1", revision="v2")


# -- a folder and S3, the same tests -----------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """A REPO that is not the Hub's, and its fsspec filesystem."""
    import fsspec

    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    if request.param == "folder":
        return f"file://{tmp_path}/far", fsspec.filesystem("file")
    return request.getfixturevalue("bucket"), fsspec.filesystem("s3")


def test_a_pushed_dataset_is_pulled_back_byte_identical(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, fs = place
    manifest = make_dataset(tmp_path / "a")
    assert push(tmp_path / "a", repo).sent_files == 4
    assert push(tmp_path / "a", repo).sent_files == 0
    assert pull(repo, tmp_path / "b") == manifest
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    fs.invalidate_cache()
    names = {Path(name).name for name in fs.find(repo)}
    assert names == {*tree_of(tmp_path / "a"), "README.md"}


def test_an_unfinished_push_goes_on_and_is_not_taken_for_a_dataset(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, fs = place
    manifest = make_dataset(tmp_path / "a")
    lost = (tmp_path / "a" / manifest.shards[3].file).rename(tmp_path / "lost")
    (tmp_path / "a" / manifest.shards[3].file).write_bytes(lost.read_bytes()[:-1] + b"\0")
    with pytest.raises(Exception, match="is damaged"):
        push(tmp_path / "a", repo)
    with pytest.raises(HubError, match="unfinished"):
        pull(repo, tmp_path / "b")
    lost.rename(tmp_path / "a" / manifest.shards[3].file)
    fs.invalidate_cache()
    lines = [line for path in fs.glob(f"{repo}/.shardkit/uploaded-*") for line in fs.cat_file(path).splitlines()]
    assert push(tmp_path / "a", repo).skipped_files == len(lines)
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


RECORDS = ["uploaded.json", "uploaded-000001.jsonl"]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("garbage", [b"", b"{", b"[1]", b'{"demo_val_000000.npy": 3}', b"\xff"])
def test_a_record_that_cannot_be_read_costs_a_second_upload_and_no_more(
    tmp_path: Path, garbage: bytes, record: str
) -> None:
    manifest = make_dataset(tmp_path / "a")
    repo = str(tmp_path / "far")
    with pytest.raises(ShardError):
        push_first(2, tmp_path / "a", repo, manifest)
    for name in RECORDS:
        (tmp_path / "far" / ".shardkit" / name).unlink(missing_ok=True)
    (tmp_path / "far" / ".shardkit" / record).write_bytes(garbage)
    assert push(tmp_path / "a", repo).sent_files == 4
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def push_first(count: int, folder: Path, repo: str, manifest: Manifest) -> None:
    """A push that ends with an error after `count` shards were acknowledged: the next one is away for that time."""
    away = folder / manifest.shards[count].file
    content = away.read_bytes()
    away.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        push(folder, repo, workers=1)
    finally:
        away.write_bytes(content)


def test_the_record_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    repo, work = str(tmp_path / "far"), tmp_path / "far" / ".shardkit"
    with pytest.raises(ShardError):
        push_first(2, tmp_path / "a", repo, manifest)
    shutil.rmtree(work)
    work.mkdir()
    (work / "push.json").write_text(json.dumps({"fingerprint": manifest.fingerprint}))
    entries = {shard.file: [shard.bytes, shard.sha256] for shard in manifest.shards[:2]}
    (work / "uploaded.json").write_text(json.dumps(entries))
    (work / "uploaded.json.part").write_text("{")  # it was killed while it wrote
    assert push(tmp_path / "a", repo).skipped_files == 2
    assert not work.exists()


def test_what_is_written_about_shards_grows_with_their_number_and_not_with_its_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    written = 0
    real = LocalFileSystem.pipe_file

    def count(self: Any, path: str, value: bytes, **options: Any) -> None:
        nonlocal written
        written += len(value)
        real(self, path, value, **options)

    monkeypatch.setattr(LocalFileSystem, "pipe_file", count)
    remote = open_remote(str(tmp_path / "far"))
    remote.create(private=False)
    remote.files()
    shard, bytes_of = make_dataset(tmp_path / "a").shards[1], []
    for number in range(3000):
        remote.commit([dataclasses.replace(shard, file=f"demo_train_{number:06d}.npy")], {}, "")
        if number % 1000 == 999:
            bytes_of.append(written)
            written = 0
    assert bytes_of[2] < 1.2 * bytes_of[1]
    assert written + sum(bytes_of) < 3000 * 40_000  # 0.02 % of shards of 200 MB
    record = UploadRecord({f".shardkit/{p.name}": p.read_bytes() for p in (tmp_path / "far" / ".shardkit").iterdir()})
    assert record.entries == {f"demo_train_{n:06d}.npy": (shard.bytes, shard.sha256) for n in range(3000)}


def test_a_shard_that_is_replaced_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    record = UploadRecord({})
    files = record.add({"a_train_000001.npy": (10, "1" * 64), "a_train_000002.npy": (10, "2" * 64)})
    files |= record.remove(["a_train_000001.npy", "never.npy"])
    assert UploadRecord(files).entries == {"a_train_000002.npy": (10, "2" * 64)}
    again = UploadRecord(files)
    files |= again.add({"a_train_000001.npy": (10, "3" * 64)})
    assert list(files) == [".shardkit/uploaded-000001.jsonl"]
    assert UploadRecord(files).entries["a_train_000001.npy"] == (10, "3" * 64)


def test_the_hash_that_a_place_lists_for_a_shard_is_kept_with_it_and_goes_with_it() -> None:
    record = UploadRecord({})
    files = record.add(
        {"a_train_000001.npy": (10, "1" * 64), "a_train_000002.npy": (10, "2" * 64)}, {"a_train_000001.npy": "x1"}
    )
    again = UploadRecord(files)
    assert again.entries == record.entries == {f"a_train_00000{n}.npy": (10, f"{n}" * 64) for n in (1, 2)}
    assert again.versions == record.versions == {"a_train_000001.npy": "x1"}
    files |= again.add({"a_train_000001.npy": (10, "3" * 64)})
    assert UploadRecord(files).versions == {}


def test_another_dataset_is_refused_and_replaced_with_overwrite(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, _ = place
    make_dataset(tmp_path / "a", shards=5)
    make_dataset(tmp_path / "b", seed=1)
    push(tmp_path / "a", repo)
    with pytest.raises(HubError, match="holds another dataset"):
        push(tmp_path / "b", repo)
    push(tmp_path / "b", repo, overwrite=True)
    pull(repo, tmp_path / "c")
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "b")


def test_bytes_damaged_at_the_remote_are_found_and_replaced_by_overwrite(
    place: tuple[str, Any], tmp_path: Path
) -> None:
    repo, fs = place
    manifest = make_dataset(tmp_path / "a")
    push(tmp_path / "a", repo)
    target = f"{repo}/{manifest.shards[1].file}"
    fs.pipe_file(target, fs.cat_file(target)[:-1] + b"\0")
    with pytest.raises(HubError, match="arrived 3 times with other bytes"):
        pull(repo, tmp_path / "b")
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()
    push(tmp_path / "a", repo, overwrite=True)
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_tokenize_push_goes_on_from_the_journal(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, _ = place
    manifest = make_dataset(tmp_path / "a")
    assert journal_at(repo) is None
    with open_uploader(repo, b"head\n", max_bytes=10**9) as uploader:
        for shard in manifest.shards[:2]:
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: b"head\n" + shard.file.encode()}.copy)
        uploader.flush()
    left = journal_at(repo)
    assert left == b"head\n" + manifest.shards[1].file.encode()
    with open_uploader(repo, left, max_bytes=10**9) as uploader:
        assert [uploader.has(s) for s in manifest.shards] == [True, True, False, False]
        for shard in manifest.shards[2:]:
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: left}.copy)
        uploader.flush()
        publish(uploader.remote, manifest, (tmp_path / "a" / MANIFEST_NAME).read_bytes())
    assert sorted(tree_of(tmp_path / "a")) == [MANIFEST_NAME]
    assert pull(repo, tmp_path / "b") == manifest


def test_a_repo_that_is_not_there_is_one_clear_line(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, _ = place
    with pytest.raises(HubError, match=r"holds nothing|no such") as caught:
        pull(repo, tmp_path / "b")
    assert "\n" not in str(caught.value)


PUSH = """
import sys
from shardkit.remote.push import push
from shardkit.remote.storage import FsspecRemote
from shardkit.remote.upload_record import UploadRecord

def held(method, moment):
    real = getattr(FsspecRemote, method)
    def call(self, *arguments):
        shards = [arguments[1]] if method == "upload" else arguments[0]
        if moment in [f"{method} {shard.index}" for shard in shards]:
            print("reached", flush=True)
            sys.stdin.read()
        return real(self, *arguments)
    setattr(FsspecRemote, method, call)

for method in ("upload", "commit"):
    held(method, sys.argv[3])
push(sys.argv[1], sys.argv[2], workers=2)
"""


def test_a_push_killed_at_any_moment_finishes(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, _ = place
    make_dataset(tmp_path / "a", shards=8, tokens=30_000)
    for moment in ("upload 0", "commit 1", "upload 3", "commit 5", "upload 7"):
        process = subprocess.Popen(
            [sys.executable, "-c", PUSH, str(tmp_path / "a"), repo, moment],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "reached\n"
            process.kill()
    push(tmp_path / "a", repo)
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_file_that_a_killed_push_left_half_written_is_not_taken_for_a_shard(tmp_path: Path) -> None:
    manifest, repo = make_dataset(tmp_path / "a"), str(tmp_path / "far")
    with pytest.raises(ShardError):
        push_first(1, tmp_path / "a", repo, manifest)
    half = tmp_path / "far" / ".shardkit" / f"{manifest.shards[2].file}.part"
    half.write_bytes((tmp_path / "a" / manifest.shards[2].file).read_bytes()[:1000])
    assert push(tmp_path / "a", repo).sent_files in (3, 4)  # the first had arrived, and may have been acknowledged
    assert not half.exists()
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_or_not_ours_is_one_clear_line(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    make_dataset(tmp_path / "a")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with pytest.raises(HubError, match="no such file or folder") as caught:
        push(tmp_path / "a", "s3://no-such-bucket-here/x")
    assert "\n" not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(AuthError, match="credentials"):
        push(tmp_path / "a", "s3://no-such-bucket-here/x")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "far").write_text("not a folder")
    with pytest.raises(HubError, match="in the way"):
        push(tmp_path / "a", str(tmp_path / "far"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_one_clear_line(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "far").mkdir(mode=0o500)
    with pytest.raises(AuthError, match="does not allow it"):
        push(tmp_path / "a", str(tmp_path / "far" / "x"))


def test_bare_shards_in_a_folder_are_not_overwritten(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "far")
    (tmp_path / "far" / MANIFEST_NAME).unlink()
    before = tree_of(tmp_path / "far")
    with pytest.raises(HubError, match="holds another dataset"):
        push(tmp_path / "a", str(tmp_path / "far"))
    assert {name: before[name] for name in before} == {
        n: c for n, c in tree_of(tmp_path / "far").items() if n in before
    }


# -- the Hub's S3 gateway ----------------------------------------------------------------------------------------------


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """S3 as the Hub's gateway has it: below a namespace, buckets as parts of the path, and no checksums of the client.

    Set up as docs/places.md says, by the environment alone.
    """
    import s3fs
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            """Print nothing."""

    moto = DomainDispatcherApplication(create_backend_app)

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if not environ["PATH_INFO"].startswith("/alice/") or "HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM" in environ:
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"no namespace, or a checksum"]
        for name in ("PATH_INFO", "RAW_URI", "REQUEST_URI"):
            environ[name] = environ[name].replace("/alice/", "/", 1)
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://localhost:{server.port}/alice",
        "AWS_ACCESS_KEY_ID": "HFAK1234567890",
        "AWS_SECRET_ACCESS_KEY": "5ecret-of-the-gateway",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("gate")
    yield "s3://gate/sets/demo"
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def test_a_bucket_of_the_hub_is_a_place_through_its_s3_gateway(gateway: str, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    assert push(tmp_path / "a", gateway).sent_files == 4
    assert pull(gateway, tmp_path / "c") == manifest
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "a")
    with pytest.raises(HubError, match="holds another dataset") as caught:
        push(tmp_path / "b", gateway)
    assert "5ecret" not in str(caught.value)


def test_the_files_of_a_dataset_in_a_folder_of_a_place_are_no_corpus(tmp_path: Path) -> None:
    remote = FsspecRemote(str(tmp_path / "far"))
    files = ("sub/manifest.json", "sub/tokenizer.json", "sub/tokenizer_config.json", "sub/.shardkit/a.json", "x.npy")
    warn_of_corpus(remote, {name: RemoteFile(1, "") for name in files})
    with pytest.warns(ShardkitWarning, match=r"holds a corpus \(1 file of text or tables, sub/rows.json first\)"):
        warn_of_corpus(remote, {name: RemoteFile(1, "") for name in (*files, "sub/rows.json")})


@pytest.mark.usefixtures("hub")
def test_a_name_that_begins_as_a_folder_here_and_is_refused_says_how_a_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    hint = r"; if a folder here is meant, write \./ro/sub$"
    for ask in (
        lambda: push("data", "ro/sub", progress=False),
        lambda: pull("ro/sub", "into", progress=False),
        lambda: tokenize(["a"], "out", tokenizer="bytes", workers=1, push="ro/sub", progress=False),
    ):
        with pytest.raises(AuthError) as caught:
            ask()
        assert "is meant" not in str(caught.value)
        Path("ro").mkdir()
        with pytest.raises(AuthError, match=hint):
            ask()
        Path("ro").rmdir()
    Path("ro").mkdir()
    with pytest.raises(AuthError) as of_source:
        tokenize("alice/nothing", "out", tokenizer="bytes", push="ro/sub", progress=False)
    assert "is meant" not in str(of_source.value)


def test_a_folder_that_is_not_there_is_not_the_folder_to_pull_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match="./nothere holds nothing: check the name"):
        pull("./nothere", progress=False)


def test_where_there_are_no_commits_a_push_prints_no_revision(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    done = CliRunner().invoke(main, ["push", str(tmp_path / "data"), str(tmp_path / "far")])
    assert "sent files:" in done.stdout
    assert "revision" not in done.stdout
