"""Mirrors (`HF_ENDPOINT`), proxies and login pages between us and the Hub: sound ones work, the others are named."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cache_data import opened
from hub_data import make_dataset, tree_of
from hub_mirror import Behaviour, HubMirror, Trait
from hub_server import HubServer, point_client
from huggingface_hub import HfFileSystem, constants

from shardkit import hub_answers, network
from shardkit.errors import HubError, SourceError
from shardkit.hub_address import HUB
from shardkit.hub_session import hub_session
from shardkit.remote.pull import pull
from shardkit.remote.push import push
from shardkit.remote.streaming.contents import open_dataset
from shardkit.remote.streaming.folder import CacheFolder
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.texts import read_chunk

REPO, TEXTS = "alice/demo", "alice/texts"
LISTINGS = "/api/.*/(tree|paths-info|preupload|commit)/"
FILES = "/resolve/|/info/lfs/"
SOUND = {
    ("gzip", "tokenize"),
    ("405", "pull"),
    ("405", "stream"),
}  # texts are asked for with gzip; reading needs no POST


@contextmanager
def behind(hub: HubServer, monkeypatch: pytest.MonkeyPatch, *traits: Trait) -> Iterator[HubMirror]:
    """A mirror of `hub` that this process's clients ask in its place."""
    with HubMirror(hub, traits=traits) as mirror:
        point_client(monkeypatch, mirror.endpoint)
        yield mirror
        assert mirror.errors == []
    HfFileSystem.clear_instance_cache()


def seeded(hub: HubServer, tmp_path: Path) -> None:
    """A tokenized dataset in a folder and on the Hub, and one of texts."""
    make_dataset(tmp_path / "a")
    hub.seed_repo(REPO, {path.name: path for path in (tmp_path / "a").iterdir()})
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [f"document {number}" for number in range(50)]}), table)
    card = str(tmp_path).encode()  # another commit in each test: what is known of a commit is kept
    hub.seed_repo(TEXTS, {"README.md": card, "data/a.parquet": table.getvalue()})


def read_texts(tmp_path: Path) -> list[Any]:
    source = open_source(TEXTS)
    chunks = iter_chunks(source, 0, 0, 0, chunk_bytes=1 << 20)
    return [text for chunk in chunks for piece in read_chunk(chunk, source.options) for text in piece.texts]


def stream(tmp_path: Path) -> None:
    """What the downloader of a node does: open, and fetch a shard."""
    (tmp_path / "cache" / ".shardkit").mkdir(parents=True)
    folder = CacheFolder(tmp_path / "cache")
    dataset = open_dataset(folder, REPO, None)
    name = next(iter(dataset.shards))
    path, _ = dataset.remote.fetch(name, tmp_path, again=False)
    assert path.read_bytes() == (tmp_path / "a" / name).read_bytes()


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "pull": lambda tmp_path: pull(REPO, tmp_path / "b"),
    "push": lambda tmp_path: push(tmp_path / "a", "alice/new"),
    "stream": stream,
    "tokenize": read_texts,
}


@pytest.mark.parametrize("traits", [(), ("no etag",), ("308",), ("gzip",), ("no etag", "308", "gzip")])
def test_a_sound_mirror_serves_every_command_that_can_do_without_what_it_lacks(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traits: tuple[Trait, ...]
) -> None:
    seeded(hub, tmp_path)
    with behind(hub, monkeypatch, *traits) as mirror:
        push(tmp_path / "a", "alice/new")
        pull("alice/new", tmp_path / "b")
        assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
        stream(tmp_path)
        if "no etag" in traits:
            with pytest.raises(
                SourceError, match=r"README\.md without an ETag, which `datasets` must have: check HF_END"
            ):
                read_texts(tmp_path)
        else:
            assert read_texts(tmp_path) == [f"document {number}" for number in range(50)]
        assert mirror.log


@pytest.mark.parametrize(
    ("behaviour", "path", "says"),
    [
        ("html", "", "with a page of HTML (200), where JSON should be"),
        ("html", LISTINGS, "with a page of HTML (200), where JSON should be"),
        ("html", FILES, "with a page of HTML (200), where data should be"),
        ("404", "/api/", "with 404 and without the Hub's own error code: it does not have this"),
        ("404", FILES, "with 404 and without the Hub's own error code: it does not have this"),
        ("gzip", FILES, "with bytes in gzip, where plain ones (identity) were asked for"),
        ("login", "", "/login with a page of HTML (200), where data should be"),
        ("empty", "/api/", "with nothing at all (200)"),
        ("shape", "/api/", 'with other JSON than the Hub\'s ({"message": "welcome"}), without'),
        ("shape", LISTINGS, 'with other JSON than the Hub\'s ({"message": "welcome"}), without'),
        ("405", "repos/create|paths-info", "with a page (405), and not as the Hub does"),
    ],
)
@pytest.mark.parametrize("command", list(COMMANDS))
def test_an_answer_that_no_hub_gives_is_named_at_once_with_who_gave_it(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    behaviour: Behaviour,
    path: str,
    says: str,
) -> None:
    seeded(hub, tmp_path)
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 60.0)  # no other try is made
    with behind(hub, monkeypatch) as mirror:
        twist = mirror.twist(behaviour, path)
        if (behaviour, command) in SOUND:
            COMMANDS[command](tmp_path)
            return
        with pytest.raises((HubError, SourceError)) as caught:
            COMMANDS[command](tmp_path)
        text = str(caught.value)
        assert type(caught.value) in (HubError, SourceError), text  # nobody's rights are at fault
        assert f"{mirror.endpoint}, which answered " in text
        assert says in text
        assert text.endswith(" check HF_ENDPOINT, or run the same command without it")
        assert "\n" not in text
        assert twist.done


def test_the_downloader_of_a_node_hands_on_what_its_mirror_answered(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(served, tmp_path)
    with HubMirror(served) as mirror:
        mirror.twist("html", "/resolve/")
        monkeypatch.setenv("HF_ENDPOINT", mirror.endpoint)
        with pytest.raises(HubError, match=f"{mirror.endpoint}, which answered GET .* with a page of HTML"):
            opened(tmp_path / "cache", REPO)


def test_a_mirror_that_shows_an_old_copy_is_named_beside_the_owner(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(hub, tmp_path)
    old = hub.repo(REPO).commits[hub.commits(REPO)[0].oid].files
    name = next(name for name in old if name.endswith(".npy"))
    with behind(hub, monkeypatch) as mirror:
        hub.fault("corrupt", "GET", "/_cdn/", times=None)
        with pytest.raises(HubError, match="arrived 3 times with other bytes") as damaged:
            pull(REPO, tmp_path / "b")
        hub.faults.clear()
        del old[name]
        with pytest.raises(HubError, match=f"{name} is not there, its manifest") as behind_the_times:
            pull(REPO, tmp_path / "c")
        for caught in (damaged, behind_the_times):
            assert f", or {mirror.endpoint} shows an old or damaged copy: check HF_ENDPOINT" in str(caught.value)
    monkeypatch.setattr(constants, "ENDPOINT", HUB)
    assert hub_answers.or_mirror(f"hf://datasets/{REPO}") == ""
    assert "a network that wants a login, answers in the Hub's place" in hub_answers.advice()


def test_a_listing_that_the_client_makes_in_threads_of_its_own_is_looked_at_too(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.seed_repo(TEXTS, {f"data/{n}.txt": b"x" for n in range(3)})
    with behind(hub, monkeypatch) as mirror:
        mirror.twist("html", "/tree/")
        with hub_session(), pytest.raises(hub_answers.WrongAnswer, match="where JSON should be"):
            HfFileSystem().find(f"datasets/{TEXTS}")


def test_only_our_own_threads_are_refused_what_no_hub_answers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import get_session

    with behind(hub, monkeypatch) as mirror:
        mirror.twist("html")
        url = f"{mirror.endpoint}/api/datasets/alice/demo"
        with hub_session():
            with pytest.raises(hub_answers.WrongAnswer, match="where JSON should be"):
                get_session().get(url)
            with ThreadPoolExecutor(1) as theirs:
                assert theirs.submit(get_session().get, url).result().status_code == 200
        assert get_session().get(url).status_code == 200
        assert get_session().event_hooks["response"] == []


@pytest.mark.parametrize(
    ("method", "url", "answered", "wrong"),
    [
        ("GET", "https://h/d/resolve/main/a.parquet", {"Content-Type": "text/html; charset=utf-8"}, "a page of HTML"),
        ("GET", "https://h/d/resolve/main/a.parquet", {"Content-Type": "TEXT/HTML", "Content-Length": "9"}, "a page"),
        ("GET", "https://h/d/resolve/main/page.html", {"Content-Type": "text/html"}, None),
        ("GET", "https://h/d/resolve/main/a.txt", {"Content-Type": "text/plain"}, None),
        ("PUT", "https://s3/x?signature=1", {"Content-Type": "text/html", "Content-Length": "0"}, None),
        (
            "PUT",
            "https://s3/x?signature=secret",
            {"Content-Type": "text/html", "Content-Length": "9"},
            "PUT https://s3/x with",
        ),
        ("GET", "https://h/x", {"content-encoding": "br"}, "bytes in br"),
        ("GET", "https://h/x", {"content-encoding": "identity"}, None),
        ("GET", "https://h/x", {"content-encoding": "aws-chunked"}, None),
        ("HEAD", "https://h/x", {"content-encoding": "gzip"}, None),
        ("GET", "https://h/api/resolve-cache/d/a.json", {"Content-Type": "text/html"}, "where data should be"),
        (
            "GET",
            "https://user:word@h/api/x?token=hf_aB12345678901",
            {"Content-Type": "text/html"},
            "GET https://h/api/x with",
        ),
    ],
)
def test_what_no_hub_answers_is_known_by_its_headers(
    method: str, url: str, answered: dict[str, str], wrong: str | None
) -> None:
    hub_answers.check_answer(method, url, {"Accept-Encoding": "identity"}, 404, answered)  # says itself that it failed
    if wrong is None:
        hub_answers.check_answer(method, url, {"Accept-Encoding": "identity"}, 200, answered)
        return
    with pytest.raises(hub_answers.WrongAnswer, match=wrong):
        hub_answers.check_answer(method, url, {"Accept-Encoding": "identity"}, 206, answered)
