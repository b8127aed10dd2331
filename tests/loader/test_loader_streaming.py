"""`ShardLoader` from a remote: the same batches as from a copy, at once, within the bound, for all ranks of a node."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_data import REPO, bytes_on_disk, kill_downloader, serve
from hub_data import make_dataset
from hub_server import HubServer

from shardkit.batches.ledger import merge_ledger
from shardkit.batches.spans import ShardRows, SpanOrder
from shardkit.dataset.manifest import Manifest
from shardkit.errors import HubError, StateError, UsageError
from shardkit.loader.loader import ShardLoader
from shardkit.remote.push import push
from shardkit.remote.streaming.folder import small_bytes

SUPPORT = Path(__file__).parents[1] / "support"
SOAK_RUNS = int(os.environ.get("SHARDKIT_SOAK_RUNS", "3"))  # 200 for a release
TOKENS = 5000  # a shard
SHARD_BYTES = 10_128


@contextmanager
def disk_watch(folder: Path) -> Iterator[list[int]]:
    """The most bytes that `folder` held, in a list of one, sampled every few milliseconds."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            most[0] = max(most[0], bytes_on_disk(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def room_for(shards: int, manifest: Manifest) -> int:
    """The `cache_bytes` that leave room for so many shards."""
    return small_bytes(manifest) + shards * SHARD_BYTES


def order_of(manifest: Manifest, *, span: int, seq_len: int) -> SpanOrder:
    """The order of a loader's train split with seed 0."""
    tokens = [shard.tokens for shard in manifest.splits["train"]]
    return SpanOrder(ShardRows(tokens, seq_len), span=span, seed=0, shuffle=True)


def rows_before(order: SpanOrder, visit: int) -> int:
    """How many rows come before a visit to a span."""
    epochs = visit // order.n_spans + 1
    return int((order.visits(np.arange(epochs * order.n_windows)) < visit).sum())


def same(batch: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(batch, other, strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_stream_gives_a_copys_batches_and_ledger_within_its_bound(
    shuffle: bool, served: HubServer, tmp_path: Path
) -> None:
    bound = room_for(5, serve(served, tmp_path / "copy", shards=12, tokens=TOKENS))
    options: dict[str, Any] = {"batch_size": 5, "seq_len": 33, "seed": 7, "shuffle": shuffle}
    copy = ShardLoader(tmp_path / "copy", span=2, ledger=tmp_path / "a", **options)
    with disk_watch(tmp_path / "cache") as most:
        stream = ShardLoader(REPO, cache=tmp_path / "cache", cache_bytes=bound, ledger=tmp_path / "b", **options)
        for _ in range(2 * copy.steps_per_epoch + 3):
            assert same(stream.next_batch(), copy.next_batch())
            time.sleep(0.001)  # so that shards are deleted and fetched between steps
        assert stream.state_dict() == copy.state_dict()
        copy.close()
        stream.close()
    assert 4 * SHARD_BYTES < most[0] <= bound
    assert merge_ledger(tmp_path / "a").first_difference(merge_ledger(tmp_path / "b")) is None


def test_the_first_batch_comes_after_one_span(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "copy", shards=12, tokens=TOKENS)
    order = order_of(manifest, span=3, seq_len=64)
    shards = manifest.splits["train"]
    later = {shard.file for shard in shards} - {shards[number].file for number in order.shards(0)}
    for file in later:  # whoever waits for these waits for ever
        served.fault("status", "GET", file, code=503, times=None)
    copy = ShardLoader(tmp_path / "copy", batch_size=4, seq_len=64, span=3)
    with ShardLoader(REPO, batch_size=4, seq_len=64, span=3, cache=tmp_path / "cache") as stream:
        for _ in range(rows_before(order, 1) // 4):
            assert same(stream.next_batch(), copy.next_batch())
    assert not {path.name for path in (tmp_path / "cache").glob("*.npy")} & later


READS_AHEAD = """
import sys
import shardkit.loader.loader as loader
loader.check_prefetch = lambda prefetch, device: 2  # in a thread, as for a GPU
for batch in loader.ShardLoader(sys.argv[1], batch_size=4, seq_len=64, shuffle=False, span=1, cache=sys.argv[2]):
    pass
"""


def test_ctrl_c_ends_a_program_whose_thread_waits_for_a_shard(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "copy", shards=6, tokens=TOKENS)
    late = manifest.splits["train"][-1].file
    served.fault("slow", "GET", late, seconds=600, times=None)
    words = [sys.executable, "-c", READS_AHEAD, REPO, str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not served.count("GET", late):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert said.rstrip().endswith("KeyboardInterrupt"), said


def test_two_ranks_of_a_node_download_each_byte_once(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "copy", shards=9, tokens=TOKENS)
    (tmp_path / "run").mkdir()
    steps = 150  # of 16 windows of 16 tokens: 38,400 of 37,501 tokens, so into the second epoch
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(SUPPORT / "loader_rank.py"), REPO, str(tmp_path / "run"), "8", str(steps), "0"),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "SHARDKIT_CACHE": str(tmp_path / "cache"),
        "SPAN": "2",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with ShardLoader(tmp_path / "copy", batch_size=16, seq_len=16, seed=3, span=2, ledger=tmp_path / "copied") as copy:
        for _ in range(steps):
            copy.next_batch()
    assert merge_ledger(tmp_path / "run" / "ledger").first_difference(merge_ledger(tmp_path / "copied")) is None
    train = [shard for shard in manifest.shards if shard.split == "train"]
    assert served.bytes_sent("/_cdn/") == sum(shard.bytes for shard in train)  # and nothing of the val split


def test_a_run_goes_on_from_a_state_at_another_world_size_and_from_a_copy(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "copy", shards=10, tokens=TOKENS)
    options: dict[str, Any] = {"seq_len": 50, "seed": 1, "span": 2}
    whole = ShardLoader(tmp_path / "copy", batch_size=8, **options)
    expected = torch.cat([whole.next_batch()[0] for _ in range(100)])
    with ShardLoader(REPO, batch_size=8, cache=tmp_path / "cache", **options) as stream:
        parts = [stream.next_batch()[0] for _ in range(60)]
        state = json.loads(json.dumps(stream.state_dict()))
    ranks = [
        ShardLoader(REPO, batch_size=4, rank=rank, world_size=2, cache=tmp_path / "cache", **options)
        for rank in range(2)
    ]
    for loader in ranks:
        loader.load_state_dict(state)
    parts += [loader.next_batch()[0] for _ in range(40) for loader in ranks]
    assert torch.equal(torch.cat(parts), expected)
    for loader in ranks:
        loader.close()
    with (
        ShardLoader(REPO, batch_size=8, cache=tmp_path / "cache", seq_len=50, seed=1, span=3) as other,
        pytest.raises(StateError, match="saved with span 2, this loader has 3"),
    ):
        other.load_state_dict(state)


def test_a_downloader_that_is_killed_again_and_again_delays_and_changes_nothing(
    served: HubServer, tmp_path: Path
) -> None:
    bound = room_for(3, serve(served, tmp_path / "copy", shards=8, tokens=TOKENS))
    copy = ShardLoader(tmp_path / "copy", batch_size=4, seq_len=32, span=1)
    with ShardLoader(REPO, batch_size=4, seq_len=32, span=1, cache=tmp_path / "cache", cache_bytes=bound) as stream:
        for step in range(copy.steps_per_epoch):
            if step in (50, 150):
                kill_downloader(tmp_path / "cache")
            assert same(stream.next_batch(), copy.next_batch())


def test_what_keeps_a_shard_away_is_raised_by_the_batch_that_needs_it(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "copy", shards=6, tokens=TOKENS)
    order = order_of(manifest, span=1, seq_len=32)
    file = manifest.splits["train"][order.shards(3)[0]].file
    served.fault("corrupt", "GET", file, times=None)
    with ShardLoader(REPO, batch_size=4, seq_len=32, span=1, cache=tmp_path / "cache") as stream:
        for _ in range(rows_before(order, 3) // 4):
            stream.next_batch()
        with pytest.raises(HubError, match=rf"{file}.* arrived 3 times with other bytes than promised"):
            stream.next_batch(), stream.next_batch()


@pytest.mark.parametrize("layout", ["document", "packed"])
def test_other_layouts_wait_for_the_whole_split(layout: str, served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "copy", shards=5, tokens=TOKENS)
    options: dict[str, Any] = {"batch_size": 2, "seq_len": 32, "layout": layout, "documents": True}
    if layout == "document":  # of random tokens few are EOT
        options["batch_size"] = 1
    copy = ShardLoader(tmp_path / "copy", **options)
    with ShardLoader(REPO, cache=tmp_path / "cache", **options) as stream:
        for _ in range(copy.steps_per_epoch):
            batch, expected = stream.next_batch(), copy.next_batch()
            assert same(batch[:2], expected[:2])
            assert same((batch[2].cu_seqlens,), (expected[2].cu_seqlens,))
    with pytest.raises(UsageError, match="needs the whole split on disk"):
        ShardLoader(REPO, cache=tmp_path / "cache", cache_bytes=10**6, **options)


def test_documents_of_a_stream_have_room_for_the_most_there_can_be(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "copy", shards=5, tokens=TOKENS)
    options: dict[str, Any] = {"batch_size": 2, "seq_len": 32, "span": 2, "documents": True}
    copy = ShardLoader(tmp_path / "copy", **options)
    with ShardLoader(REPO, cache=tmp_path / "cache", **options) as stream:
        batch, expected = stream.next_batch(), copy.next_batch()
        assert same(batch[:2], expected[:2])
        assert torch.equal(batch[2].position_ids, expected[2].position_ids)
        assert batch[2].cu_seqlens.shape == (2 * 32 + 1,)


def test_a_bound_that_is_too_small_says_how_much_is_needed(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "copy", shards=12, tokens=TOKENS)
    options: dict[str, Any] = {"batch_size": 1, "seq_len": 8, "cache": tmp_path / "cache"}
    with pytest.raises(UsageError, match=r"a span of 1 shard and the next one take 20\.3 kB.* give more"):
        ShardLoader(REPO, cache_bytes=room_for(2, manifest) - 1, **options)
    with pytest.raises(UsageError, match=r"a span of 3 shards and the next one take .* or a smaller span"):
        ShardLoader(REPO, cache_bytes=room_for(5, manifest), span=3, **options)


def test_a_name_that_is_neither_a_repo_nor_a_folder_says_both(served: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"runs/data .*does not exist.*nor is there a folder runs/data here"):
        ShardLoader("runs/data", batch_size=1, seq_len=8, cache=tmp_path / "cache")


def test_a_row_is_located_in_a_shard_that_was_deleted(served: HubServer, tmp_path: Path) -> None:
    bound = room_for(6, serve(served, tmp_path / "copy", shards=12, tokens=TOKENS))
    options: dict[str, Any] = {"batch_size": 8, "seq_len": 64, "span": 2}
    copy = ShardLoader(tmp_path / "copy", **options)
    with ShardLoader(REPO, cache=tmp_path / "cache", cache_bytes=bound, **options) as stream:
        for _ in range(60):
            stream.next_batch()
        gone = next(step for step in range(60) if not (tmp_path / "cache" / copy.locate(step=step).shard).exists())
        for step in (gone, 60, 100):
            assert stream.locate(step=step) == copy.locate(step=step)


def test_a_mixture_streams_each_of_its_parts_and_local_ones_have_spans_too(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "copy", shards=7, tokens=TOKENS)
    served.seed_repo("alice/other", {path.name: path for path in (tmp_path / "copy").iterdir()})
    options: dict[str, Any] = {"batch_size": 3, "seq_len": 32, "seed": 2}
    copy = ShardLoader([(tmp_path / "copy", weight) for weight in (2, 1, 1)], span=4, **options)
    sources = [(REPO, 2), (tmp_path / "copy", 1), ("alice/other", 1)]
    with ShardLoader(sources, cache=tmp_path / "cache", **options) as stream:
        for _ in range(300):
            assert same(stream.next_batch(), copy.next_batch())
        assert stream.state_dict() == copy.state_dict()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_train_and_val_of_one_remote_have_a_bound_each(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = serve(served, tmp_path / "copy", shards=8, tokens=TOKENS)
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"batch_size": 2, "seq_len": 32, "cache_bytes": room_for(3, manifest)}
    with ShardLoader(REPO, **options) as train, ShardLoader(REPO, split="val", **options) as val:
        for _ in range(train.steps_per_epoch):
            train.next_batch()
            val.next_batch()


@pytest.mark.parametrize("seed", range(SOAK_RUNS))
def test_random_faults_and_kills_change_no_batch_or_are_named(seed: int, served: HubServer, tmp_path: Path) -> None:
    rng = random.Random(seed)
    manifest = serve(served, tmp_path / "copy", shards=rng.randint(5, 9), tokens=3000, seed=seed)
    span, options = rng.choice([1, 2]), {"batch_size": rng.randint(1, 6), "seq_len": rng.randint(10, 60), "seed": seed}
    bound = small_bytes(manifest) + (2 * span + 1) * 6200
    for code, extra in ((429, {"retry_after": 0}), (500, {}), (503, {})):
        served.random_faults(seed * 10 + code, rng.choice([0.02, 0.1]), ["status"], code=code, **extra)
    served.random_faults(seed, rng.choice([0.05, 0.2]), ["drop", "drop_midway", "truncate", "corrupt"])
    copy = ShardLoader(tmp_path / "copy", span=span, **options)
    kill_at = rng.choice([None, rng.randrange(copy.steps_per_epoch)])
    options |= {"span": span, "cache": tmp_path / "cache", "cache_bytes": bound}
    state = copy.state_dict()
    for _ in range(20):  # a named error ends a run; the next one goes on from its state
        with disk_watch(tmp_path / "cache") as most:
            try:
                with ShardLoader(REPO, **options) as stream:
                    stream.load_state_dict(state)
                    while stream.epoch == 0:
                        if stream.step == kill_at:
                            kill_downloader(tmp_path / "cache")
                            kill_at = None
                        copy.load_state_dict(state)
                        assert same(stream.next_batch(), copy.next_batch())
                        state = stream.state_dict()
            except HubError as error:
                assert "hf_write" not in str(error)
        assert most[0] <= bound
        if state["run"][0]:
            break
    assert state["run"][0] == 1


def test_within_a_bound_each_byte_comes_once_an_epoch_though_the_run_stops_in_between(
    served: HubServer, tmp_path: Path
) -> None:
    manifest = serve(served, tmp_path / "copy", shards=11, tokens=TOKENS)
    options: dict[str, Any] = {"batch_size": 4, "seq_len": 100, "span": 2}
    order = order_of(manifest, span=2, seq_len=100)
    copy = ShardLoader(tmp_path / "copy", **options)
    options |= {"cache": tmp_path / "cache", "cache_bytes": room_for(5, manifest)}
    state = copy.state_dict()
    while state["epoch"] == 0:
        with ShardLoader(REPO, **options) as stream:
            stream.load_state_dict(state)
            for _ in range(30):
                assert same(stream.next_batch(), copy.next_batch())
                state = stream.state_dict()
                if state["epoch"]:
                    break
            cache = stream._sequence.sources[0].cache
            for file in cache._wants if cache else ():  # nothing is on its way when we leave
                cache.wait(file)
    shards = manifest.splits["train"]
    again = {shards[number] for visit in (0, 1) for number in order.shards(order.n_spans + visit)}
    once = sum(shard.bytes for shard in shards)
    assert once <= served.bytes_sent("/_cdn/") <= once + sum(shard.bytes for shard in again)


def test_a_fresh_machine_in_mid_epoch_gets_the_edges_of_what_has_passed(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "copy", shards=11, tokens=TOKENS)
    options: dict[str, Any] = {"batch_size": 4, "seq_len": 100, "span": 2}
    copy = ShardLoader(tmp_path / "copy", **options)
    for _ in range(60):
        copy.next_batch()
    for name, bound in (("bounded", room_for(5, manifest)), ("free", None)):
        state = {key: value for key, value in copy.state_dict().items() if key not in ("run", "check")}
        copy.load_state_dict({**state, "epoch": 0, "window": 240, "step": 60})
        with (
            disk_watch(tmp_path / name) as most,
            ShardLoader(REPO, cache=tmp_path / name, cache_bytes=bound, **options) as stream,
        ):
            stream.load_state_dict(copy.state_dict())
            while stream.epoch == 0:
                assert same(stream.next_batch(), copy.next_batch())
        assert bound is None or most[0] <= bound


def test_an_edge_that_is_damaged_or_gone_is_made_again(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "copy", shards=8, tokens=TOKENS)
    options: dict[str, Any] = {"batch_size": 4, "seq_len": 100, "span": 1}
    copy = ShardLoader(tmp_path / "copy", **options)
    rng = random.Random(0)
    with ShardLoader(REPO, cache=tmp_path / "cache", cache_bytes=room_for(3, manifest), **options) as stream:
        while stream.epoch == 0:
            assert same(stream.next_batch(), copy.next_batch())
            for edge in sorted((tmp_path / "cache" / ".shardkit" / "edges").glob("*/*")):
                damage = rng.randrange(9)
                data = edge.read_bytes()
                edge.write_bytes(data[:-1] if damage == 0 else bytes([data[0] ^ 1]) + data[1:] if damage == 1 else data)


def test_a_stream_from_a_bucket_gives_a_copys_batches_and_goes_on_from_its_state(
    served: HubServer, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "copy", shards=5, tokens=TOKENS)
    place = "hf://buckets/alice/tokens/demo"
    push(tmp_path / "copy", place)
    options: dict[str, Any] = {"batch_size": 5, "seq_len": 33, "seed": 7}
    with ShardLoader(tmp_path / "copy", **options, span=3) as copy:
        expected = [copy.next_batch() for _ in range(20)]
    with ShardLoader(place, **options, span=3, cache=tmp_path / "first") as loader:
        got = [loader.next_batch() for _ in range(11)]
        state = loader.state_dict()
    with ShardLoader(place, **options, span=3, cache=tmp_path / "second") as loader:
        loader.load_state_dict(state)
        got += [loader.next_batch() for _ in range(9)]
    assert all(same(one, two) for one, two in zip(got, expected, strict=True))
