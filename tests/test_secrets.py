"""A password, a key or a signature in an address is shown and recorded nowhere, whatever reads or sends there."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from guarded_server import PASSWORD, SECRETS, SIGNATURES, USER, GuardedFtpServer, GuardedHttpServer, running
from source_data import chunk_texts, lines, packed

from shardkit import Manifest, network, pull, tokenize
from shardkit.cli import main
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.records import SourceFile, SourceInfo
from shardkit.errors import AuthError, HubError, SourceError, UsageError
from shardkit.remote.streaming.cache import ShardCache
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.tokenization.run_progress import TokenizeProgress

TEXTS = [f"Document {number} of the corpus." for number in range(30)]
LOGIN = f"{USER}:{PASSWORD}@"


class Watch:
    """Everything that was said and written, to be searched."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.folder, self.caplog = folder, caplog
        self.said: list[str] = []

    @property
    def logged(self) -> list[str]:
        """The lines of the log, of every level."""
        return [logging.Formatter().format(record) for record in self.caplog.records]

    def command(self, *words: str | Path, code: int | None = 0) -> str:
        """What the command prints, on both streams."""
        done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert code in (done.exit_code, None), done.output
        self.said.append(done.output)
        return done.output

    def assert_clean(self, *more: bytes) -> None:
        """No secret in any message, log record, file, file name or object of a server."""
        files = [path for path in self.folder.rglob("*") if "source" not in path.parts]
        searched = [text.encode() for text in (*self.said, *self.logged, *map(str, files))]
        searched += [path.read_bytes() for path in files if path.is_file()]
        for secret in SECRETS:
            assert [text for text in (*searched, *more) if secret.encode() in text] == []


@pytest.fixture
def watch(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Watch:
    caplog.set_level(1)
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    return Watch(tmp_path, caplog)


@pytest.fixture
def http(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "source").mkdir(exist_ok=True)
    for name in ("x.jsonl", "x.jsonl.gz"):
        (tmp_path / "source" / name).write_bytes(packed(name, lines(TEXTS)))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "source" / "x.parquet")
    with running(GuardedHttpServer(tmp_path / "source")) as host:
        yield host


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "source" / "x.jsonl").write_bytes(lines(TEXTS))
    with running(GuardedFtpServer(tmp_path / "source")) as host:
        yield host


SOURCES = [
    f"http://{{http}}/x.jsonl?X-Amz-Signature={SIGNATURES[0]}",
    f"http://{{http}}/x.jsonl.gz?X-Amz-Signature={SIGNATURES[0]}#part",
    f"http://{{http}}/x.parquet?X-Amz-Signature={SIGNATURES[0]}",
    f"http://{LOGIN}{{http}}/x.parquet",
    f"http://{LOGIN}{{http}}/*.jsonl",
    f"ftp://{LOGIN}{{ftp}}/x.jsonl",
]


@pytest.mark.parametrize("source", SOURCES)
def test_no_secret_of_a_source_is_in_any_file_message_log_or_object(
    watch: Watch, hub: Any, http: str, ftp: str, tmp_path: Path, source: str
) -> None:
    source = source.format(http=http, ftp=ftp)
    out, far = tmp_path / "out", tmp_path / "far"
    made = ("tokenize", source, "--out", out, "--shard-tokens", "100", "--workers", "1", "--tokenizer", "bytes")
    watch.command(*made, "--push", "alice/tokens")
    watch.command(*made, "--push", "alice/tokens")
    watch.command(*made[:3], tmp_path / "again", *made[4:], "--json")
    for command in ("info", "peek", "verify"):
        watch.command(command, out)
        watch.command(command, out, "--json")
    watch.command("push", out, f"file://{far}")
    watch.command("push", out, "alice/other", "--json")
    watch.command("pull", "alice/tokens", tmp_path / "pulled")
    opened = open_source(source)  # in this process, where the log is watched
    assert [chunk_texts(c, opened.options) for c in iter_chunks(opened, 0, 0, 0, chunk_bytes=1 << 20)]
    watch.said.append(repr(opened))
    assert any(f"{http}/x.jsonl" in line for line in watch.logged) == ("http" in source and "jsonl" in source)
    name = {f.path for f in opened.files}.pop()
    manifest = Manifest.load(out)
    assert manifest.source is not None
    assert "@" not in manifest.source.id
    assert manifest.source.files[0].path == name == source.partition("?")[0].rpartition("/")[2].replace("*", "x")
    watch.assert_clean(*(path.read_bytes() for path in hub.root.rglob("*") if path.is_file()))


def make_tokens(folder: Path, *, shards: int = 1) -> Manifest:
    """A dataset of this many shards."""
    return tokenize(TEXTS, folder, tokenizer="bytes", shard_tokens=1000 // shards, val_shards=0, prefix="x", workers=1)


def test_no_secret_of_a_remote_is_in_any_file_message_log_or_object(watch: Watch, ftp: str, tmp_path: Path) -> None:
    remote = f"ftp://{LOGIN}{ftp}/sets/demo"
    made = make_tokens(tmp_path / "out")
    watch.command("push", tmp_path / "out", tmp_path / "source" / "sets" / "demo")
    watch.command("push", tmp_path / "out", remote)
    watch.command("pull", remote, tmp_path / "pulled")
    watch.command("pull", remote, tmp_path / "pulled", "--json")
    watch.command("pull", remote, tmp_path / "part", "--split", "no", code=2)
    watch.command("push", tmp_path / "out", remote, "--tag", "v1", code=2)
    watch.command("push", tmp_path / "out", remote, "--revision", "main", code=2)
    for words in (["verify", "--deep"], ["report", "--out", tmp_path / "page.html"], ["diff", tmp_path / "out"]):
        watch.command(words[0], remote, *words[1:])
        watch.command(words[0], remote, *words[1:], "--json")
    watch.command("plan", remote, "--batch-size", "1", "--seq-len", "8", "--json")
    make_tokens(tmp_path / "other", shards=3)
    watch.command("push", tmp_path / "other", remote, code=1)
    cache = ShardCache.open(remote, split="train", folder=None, cache_bytes=None, revision=None)
    cache.want([made.shards[0].file])
    cache.wait(made.shards[0].file)
    watch.said += [cache.name, *map(str, (tmp_path / "cache").rglob("*"))]
    watch.assert_clean(*(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()))
    cache.close()
    bare = tmp_path / "source" / "sets" / "demo" / "manifest.json"
    bare.unlink()
    with pytest.warns(UserWarning, match="has no manifest.json"):
        pulled = pull(remote, tmp_path / "bare", workers=1)
    assert pulled.source is not None
    assert pulled.source.id == f"ftp://{ftp}/sets/demo"
    for more in ([], ["--json"], ["--overwrite"]):
        watch.command("push", tmp_path / "out", f"{remote}2", *more, code=None)  # fsspec's FTP cannot do all of it
    card = (tmp_path / "source" / "sets" / "demo" / "README.md").read_bytes()
    assert f"shardkit pull ftp://{ftp}/sets/demo data".encode() in card
    watch.assert_clean(*(path.read_bytes() for path in (tmp_path / "source").rglob("*") if path.is_file()))


@pytest.mark.parametrize("secret", ["pa55w0rdOfTheTest", "with/a/slash+pa55w0rdOfTheTest"])
def test_keys_in_an_s3_address_are_refused_before_anything_is_asked_or_written(
    watch: Watch, tmp_path: Path, secret: str
) -> None:
    make_tokens(tmp_path / "out")
    place = f"s3://{USER}:{secret}@bucket/demo"
    for words in (
        ("push", tmp_path / "out", place),
        ("pull", place, tmp_path / "in"),
        ("tokenize", "sample", "--out", tmp_path / "made", "--push", place),
    ):
        said = watch.command(*words, code=2)
        assert "s3://bucket/demo is given with a user or password before it" in said
        assert "AWS_ACCESS_KEY_ID" in said
    with pytest.raises(UsageError, match=r"s3://bucket/x\.jsonl is given with a user or password"):
        open_source(f"s3://{USER}:{secret}@bucket/x.jsonl")
    watch.assert_clean()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (f"http://{USER}:wrong-pa55w0rdOfTheTest@{{http}}/x.jsonl", r"does not allow it \(401"),
        ("http://{http}/x.jsonl?X-Amz-Signature=wrong-s1gnatureOfTheTest", r"does not allow it \(401"),
        (f"http://{USER}:wrong-pa55w0rdOfTheTest@{{http}}/folder", r"does not allow it \(401"),
        (f"http://{LOGIN}{{http}}/none.jsonl", "has no such file or folder"),
        (f"http://{LOGIN}{{closed}}/x.jsonl", r"does not answer as it should \(ClientConnectorError: Cannot connect"),
        (f"http://{LOGIN}{{closed}}/folder", r"does not answer as it should \(ClientConnectorError: Cannot connect"),
        (f"ftp://{USER}:wrong-pa55w0rdOfTheTest@{{ftp}}/x.jsonl", r"does not allow it \(530 wrong password"),
        (f"ftp://{LOGIN}{{closed}}/x.jsonl", r"does not answer as it should \(ConnectionRefusedError"),
    ],
)
def test_a_refused_connection_and_a_wrong_password_are_named_in_the_error(
    watch: Watch, http: str, ftp: str, place: str, expected: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = f"127.0.0.1:{unused.getsockname()[1]}"
    place = place.format(http=http, ftp=ftp, closed=closed)
    with pytest.raises((SourceError, AuthError), match=expected) as caught:
        open_source(place)
    watch.said.append(repr(caught.value))
    if "no such file" not in expected:
        with pytest.raises((HubError, AuthError), match=expected) as caught:
            pull(place, watch.folder / "in", workers=1)
        watch.said.append(repr(caught.value))
    watch.assert_clean()


def test_a_run_goes_on_when_its_signed_address_was_renewed(watch: Watch, http: str, tmp_path: Path) -> None:
    def interrupt(progress: TokenizeProgress) -> None:
        if progress.shards >= 2:
            raise KeyboardInterrupt

    sizes: dict[str, Any] = {"tokenizer": "bytes", "shard_tokens": 100, "workers": 1, "chunk_bytes": 200}
    before, after = (f"http://{http}/x.jsonl?X-Amz-Signature={signature}" for signature in SIGNATURES)
    with pytest.raises(KeyboardInterrupt):
        tokenize(before, tmp_path / "out", progress=interrupt, **sizes)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npy")}
    assert len(made) >= 2
    manifest = tokenize(after, tmp_path / "out", **sizes)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in made} == made
    local = tokenize(tmp_path / "source" / "x.jsonl", tmp_path / "local", **sizes)
    assert manifest.fingerprint == local.fingerprint
    assert tokenize(before, tmp_path / "out", **sizes) == manifest
    watch.assert_clean()


def spoil(path: Path, *names: str) -> None:
    """Put a password and a signature behind these names, as earlier versions wrote them."""
    text = path.read_text()
    for name in names:
        text = text.replace(f'"{name}"', f'"{name}?X-Amz-Signature={SIGNATURES[0]}"')
    path.write_text(text.replace('"https://', f'"https://{LOGIN}'))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A dataset of an earlier version, with the secrets of its source in the manifest."""
    made = make_tokens(tmp_path / "old")
    files = (SourceFile(path="x.jsonl", bytes=9, rows=30, documents=30, tokens=made.tokens),)
    replace(made, source=SourceInfo(id="https://host/x.jsonl", files=files)).save(tmp_path / "old")
    spoil(tmp_path / "old" / "manifest.json", "https://host/x.jsonl", "x.jsonl")
    assert PASSWORD in (tmp_path / "old" / "manifest.json").read_text()
    return tmp_path / "old"


def test_an_old_manifest_with_secrets_is_not_pushed_and_the_error_names_what_cleans_it(
    watch: Watch, old: Path, tmp_path: Path
) -> None:
    for command in ("info", "peek", "verify"):
        watch.command(command, old)
    said = watch.command("push", old, tmp_path / "far", code=1)
    assert "holds the user, password or query of its source's address" in said
    assert not (tmp_path / "far").exists()
    advised = re.search(r'python -c "(.*?)"', said)
    assert advised is not None
    subprocess.run([sys.executable, "-c", advised[1]], check=True)
    watch.command("push", old, tmp_path / "far")
    watch.assert_clean()


def test_secrets_that_another_published_do_not_come_along_with_a_pull(watch: Watch, old: Path, tmp_path: Path) -> None:
    old.rename(tmp_path / "source")
    pulled = pull(str(tmp_path / "source"), tmp_path / "in")
    assert pulled == pull(str(tmp_path / "source"), tmp_path / "in") == Manifest.load(tmp_path / "in")
    watch.command("push", tmp_path / "in", tmp_path / "source")
    assert PASSWORD not in (tmp_path / "source" / "manifest.json").read_text()
    watch.assert_clean()


def test_the_journal_of_an_earlier_version_with_secrets_is_refused_in_one_clear_line(
    watch: Watch, http: str, tmp_path: Path
) -> None:
    source = f"http://{LOGIN}{http}/x.jsonl"
    made = (
        "tokenize",
        source,
        "--out",
        tmp_path / "out",
        "--tokenizer",
        "bytes",
        "--workers",
        "1",
        "--val-shards",
        "0",
    )
    watch.command(*made)
    journal = tmp_path / "out" / JOURNAL_FILE
    journal.write_text(journal.read_text().replace(f'"http://{http}/x.jsonl"', json.dumps(source)))
    assert PASSWORD in journal.read_text()
    said = watch.command(*made, code=1)
    assert "its first line does not hold" in said or "was begun by an earlier version" in said
    assert "start again with --overwrite" in said
    watch.command(*made, "--overwrite")
    watch.assert_clean()
