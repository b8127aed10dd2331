"""A file, folder or glob of a Hub dataset as a source, as people paste its address, at one commit."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from huggingface_hub import HfFileSystem

from shardkit.dataset.manifest import Manifest
from shardkit.errors import AuthError, OutputError, ShardkitWarning, SourceError, UsageError
from shardkit.look.info import info
from shardkit.remote.push import push
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import SourceNames, open_source
from shardkit.sources.source import Source
from shardkit.sources.texts import read_chunk
from shardkit.tokenization.pipeline import tokenize

REPO = "alice/texts"
SITE = f"https://huggingface.co/datasets/{REPO}"


def parquet(*texts: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return sink.getvalue()


@pytest.fixture
def texts(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A dataset in folders, converted at a ref of its own; the working folder has none of their names."""
    monkeypatch.chdir(tmp_path)
    hub.seed_repo(REPO, {"README.md": str(tmp_path).encode(), "data/old.txt": b"old"})
    hub.repo(REPO).tags["v1"] = hub.commits(REPO)[0].oid
    parts = {f"data/part-{n}.parquet": parquet(f"part {n}") for n in (1, 2, 10)}
    lines = json.dumps({"text": "line"}).encode() + b"\n"
    hub.seed_repo(REPO, {**parts, "data/notes.jsonl": lines, "data/.hidden.parquet": b"x", "data/deep/er.jsonl": lines})
    hub.repo(REPO).branches["refs/convert/parquet"] = hub.repo(REPO).branches["main"]
    hub.seed_repo(REPO, {"later.txt": b"later", "docs/LICENSE": b"mine"})
    HfFileSystem.clear_instance_cache()
    yield hub
    HfFileSystem.clear_instance_cache()


def read(source: Source) -> list[str | None]:
    chunks = iter_chunks(source, 0, 0, 0, chunk_bytes=1 << 20)
    return [text for chunk in chunks for piece in read_chunk(chunk, source.options) for text in piece.texts]


@pytest.mark.parametrize(
    "address",
    [
        f"{SITE}/resolve/main/data/part-10.parquet?download=true",
        f"{SITE}/blob/main/data/part-10.parquet",
        f"{SITE}/tree/refs%2Fconvert%2Fparquet/data/part-10.parquet",
        f"hf://datasets/{REPO}/data/part-10.parquet",
        f"hf://datasets/{REPO}@refs/convert/parquet/data/part-1*.parquet",
        "ENDPOINT/resolve/main/data/part-10.parquet",
    ],
)
def test_a_file_s_address_is_that_file_at_its_commit(texts: HubServer, address: str) -> None:
    source = open_source(address.replace("ENDPOINT", f"{texts.endpoint}/datasets/{REPO}"))
    converted = "refs" in address
    commit = texts.repo(REPO).branches["refs/convert/parquet" if converted else "main"]
    assert (source.info.id, source.info.revision) == (REPO, commit)
    names = ["data/part-1.parquet", "data/part-10.parquet"] if "*" in address else ["data/part-10.parquet"]
    assert [file.path for file in source.files] == names
    assert [file.url for file in source.files] == [f"hf://datasets/{REPO}@{commit}/{name}" for name in names]
    assert all(len(file.oid) == 64 and file.bytes for file in source.files)
    assert read(source)[-1] == "part 10"


@pytest.mark.parametrize("address", [f"{SITE}/tree/main/data", f"hf://datasets/{REPO}/data/", f"{REPO}/data"])
def test_a_folder_is_its_files_of_one_kind_in_natural_order(texts: HubServer, address: str) -> None:
    with pytest.warns(ShardkitWarning, match=r"only its parquet files are read, not .*notes\.jsonl") as caught:
        source = open_source(address)
    assert "hidden" not in str(caught[0].message)
    assert [file.path for file in source.files] == [f"data/part-{n}.parquet" for n in (1, 2, 10)]
    assert read(source) == ["part 1", "part 2", "part 10"]
    assert source.info.options == {"path": "data"}


def test_a_glob_reads_all_kinds_and_its_star_ends_at_a_slash(texts: HubServer) -> None:
    def found(pattern: str) -> list[str]:
        return [file.path for file in open_source(f"hf://datasets/{REPO}/{pattern}").files]

    assert found("data/*.jsonl") == ["data/notes.jsonl"]
    assert found("**/*.jsonl") == ["data/deep/er.jsonl", "data/notes.jsonl"]
    assert found("data/part-[12].parquet") == ["data/part-1.parquet", "data/part-2.parquet"]
    with pytest.warns(ShardkitWarning, match=r"only data files are read, not README\.md"):
        assert found("*") == ["later.txt"]


def test_some_of_a_datasets_files_are_read_and_it_stands_among_other_sources(texts: HubServer, tmp_path: Path) -> None:
    def found(source: Source) -> list[str]:
        return [file.path for file in source.files]

    source = open_source(f"hf://datasets/{REPO}/data", include="data/part-?.parquet")
    assert found(source) == ["data/part-1.parquet", "data/part-2.parquet"]
    assert source.info.options == {"path": "data", "include": "data/part-?.parquet"}
    with pytest.raises(SourceError, match="means none of the files of alice/texts"):
        open_source(f"hf://datasets/{REPO}/data", include="x*")
    (tmp_path / "local.jsonl").write_text('{"text": "local"}\n')
    mixed = open_source(SourceNames(["local.jsonl", f"hf://datasets/{REPO}/data/part-2.parquet"]))
    assert found(mixed) == ["local.jsonl", f"{REPO}/data/part-2.parquet"]
    assert read(mixed) == ["local", "part 2"]
    stated = {"id": REPO, "revision": source.info.revision, "path": "data/part-2.parquet"}
    assert mixed.info.options == {"sources": [{"id": "local.jsonl"}, stated]}
    assert mixed.info.id == "local.jsonl and 1 more"


def test_an_old_revision_and_a_local_folder_of_that_name(texts: HubServer, tmp_path: Path) -> None:
    assert read(open_source(f"{SITE}/tree/v1/data")) == ["old"]
    assert read(open_source(f"{SITE}/blob/v1/data/old.txt", revision="v1")) == ["old"]
    here = tmp_path / REPO / "data"
    here.mkdir(parents=True)
    (here / "a.txt").write_text("local")
    assert read(open_source(f"{REPO}/data")) == ["local"]


@pytest.mark.parametrize(
    ("address", "options", "kind", "says"),
    [
        (f"{SITE}/tree/main/none", {}, SourceError, "texts@main/none: no such file or folder at commit"),
        (f"hf://datasets/{REPO}/none/*.txt", {}, SourceError, "no such file or folder at commit"),
        (f"hf://datasets/{REPO}/data/*.txt", {}, None, ""),
        (f"{SITE}/blob/main/docs/LICENSE", {}, SourceError, "docs/LICENSE holds no files to read: expected .parquet"),
        (f"{SITE}/tree/v9/data", {}, SourceError, "has no such revision: check revision="),
        (f"{SITE}/tree/v1/data", {"revision": "main"}, UsageError, "one revision and revision= another (main)"),
        (f"{SITE}/tree/v1", {"revision": "main"}, UsageError, "one revision and revision= another (main)"),
        (f"{SITE}/tree/v1/data", {"name": "small"}, UsageError, "names files, name= and split= choose among"),
        (f"{REPO}/data", {"split": "test"}, UsageError, "names files, name= and split= choose among"),
        ("https://huggingface.co/alice/model", {}, UsageError, "is a model, or a page of the site"),
        ("https://huggingface.co/datasets/alice/none/tree/main/x?token=hf_aB12345678901", {}, AuthError, "alice/none"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(
    texts: HubServer, address: str, options: dict[str, str], kind: type[Exception] | None, says: str
) -> None:
    if kind is None:
        assert [file.path for file in open_source(address).files] == ["data/old.txt"]
        return
    with pytest.raises(kind) as caught:
        open_source(address, **options)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hf_aB" not in str(caught.value)


def test_a_run_names_dataset_commit_and_path_and_goes_on_with_the_same_address_alone(
    texts: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", texts.endpoint)  # for the workers
    address = f"{SITE}/resolve/main/data/part-10.parquet?download=true&token=hf_aB12345678901"

    def run(source: str) -> Manifest:
        return tokenize(source, tmp_path / "out", tokenizer="bytes", shard_tokens=4, workers=1)

    manifest = run(address)
    assert manifest.source is not None
    assert (manifest.source.id, manifest.source.config, manifest.source.split) == (REPO, None, None)
    assert manifest.source.revision == texts.repo(REPO).branches["main"]
    assert dict(manifest.source.options) == {"path": "data/part-10.parquet"}
    assert [file.path for file in manifest.source.files] == ["data/part-10.parquet"]
    assert Manifest.load(tmp_path / "out") == manifest
    assert info(tmp_path / "out").source == f"{REPO} {manifest.source.revision} data/part-10.parquet"
    push(tmp_path / "out", "alice/tokens")
    card = texts.file_bytes("alice/tokens", "README.md").decode()
    assert f"- Source: `{REPO}`, revision `{manifest.source.revision}`, path `data/part-10.parquet`" in card
    for same in (f"hf://datasets/{REPO}@main/data/part-10.parquet", address):
        assert run(same) == manifest
    with pytest.raises(OutputError, match="path"):
        run(f"hf://datasets/{REPO}@main/data/part-[1]0.parquet")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"hf_aB" not in written
