"""A run that was called wrongly and made nothing is in nobody's way, here and at the place that it pushes to."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reference import folder_bytes
from run_data import TEXTS, after, make, stop
from texts import write_parquet

from shardkit import push, tokenize
from shardkit.dataset.journal import JOURNAL_FILE, first_line
from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.errors import HubError, OutputError, ShardkitError
from shardkit.remote.address import open_remote
from shardkit.remote.interface import CLAIM_FILE, Remote
from shardkit.tokenization.live_push import claim_place
from shardkit.tokenization.pushed_run import fetch_journal, fetch_journal_for

SHARD_TOKENS = 100_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("corpus") / "a.parquet", TEXTS, rows=50)


@pytest.fixture(params=["hub", "hub bucket", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind, with nothing in it."""
    if request.param != "folder":
        request.getfixturevalue("hub")
    return {"hub": "alice/demo", "hub bucket": "hf://buckets/alice/demo/set", "folder": str(tmp_path / "far")}[
        request.param
    ]


def run(corpus: Path, out: Path, **options: Any) -> Any:
    settings = {"tokenizer": "bytes", "shard_tokens": SHARD_TOKENS, "prefix": "p", "workers": 1, "chunk_bytes": 1 << 13}
    return tokenize(corpus, out, **{**settings, **options})


def names_at(place: str) -> set[str]:
    return {*open_remote(place).files()} - {".gitattributes"}


def broken(text: str) -> str:
    raise ValueError(text[:1])


SLIPS: dict[str, dict[str, Any]] = {
    "a text field that is not there": {"text_field": "body"},
    "a tokenizer that does not exist": {"tokenizer": "gpt22"},
    "a transform that fails": {"transform": broken},
    "a filter that leaves nothing": {"filter": lambda text: False},
    "a token that is none": {"eot": "<|nothing|>"},
}


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("slip", SLIPS)
def test_a_run_that_failed_before_its_first_shard_leaves_nothing(
    corpus: Path, tmp_path: Path, slip: str, existed: bool
) -> None:
    out = tmp_path / "new" / "out"
    if existed:
        out.mkdir(parents=True)
    with pytest.raises(ShardkitError):
        run(corpus, out, **SLIPS[slip])
    assert [*tmp_path.rglob("*")] == ([out.parent, out] if existed else [])
    run(corpus, out)
    assert (out / MANIFEST_NAME).exists()


def test_a_run_that_was_stopped_before_its_first_shard_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    def progress(now: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out", progress=progress)
    assert [*tmp_path.iterdir()] == []


def killed_at_the_first_chunk(corpus: Path, out: Path, push: str | None = None) -> None:
    """Another process begins a run with another prefix there, and is killed (9) before its first shard."""
    program = f"""
import os, pathlib
from shardkit import push, tokenize
tokenize(pathlib.Path({str(corpus)!r}), {str(out)!r}, tokenizer="bytes", shard_tokens={SHARD_TOKENS}, prefix="slip",
         workers=1, chunk_bytes=1 << 13, push={push!r}, progress=lambda now: os.kill(os.getpid(), 9))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / JOURNAL_FILE).read_bytes().count(b"\n") == 1


def test_a_run_that_was_killed_before_its_first_shard_makes_way_for_another(corpus: Path, tmp_path: Path) -> None:
    killed_at_the_first_chunk(corpus, tmp_path / "out")
    run(corpus, tmp_path / "out")
    run(corpus, tmp_path / "fresh")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "fresh")


def test_a_run_with_finished_shards_is_refused_to_another_in_words_and_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(out, progress=after(3, stop))
    before = folder_bytes(out), (out / JOURNAL_FILE).read_bytes()
    message = (
        r"out holds another run with \d+ finished shards \(max docs: null there, 300 now\): call it as there to go on "
        "with it, start again with overwrite=True, or choose another out="
    )
    with pytest.raises(OutputError, match=message):
        make(out, max_docs=300)
    assert (folder_bytes(out), (out / JOURNAL_FILE).read_bytes()) == before


@pytest.mark.parametrize("what", ["p_val_000000.npy", "other_train_000007.npy", MANIFEST_NAME])
def test_a_journal_beside_a_shard_or_a_manifest_is_not_forgotten(corpus: Path, tmp_path: Path, what: str) -> None:
    killed_at_the_first_chunk(corpus, tmp_path / "out")
    (tmp_path / "out" / what).write_bytes(b"mine")
    with pytest.raises(OutputError, match="holds another run with no finished shard yet"):
        run(corpus, tmp_path / "out")
    assert (tmp_path / "out" / what).read_bytes() == b"mine"
    assert (tmp_path / "out" / JOURNAL_FILE).exists()


# -- with --push -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slip", ["a text field that is not there", "a transform that fails"])
def test_a_run_that_failed_before_its_first_shard_leaves_the_place_it_pushed_to(
    corpus: Path, tmp_path: Path, place: str, slip: str
) -> None:
    with pytest.raises(ShardkitError):
        run(corpus, tmp_path / "a", push=place, **SLIPS[slip])
    assert names_at(place) == set()
    assert not (tmp_path / "a").exists()
    manifest = run(corpus, tmp_path / "b", push=place)
    assert {shard.file for shard in manifest.shards} < names_at(place)
    assert names_at(place) & {CLAIM_FILE, JOURNAL_FILE} == set()


def test_a_run_that_was_stopped_before_its_first_shard_leaves_its_place_and_its_folder(
    corpus: Path, tmp_path: Path
) -> None:
    def progress(now: Any) -> None:
        assert names_at(str(tmp_path / "far")) == {CLAIM_FILE, JOURNAL_FILE}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out", push=str(tmp_path / "far"), progress=progress)
    assert names_at(str(tmp_path / "far")) == set()
    assert not (tmp_path / "out").exists()


def test_a_run_whose_place_cannot_be_left_keeps_the_journal_by_which_it_can_be_left_later(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object) -> None:
        raise HubError("the place does not answer")

    far, out = str(tmp_path / "far"), tmp_path / "out"
    with monkeypatch.context() as lost:
        lost.setattr("shardkit.tokenization.pushed_run.leave_place", away)
        with pytest.raises(ShardkitError):
            run(corpus, out, push=far, transform=broken)
    assert (out / JOURNAL_FILE).exists()
    run(corpus, out, push=far)
    assert MANIFEST_NAME in names_at(far)


def test_a_slip_without_push_does_not_throw_away_what_frees_the_place_of_an_earlier_run(
    corpus: Path, tmp_path: Path
) -> None:
    far, out = str(tmp_path / "far"), tmp_path / "out"
    killed_at_the_first_chunk(corpus, out, far)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, out, prefix="slip", progress=lambda now: stop())
    run(corpus, out, push=far)
    assert MANIFEST_NAME in names_at(far)


def test_a_place_that_no_folder_can_free_any_more_is_freed_as_the_refusal_says(corpus: Path, tmp_path: Path) -> None:
    far, out = str(tmp_path / "far"), tmp_path / "out"
    killed_at_the_first_chunk(corpus, out, far)
    manifest = run(corpus, out)  # another run, to which the journal made way
    with pytest.raises(HubError, match="or `shardkit push --overwrite` a finished dataset there"):
        run(corpus, out, push=far)
    push(out, far, overwrite=True)
    assert names_at(far) & {CLAIM_FILE, JOURNAL_FILE} == set()
    assert {shard.file for shard in manifest.shards} < names_at(far)


def test_where_a_run_was_killed_before_its_first_shard_its_folder_may_push_another_there(
    corpus: Path, tmp_path: Path, served: Any
) -> None:
    for far in ("alice/demo", str(tmp_path / "far")):
        out = tmp_path / far.replace("/", "-")
        killed_at_the_first_chunk(corpus, out, far)
        assert {CLAIM_FILE, JOURNAL_FILE} <= names_at(far)
        with pytest.raises(HubError, match=r"no finished shard yet \(prefix: .*give the out= that it had"):
            run(corpus, tmp_path / "b", push=far)  # nobody can say that it is not at work elsewhere
        manifest = run(corpus, out, push=far)
        assert names_at(far) & {CLAIM_FILE, JOURNAL_FILE} == set()
        assert {shard.file for shard in manifest.shards} < names_at(far)


def test_a_claim_without_a_journal_of_a_run_killed_in_between_is_in_no_bodys_way(corpus: Path, tmp_path: Path) -> None:
    far, out = tmp_path / "far", tmp_path / "out"
    killed_at_the_first_chunk(corpus, out, str(far))
    (far / JOURNAL_FILE).unlink()
    run(corpus, out, push=str(far))
    assert (far / MANIFEST_NAME).exists()


def test_a_run_that_fails_leaves_the_claim_of_the_same_run_that_is_at_work_elsewhere(
    corpus: Path, tmp_path: Path, place: str
) -> None:
    class Seen(Exception):
        pass

    def progress(now: Any) -> None:
        with pytest.raises(ShardkitError):
            run(corpus, tmp_path / "second", push=place, transform=broken)
        assert {CLAIM_FILE, JOURNAL_FILE} <= names_at(place)
        raise Seen

    with pytest.raises(ShardkitError):
        run(corpus, tmp_path / "first", push=place, transform=broken, progress=progress)


def test_a_place_with_a_shard_of_the_same_run_is_not_left(corpus: Path, tmp_path: Path, place: str) -> None:
    out = tmp_path / "out"
    remote: Remote = open_remote(place)
    identity = {"prefix": "p"}
    out.mkdir()
    (out / ".shardkit").mkdir()
    (out / JOURNAL_FILE).write_bytes(first_line(identity))
    claim_place(fetch_journal(place), first_line(identity))
    remote.files()
    remote.claim(
        remote.claimed_by() or b"", remote.claimed_by(), {"p_val_000000.npy": b"x"}, "A shard of another machine"
    )
    before = names_at(place)
    fetch_journal_for(place, out, {"prefix": "q"})
    assert names_at(place) == before
