"""Shards that leave from the machine that wrote them: the same dataset at every place, within each machine's bound."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import folder_bytes, shard_bytes
from texts import documents, write_parquet

from shardkit import pull, tokenize
from shardkit.dataset.manifest import ShardInfo
from shardkit.dataset.shards import WrittenShard
from shardkit.errors import HubError, OutputError
from shardkit.remote.address import open_remote
from shardkit.tokenization import live_push, pipeline, sent_shards
from shardkit.tokenization.local_runner import LocalRunner
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.runner import Destination, OpenShard

SHARD = ShardInfo(
    file="p_train_000000.npy", split="train", index=0, tokens=9, documents=1, first_document=0, sha256="0" * 64, bytes=9
)


class ClusterOfOne(LocalRunner):
    """Workers on this machine, which sends what they write as a node of a cluster does."""

    def send_to(self, destination: Destination) -> bool:
        self.destination = destination
        return True

    def wait(self, shard: OpenShard) -> WrittenShard:
        made = super().wait(shard)
        if shard.info is None:
            return made
        given = shard.dtype.str, shard.tokens, [np.array([[0, shard.tokens]])], np.load(shard.temp)
        return sent_shards.write_and_send(self.destination, shard.info, *given)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of a machine whose runs have nodes."""
    monkeypatch.setattr(pipeline, "start_runner", lambda *_: ClusterOfOne(1))
    monkeypatch.setattr(live_push, "is_on_local_disk", lambda _: False)  # so that a folder counts as one that all see
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture(params=["alice/tokens", "hf://buckets/alice/tokens/here", "folder"])
def place(request: pytest.FixtureRequest, hub: Any, tmp_path: Path) -> str:
    return str(tmp_path / "far") if request.param == "folder" else str(request.param)


def dying(after: int) -> Callable[[TokenizeProgress], None]:
    def progress(now: TokenizeProgress) -> None:
        if now.shards >= after:
            raise SystemError("the machine dies")

    return progress


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_nodes_sent_is_the_dataset_also_if_the_main_process_died_before_it_was_acknowledged(
    place: str, machine: Path, tmp_path: Path, elsewhere: bool
) -> None:
    texts = documents(120)
    write_parquet(tmp_path / "a.parquet", texts, rows=10)

    def run(out: str, progress: Any = False) -> None:
        size = {"shard_tokens": 20_000, "chunk_bytes": 1 << 14, "max_disk": 300_000}
        tokenize(
            tmp_path / "a.parquet", tmp_path / out, tokenizer="bytes", prefix="p", push=place, progress=progress, **size
        )

    with pytest.raises(SystemError):
        run("out", dying(after=4))
    assert not list((tmp_path / "out").glob("*.npy"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("elsewhere" if elsewhere else "out")
    said = [str(one.message) for one in caught if "acknowledged" in str(one.message)]
    if place == "alice/tokens":  # where commits are few, and none was due
        assert ["p_val_000000.npy is neither in" in one for one in said] == [True] * (not elsewhere)
    pull(place, tmp_path / "pulled")
    assert folder_bytes(tmp_path / "pulled") == shard_bytes(texts, 20_000, "p", tokenizer="bytes")
    assert not list(machine.iterdir())
    assert not list((tmp_path / "out").glob("*.npy"))


@pytest.mark.filterwarnings("ignore:.*nor acknowledged at")  # the last one, or not
def test_a_place_that_is_not_the_runs_own_makes_none_of_its_shards_again(machine: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", documents(60), rows=10)

    def run(place: str, progress: Any = False) -> None:
        size = {"shard_tokens": 20_000, "chunk_bytes": 1 << 14, "max_disk": 300_000}
        out, far = tmp_path / "out", str(tmp_path / place)
        tokenize(tmp_path / "a.parquet", out, tokenizer="bytes", prefix="p", push=far, progress=progress, **size)

    with pytest.raises(SystemError):
        run("far", dying(after=2))
    before = (tmp_path / "out" / ".shardkit" / "journal.jsonl").read_bytes()
    with pytest.raises(OutputError, match="is missing here and at .*: give the place that it was pushed to"):
        run("slip")
    assert (tmp_path / "out" / ".shardkit" / "journal.jsonl").read_bytes() == before
    run("far")
    assert len(folder_bytes(tmp_path / "far")) > 2


def test_a_machine_has_no_more_shards_than_it_may_and_none_of_a_process_that_was_killed(machine: Path) -> None:
    destination = Destination("alice/tokens", b"mark", 2)
    with sent_shards._room_for_one(destination) as folder:
        (folder.parent / "1").mkdir()
        (folder.parent / "1" / "left.npy").write_bytes(b"by a process that was killed")
        there, most, lock = 0, 0, threading.Lock()

        def send() -> None:
            nonlocal there, most
            with sent_shards._room_for_one(destination) as own:
                with lock:
                    there += 1
                    most = max(most, there)
                assert not list(own.iterdir())
                (own / "p.npy").write_bytes(b"tokens")
                with lock:
                    there -= 1

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert there == 0
        assert most == 1  # the other place is taken
    assert not list(machine.iterdir())


def test_what_goes_wrong_on_a_node_names_it(machine: Path, tmp_path: Path) -> None:
    destination = Destination(str(tmp_path / "far"), b"the mark of another run", 1)
    given = "<u2", 9, [np.array([[0, 9]])], np.arange(9, dtype="<u2")
    with pytest.raises(HubError, match=r"^on node \S+: .*far is not ours any more"):
        sent_shards.write_and_send(destination, SHARD, *given)
    assert not list(machine.iterdir())


def test_a_folder_that_a_node_cannot_make_is_one_line(machine: Path, tmp_path: Path) -> None:
    destination = Destination(str(tmp_path / "far"), b"mark", 1)
    with sent_shards._room_for_one(destination) as folder:
        above = folder.parent
    above.mkdir()
    (above / "0").write_bytes(b"in the way")
    with pytest.raises(OutputError, match=r"^on node \S+: cannot write .*0: File exists; something else of that name"):
        sent_shards.write_and_send(destination, SHARD)


def test_a_shard_that_did_not_arrive_or_is_no_large_file_is_not_committed(hub: Any) -> None:
    remote = open_remote("alice/tokens")
    remote.create(private=False)
    remote.files()
    remote.received(SHARD, "lfs")
    with pytest.raises(HubError, match="p_train_000000.npy has not arrived whole"):
        remote.commit([SHARD], {}, "Add it")
    with pytest.raises(HubError, match="is no large file at alice/tokens"):
        remote.received(SHARD, "")
    assert "p_train_000000.npy" not in hub.files("alice/tokens")
